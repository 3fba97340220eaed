"""What writes journals: whole lines, few snapshots, and no harm from a bad disk."""

import os
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path

import pytest
from tiny import tiny_config, tiny_model

from engine.config import PRESETS
from engine.live import journal_writer
from engine.live.channel_state import ChannelState
from engine.live.generator import Generator
from engine.live.journal import Beginning, ChunkRecord, Journal, SnapshotRecord
from engine.live.journal_writer import MOST_SNAPSHOTS, MOST_WAITING, ChannelJournal, JournalWriter, surplus
from engine.live.snapshot import read_snapshot, restore
from engine.wire.state_folder import JOURNAL, channel_folder

ROOT = Path(__file__).parents[1]
EVERY = 3  # chunks from one snapshot to the next


@cache
def generator() -> Generator:
    return Generator(tiny_model())


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", tiny_config)
    monkeypatch.setattr(journal_writer, "SNAPSHOT_S", EVERY * tiny_config().chunk_s)


class Told:
    """What a writer tells."""

    def __init__(self) -> None:
        self.reasons: list[str | None] = []

    def __call__(self, channel: str, reason: str | None) -> None:
        assert channel == "main"
        self.reasons.append(reason)


def make(journal: ChannelJournal, state: ChannelState, chunks: int) -> None:
    own = generator()
    for _ in range(chunks):
        while own.needs_plan(state):
            own.plan(state)
        for _ in journal.recorded(state, own.chunk(state), state.next.frame).units:
            pass


def open_state(seed: int = 7) -> ChannelState:
    return generator().open("a red ball", seed, steps=1)


def kinds(path: Path) -> list[type]:
    return [type(record) for record in Journal(path).records]


def settled(writer: JournalWriter) -> None:
    """Returns when all that waits is written."""
    done = threading.Event()
    while not writer.put(done.set):
        time.sleep(0.01)
    assert done.wait(60)


def test_lines_are_there_when_a_chunk_is_done(tmp_path: Path) -> None:
    """One for each, and now and then a snapshot, from which the state comes back."""
    told, state = Told(), open_state()
    writer = JournalWriter(tmp_path, generator(), told)
    journal = writer.open("main", state, new=True)
    for number in range(EVERY):
        make(journal, state, 1)
        settled(writer)
        assert kinds(tmp_path / "main" / JOURNAL)[: number + 2] == [Beginning, *[ChunkRecord] * (number + 1)]
    *_, last = Journal(tmp_path / "main" / JOURNAL).records
    assert isinstance(last, SnapshotRecord)
    again = restore(generator(), read_snapshot(tmp_path / "main" / last.snapshot))
    assert (again.next, again.seed) == (state.next, 7)
    assert told.reasons == []
    writer.close(60)


def test_a_journal_goes_on_in_another_process(tmp_path: Path) -> None:
    """Behind a line that a killed process left half written."""
    state = open_state()
    for new in (True, False):
        writer = JournalWriter(tmp_path, generator(), Told())
        make(writer.open("main", state, new), state, 1)
        writer.close(60)
        with (tmp_path / "main" / JOURNAL).open("ab") as file:
            file.write(b'{"kind":"chu')
    assert kinds(tmp_path / "main" / JOURNAL) == [Beginning, ChunkRecord] * 2


def test_an_earlier_video_is_set_aside(tmp_path: Path) -> None:
    """A new video of the same channel leaves the earlier journal in a folder of its own."""
    for seed in (1, 2):
        writer, state = JournalWriter(tmp_path, generator(), Told()), open_state(seed)
        make(writer.open("main", state, new=True), state, 1)
        writer.close(60)
    seeds = {path.parent.name: Journal(path).beginning.seed for path in tmp_path.glob(f"*/{JOURNAL}")}
    assert seeds.pop("main") == 2
    assert list(seeds.values()) == [1] and next(iter(seeds)).startswith("main.")


def test_a_channel_of_any_name_stays_in_its_folder(tmp_path: Path) -> None:
    """Names that mean something to a file system mean nothing."""
    for name in ("..", "../..", "/etc", "a/b", "ü" * 60):
        assert channel_folder(tmp_path, name).parent == tmp_path
        assert channel_folder(tmp_path, name).resolve().parent == tmp_path.resolve()


def test_a_bad_disk_costs_the_journal_and_not_the_video(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One warning with the reason; with the next snapshot the journal begins again when the disk is good."""
    told, state = Told(), open_state()
    writer = JournalWriter(tmp_path, generator(), told)
    journal = writer.open("main", state, new=True)
    make(journal, state, 1)
    settled(writer)
    path = tmp_path / "main" / JOURNAL
    kept = path.read_bytes()
    path.unlink()
    path.mkdir()
    make(journal, state, EVERY - 1)
    settled(writer)
    assert len(told.reasons) == 1 and told.reasons[0] is not None and "cannot be written" in told.reasons[0]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    path.rmdir()
    path.write_bytes(kept)
    make(journal, state, EVERY)
    settled(writer)
    assert told.reasons[1:] == [None]
    make(journal, state, 1)
    writer.close(60)
    assert kinds(path) == [Beginning, ChunkRecord, Beginning, ChunkRecord]
    snapshot = Journal(path).records[2]
    assert isinstance(snapshot, Beginning) and snapshot.snapshot is not None


def test_a_bad_disk_is_not_told_of_a_channel_that_is_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The server knows it no more, and takes a message that names it for a fault of the engine."""
    told, state = Told(), open_state()
    writer = JournalWriter(tmp_path, generator(), told)
    journal = writer.open("main", state, new=True)
    settled(writer)
    path = tmp_path / "main" / JOURNAL
    path.unlink()
    path.mkdir()
    journal.close()
    make(journal, state, 1)
    writer.close(60)
    assert told.reasons == [] and "goes on without its journal" in caplog.text


FULL = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, "tests")
from test_journal_writer import Told, generator, make, open_state
from engine.live.journal_writer import JournalWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder, told, state = Path(sys.argv[1]), Told(), open_state()
writer = JournalWriter(folder, generator(), told)
journal = writer.open("main", state, new=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))
make(journal, state, 6)
writer.close(60)
assert state.next.chunk == 6
assert len(told.reasons) == 1 and "File too large" in told.reasons[0], told.reasons
"""


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    """A line for which there is only half the room is not there."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], check=True, cwd=ROOT, env=environment, timeout=100)
    content = (tmp_path / "main" / JOURNAL).read_bytes()
    assert content.endswith(b"\n") and len(content) <= 900
    assert set(kinds(tmp_path / "main" / JOURNAL)) == {Beginning, ChunkRecord}


def test_a_disk_that_hangs_holds_up_nothing(tmp_path: Path) -> None:
    """Records that find no room are not waited for; the journal begins again with a snapshot."""
    told, state, hung = Told(), open_state(), threading.Event()
    writer = JournalWriter(tmp_path, generator(), told)
    journal = writer.open("main", state, new=True)
    settled(writer)
    began = threading.Event()
    assert writer.put(lambda: began.set() or bool(hung.wait(60)) and None)
    assert began.wait(60)
    while writer.put(lambda: None):
        pass
    make(journal, state, 1)
    assert told.reasons == [f"the disk is {MOST_WAITING} records behind; give --state a faster one"]
    # With any number of places free it ends, as soon as it can.
    other = JournalWriter(tmp_path / "other", generator(), told)
    assert other.put(lambda: hung.wait(60) and None)
    while other._jobs.qsize() < MOST_WAITING - 1:
        assert other.put(lambda: None)
    other.close(0.1)
    assert other._thread.is_alive()
    hung.set()
    other._thread.join(60)
    assert not other._thread.is_alive()
    settled(writer)
    make(journal, state, EVERY)
    writer.close(60)
    assert told.reasons[1:] == [None]
    assert kinds(tmp_path / "main" / JOURNAL)[:2] == [Beginning, Beginning]


def test_old_snapshots_become_sparse() -> None:
    """The first and the newest stay; gaps grow with age, and no gap is much longer than its age."""
    kept = list(range(1, MOST_SNAPSHOTS + 1))
    for number in range(MOST_SNAPSHOTS + 1, 2000):
        kept.append(number)
        del kept[surplus(kept)]
    assert kept[0] == 1 and kept[-1] == 1999 and len(kept) == MOST_SNAPSHOTS
    gaps = [later - earlier for earlier, later in zip(kept, kept[1:], strict=False)]
    assert gaps[-4:] == [1, 1, 1, 1]
    ages = [kept[-1] - earlier for earlier in kept[:-1]]
    assert max(gap / age for gap, age in zip(gaps[:-4], ages[:-4], strict=True)) < 0.6

"""A channel's state on the disk: the record names a snapshot of its own time, whatever the disk does."""

import errno
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_interleave import _generator

from engine.live import state_files
from engine.live.journal_writer import JournalWriter
from engine.live.state_files import StateFiles
from engine.wire.kept_state import KeptState
from engine.wire.state_folder import STATE


@pytest.fixture
def journals(tmp_path: Path) -> Iterator[JournalWriter]:
    writer = JournalWriter(tmp_path, _generator(), lambda *told: pytest.fail(str(told)))
    yield writer
    writer.close(60)


def write(files: StateFiles, chunk: int, snapshot: bool = True) -> None:
    """The state behind a chunk, with a snapshot that holds the chunk's number, or with none of its own."""
    kept = KeptState("main", "mini", "", "a red ball", 0, None, chunk, 24 * chunk)
    files.write(kept, memoryview(str(chunk).encode()) if snapshot else None)


def on_disk(journals: JournalWriter) -> tuple[int, str]:
    """Behind all that waits: the record's chunk, and what its snapshot holds."""
    written = threading.Event()
    assert journals.put(written.set) and written.wait(60)
    folder = journals.folder / "main"
    kept = KeptState.from_json((folder / STATE).read_bytes())
    return kept.chunk, (folder / str(kept.snapshot)).read_text()


def test_a_state_that_found_no_room(journals: JournalWriter) -> None:
    """What is told of its chunk later is not written beside the snapshot before it; the next state is."""
    files, hung, began = StateFiles(journals, "main"), threading.Event(), threading.Event()
    write(files, 1)
    assert on_disk(journals) == (1, "1")
    assert journals.put(lambda: began.set() or bool(hung.wait(60)) and None) and began.wait(60)
    while journals.put(lambda: None):
        pass
    write(files, 2)
    hung.set()
    while not journals.put(lambda: None):
        pass
    write(files, 2, snapshot=False)
    assert on_disk(journals) == (1, "1")
    write(files, 3)
    write(files, 3, snapshot=False)
    assert on_disk(journals) == (3, "3")


def test_records_that_cannot_be_written(
    journals: JournalWriter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The snapshot that the last good record names stays as long as it does; all is well once the disk is."""
    files = StateFiles(journals, "main")
    write(files, 1)
    assert on_disk(journals) == (1, "1")
    replace = state_files._replace

    def full(path: Path, data: bytes | memoryview) -> None:
        if path.name == STATE:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(path, data)

    monkeypatch.setattr(state_files, "_replace", full)
    for chunk in (2, 3, 4):
        write(files, chunk)
        assert on_disk(journals) == (1, "1")
    monkeypatch.setattr(state_files, "_replace", replace)
    write(files, 4, snapshot=False)
    assert on_disk(journals) == (1, "1")
    write(files, 5)
    assert on_disk(journals) == (5, "5")
    assert caplog.text.count("goes on from an older state") == 1

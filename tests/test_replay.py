"""Journals back to frames: the same bits, from any place on."""

import dataclasses
from collections import abc
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny import tiny_config, tiny_model, write_weights
from torch import Tensor

from engine.config import PRESETS
from engine.live import journal as journals
from engine.live import journal_writer
from engine.live.channel_state import ChannelState, RenderState
from engine.live.generator import Generator, Unit
from engine.live.journal import ChunkRecord, Environment, Journal
from engine.live.journal_writer import JournalWriter
from engine.live.plan_writer import PlanPart
from engine.live.replay import OTHER_PICTURES, Replay, differences
from engine.live.snapshot import restore, take_snapshot, write_snapshot
from engine.video import replay as command
from engine.video.film import Film
from engine.wire.state_folder import JOURNAL

CHUNKS = 8
SNAPSHOT_EVERY = 6  # chunks
CHANGES = {1: "the blue boat", 3: "a red ball"}  # by the chunk in the middle of which they come
DISCARDS = {2: 11, 5: 12}  # likewise seeds, with which the plan is dropped from the middle of the next chunk on
LOOK_AHEAD = 16  # semantic frames
THREADS = {4: 2, 5: 1}  # by chunk: how many threads compute from its middle on


@pytest.fixture(scope="module", autouse=True)
def tiny_preset() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", tiny_config)
        patch.setattr(journal_writer, "SNAPSHOT_S", SNAPSHOT_EVERY * tiny_config().chunk_s)
        yield


@cache
def generator() -> Generator:
    return Generator(tiny_model())


def make(state: ChannelState, writer: JournalWriter, chunks: int, new: bool = True) -> npt.NDArray[np.uint8]:
    """The next chunks of a video, with a journal, as in the loop: planning runs ahead, prompts and threads change."""
    own, frames = generator(), []
    journal = writer.open("main", state, new)
    for _ in range(chunks):
        number = state.next.chunk
        while own.needs_plan(state):
            own.plan(state)
        chunk = journal.recorded(state, own.chunk(state), state.next.frame)
        for count, unit in enumerate(chunk.units):
            if unit.batch is not None:
                frames.append(unit.batch.i420)
            if count == 1 and number in CHANGES:
                own.change(state, CHANGES[number], chunk.end)
            if DISCARDS.get(number, state.plan.gops[-1].seed) != state.plan.gops[-1].seed:
                own.replan(state, min(chunk.end.latent + 2, own.planned(state)), DISCARDS[number])
            if count == 2:
                torch.set_num_threads(THREADS.get(number, torch.get_num_threads()))
            if own.planned(state) - chunk.end.latent < LOOK_AHEAD:
                own.plan(state)
    return np.concatenate(frames)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, npt.NDArray[np.uint8]]:
    """A journal, and the frames that it was written of."""
    folder, before = tmp_path_factory.mktemp("state"), torch.get_num_threads()
    writer = JournalWriter(folder, generator(), lambda *told: pytest.fail(str(told)))
    try:
        frames = make(generator().open("a red ball", 7, steps=3), writer, CHUNKS)
    finally:
        writer.close(60)
        torch.set_num_threads(before)
    return folder / "main" / JOURNAL, frames


def replayed(path: Path, start: int, end: int, steps: int | None = None) -> npt.NDArray[np.uint8]:
    replay = Replay(generator(), Journal(path), steps)
    return np.concatenate([batch.i420 for batch in replay.frames(start, end)])


def test_the_whole_video_is_the_same(video: tuple[Path, npt.NDArray[np.uint8]]) -> None:
    """Under three prompts and with changing threads, from the beginning to the end."""
    path, frames = video
    replay = Replay(generator(), Journal(path))
    assert (replay.begin, replay.end) == (0, len(frames))
    assert (replayed(path, 0, len(frames)) == frames).all()


@pytest.mark.parametrize(("start", "end"), [(0, 1), (100, 131), (140, 180), (192, 193)])
def test_any_part_is_the_same(video: tuple[Path, npt.NDArray[np.uint8]], start: int, end: int) -> None:
    """From a chunk's middle, before and behind a snapshot, up to the last frame."""
    path, frames = video
    assert (replayed(path, start, end) == frames[start:end]).all()


class Counting(Generator):
    """Counts the chunks that are made, and those of them that are rendered."""

    chunks = rendered = 0

    def render_plan(
        self, state: RenderState, parts: list[PlanPart], steps: int, latents: Tensor | None = None
    ) -> abc.Generator[Unit, None, Tensor]:
        self.chunks += 1
        self.rendered += latents is None
        return super().render_plan(state, parts, steps, latents)


def count_rendered(path: Path, start: int, end: int) -> int:
    counting = Counting(tiny_model())
    for _ in Replay(counting, Journal(path)).frames(start, end):
        pass
    return counting.rendered


def test_chunks_before_a_snapshot_are_decoded_alone(
    video: tuple[Path, npt.NDArray[np.uint8]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rendered again are those behind the last one, and those in which threads changed; all, if it is not as it was."""
    path, frames = video
    changed = sum(len(one.threads) > 1 for one in Journal(path).records if isinstance(one, ChunkRecord))
    assert 0 < changed < SNAPSHOT_EVERY
    assert count_rendered(path, 0, len(frames)) == CHUNKS - SNAPSHOT_EVERY + changed
    copy, snapshot = tmp_path / JOURNAL, tmp_path / "000001.snapshot"
    copy.write_bytes(path.read_bytes())
    assert count_rendered(copy, 0, len(frames)) == CHUNKS  # the file is not there
    record = torch.load(path.parent / snapshot.name, weights_only=True)
    chunks = record["latents"]
    for others in (chunks[:-1], [one[:, :-1] for one in chunks], [one.half() for one in chunks]):
        write_snapshot(snapshot, record | {"latents": others})
        assert count_rendered(copy, 0, 25) == 1
        assert (replayed(copy, 0, 60) == frames[:60]).all()
    assert "what is before it is rendered again" in caplog.text


def test_a_snapshot_saves_what_is_before_it(video: tuple[Path, npt.NDArray[np.uint8]]) -> None:
    """Frames behind a snapshot are made without the chunks before it; without its file, from the one before."""
    path, frames = video
    counting = Counting(tiny_model())
    replay = Replay(counting, Journal(path))
    assert sum(batch.frames for batch in replay.frames(len(frames) - 1, len(frames))) == 1
    assert counting.chunks == CHUNKS - SNAPSHOT_EVERY


def test_a_damaged_snapshot_is_passed_over(
    video: tuple[Path, npt.NDArray[np.uint8]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Then the video is made from an earlier one, or from its beginning, which is said."""
    path, frames = video
    copy = tmp_path / JOURNAL
    copy.write_bytes(path.read_bytes())
    (tmp_path / "000001.snapshot").write_bytes((path.parent / "000001.snapshot").read_bytes()[:-100])
    assert (replayed(copy, 180, 190) == frames[180:190]).all()
    assert "000001.snapshot is missing, damaged or no snapshot" in caplog.text


def test_a_snapshot_of_another_video_is_refused(video: tuple[Path, npt.NDArray[np.uint8]], tmp_path: Path) -> None:
    """A foreign snapshot that does not fit the journal's place ends in words."""
    path, _ = video
    copy = tmp_path / JOURNAL
    copy.write_bytes(path.read_bytes())
    write_snapshot(tmp_path / "000001.snapshot", take_snapshot(generator(), generator().open("a red ball", 7)))
    with pytest.raises(ValueError, match="its snapshot is of"):
        replayed(copy, 180, 190)


def test_other_steps_are_other_pictures_of_the_same_plan(video: tuple[Path, npt.NDArray[np.uint8]]) -> None:
    """As many frames, and the journal stays as it is."""
    path, frames = video
    made = replayed(path, 0, 40, steps=2)
    assert made.shape == frames[:40].shape and (made != frames[:40]).any()


def test_another_process_goes_on_where_frames_are(tmp_path: Path) -> None:
    """A chunk that is dropped after its first frames is written; what begins again before its end cuts it."""
    own = generator()
    state = own.open("a red ball", 7)
    writer = JournalWriter(tmp_path, own, lambda *told: pytest.fail(str(told)))
    journal = writer.open("main", state, new=True)
    while own.needs_plan(state):
        own.plan(state)
    chunk = journal.recorded(state, own.chunk(state), 0)
    first = next(unit.batch for unit in chunk.units if unit.batch is not None)
    chunk.units.close()
    again = own.open("the blue boat", 8, first_chunk=1, first_frame=first.frames)
    frames = [first.i420, make(again, writer, 1, new=False)]
    writer.close(60)
    assert (replayed(tmp_path / "main" / JOURNAL, 0, 100) == np.concatenate(frames)).all()


def test_a_beginning_whose_snapshot_is_gone_goes_on(tmp_path: Path) -> None:
    """Of many snapshots old ones are removed, those too with which another process went on where one had ended."""
    own = generator()
    state = own.open("a red ball", 7)
    writer = JournalWriter(tmp_path, own, lambda *told: pytest.fail(str(told)))
    frames, kept = [make(state, writer, 2)], take_snapshot(own, state)
    journal = writer.open("main", state, new=False)
    while own.needs_plan(state):
        own.plan(state)
    journal.recorded(state, own.chunk(state), 0).units.close()  # it began, and nothing of it was shown
    frames.append(make(restore(own, kept), writer, 2, new=False))
    writer.close(60)
    path = tmp_path / "main" / JOURNAL
    assert (replayed(path, 0, 1000) == np.concatenate(frames)).all()
    gone = list(path.parent.glob("*.snapshot"))
    assert len(gone) >= 2
    for file in gone:
        file.unlink()
    assert (replayed(path, 0, 1000) == np.concatenate(frames)).all()


@pytest.mark.parametrize(("chunks", "units", "back"), [(1, 9, 2), (2, 9, 14), (2, 1, 24), (1, 9, 9), (2, 30, 20)])
def test_cuts_are_replayed(tmp_path: Path, chunks: int, units: int, back: int) -> None:
    """What was on air is shown up to the frame of the cut, and what was made anew from there on."""
    own = generator()
    state = own.open("a red ball", 7)
    writer = JournalWriter(tmp_path, own, lambda *told: pytest.fail(str(told)))
    journal, video, wanted = writer.open("main", state, new=True), np.zeros((0, 48, 48), np.uint8), 0
    for number, limit in enumerate([1000] * chunks + [units, 1000, 5, 1000]):
        state.open_from = max(0, len(video) - 30)
        while own.needs_plan(state):
            own.plan(state)
        chunk = journal.recorded(state, own.chunk(state), max(wanted, state.next.frame))
        for _, unit in zip(range(limit), chunk.units, strict=False):
            if unit.batch is not None:
                new = max(0, wanted - unit.batch.index)
                video = np.concatenate([video, unit.batch.i420[new:]])
        chunk.units.close()
        if limit < 1000:
            wanted = len(video) - back
            video = video[:wanted]
            own.rewind(state, wanted)
            own.change(state, "the blue boat" if number % 2 else "a red ball", state.next, seed=number)
    writer.close(60)
    path = tmp_path / "main" / JOURNAL
    assert (replayed(path, 0, 1000) == video).all()
    middle = len(video) // 2
    assert (replayed(path, middle, middle + 5) == video[middle : middle + 5]).all()


def test_the_command_writes_a_part(
    video: tuple[Path, npt.NDArray[np.uint8]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many frames as were asked for, from the folder or the file; a part that is not there is refused in words."""
    path, frames = video
    write_weights(tmp_path / "weights")
    out, weights = tmp_path / "v.mp4", ("--weights", str(tmp_path / "weights"))
    with pytest.raises(ValueError, match="of another model"):
        command.main([str(path), "--out", str(out), *weights])
    # The journal was written of a model that was never in a folder, in float32.
    monkeypatch.setattr(journals, "digest", lambda folder: "")
    monkeypatch.setattr(command, "place", lambda *_: (tmp_path / "weights", torch.device("cpu"), torch.float32))
    assert command.main([str(path.parent), "--out", str(out), "--start", "1", "--seconds", "2", *weights]) == 0
    with Film(out) as film:
        assert sum(1 for _ in film.frames()) == 16
    writer = JournalWriter(tmp_path / "lost", generator(), lambda *told: pytest.fail(str(told)))
    make(generator().open("a red ball", 7), writer, 1)
    make(generator().open("a red ball", 7, first_chunk=5, first_frame=200), writer, 1, new=False)
    writer.close(60)
    with pytest.raises(ValueError, match="has lost all of these frames"):
        lost = str(tmp_path / "lost" / "main")
        command.main([lost, "--out", str(tmp_path / "other.mp4"), "--start", "10", "--seconds", "0.5", *weights])
    for wrong, words in ((("--start", "1000"), "behind the end"), (("--seconds", "1000"), "it ends there")):
        with pytest.raises(ValueError, match=words):
            command.main([str(path), "--out", str(tmp_path / "other.mp4"), *wrong, *weights])
    assert sorted(child.name for child in tmp_path.iterdir()) == ["lost", "v.mp4", "weights"]
    assert len(frames) > 24


def test_differences_are_told() -> None:
    """Field by field, in words with both values; other weights are told apart from other bits."""
    own = Environment.of(generator().model)
    other = dataclasses.replace(own, torch_version="1.0", cpu_capability="VSX", weights="abc")
    assert differences(own, own) == {}
    found = differences(other, own)
    assert set(found) == {"torch_version", "cpu_capability", "weights"}
    assert found["cpu_capability"] == f"cpu_capability {own.cpu_capability!r}, not 'VSX'"
    assert set(found) & set(OTHER_PICTURES) == {"weights"}

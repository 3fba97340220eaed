"""A channel goes on in another engine process as if nothing had happened, whenever the one before ended."""

import multiprocessing
import random
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from test_interleave import SETTINGS, MemoryRing, _generator, _offline
from tiny import tiny_config

from engine.config import PRESETS
from engine.live import state_keeper
from engine.live.control_pipe import ControlPipe
from engine.live.generator import Generator
from engine.live.interleave import Interleaver
from engine.live.journal import Journal
from engine.live.journal_writer import JournalWriter
from engine.live.offline import Change
from engine.live.replay import Replay
from engine.live.state_keeper import MOST_TRIES
from engine.runtime.graphs import Graphs
from engine.wire import state_memory
from engine.wire.kept_state import KeptState
from engine.wire.messages import (
    ChannelClosed,
    ChannelOpened,
    ChannelReleased,
    ChunkDone,
    CloseChannel,
    FramesDropped,
    FramesReady,
    OpenChannel,
    PromptReplaced,
    PromptSet,
    ReleaseChannel,
    SetPrompt,
    Shown,
)
from engine.wire.settings import ChannelSettings, ChannelStart
from engine.wire.state_folder import JOURNAL, STATE, taken
from engine.wire.state_memory import StateMemory
from streaming.channels.registry import go_on

FRAMES = 110


class Viewer:
    """The server's side of one channel over many engine processes: frames in order, and what was answered."""

    def __init__(self, memory: StateMemory | None = None, journals: JournalWriter | None = None) -> None:
        self.memory, self.journals = memory, journals
        self.start = ChannelStart()
        self.made = False  # by an engine before
        self.begin = 0  # number of its first frame
        self.video: list[npt.NDArray[np.uint8]] = []  # frame by frame, as far as they are there
        self.shown = 0
        self.chunk = 0
        self.others: list[Any] = []

    @property
    def end(self) -> int:
        """Number of the next frame to come."""
        return self.begin + len(self.video)

    @asynccontextmanager
    async def engine(self, generator: Generator | None = None, killed: bool = False) -> AsyncIterator["Engine"]:
        """An engine process, which ends with the block without a word; `killed` is told of the one before."""
        ours, theirs = multiprocessing.Pipe()
        with ours, theirs:
            engine = Engine(self, Interleaver(
                generator or _generator(), MemoryRing(8), ControlPipe(theirs),  # type: ignore[arg-type]
                journals=self.journals, memory=self.memory,
            ), ours)  # fmt: skip
            from_disk = self.start.from_disk and not self.video
            again = ChannelStart(self.end, self.chunk, self.shown, True, from_disk, killed)
            start = again if self.video or self.made else self.start
            self.made = True
            ours.send(OpenChannel("main", ChannelSettings(SETTINGS.prompt, SETTINGS.seed, SETTINGS.steps, start)))
            yield engine
            for channel in engine.interleaver._channels.values():
                if channel.journal is not None:
                    # A chunk that is thrown away writes down what was shown of it; who was killed does not, ever.
                    channel.journal._put = lambda job: None  # type: ignore[method-assign]


class Engine:
    """Works unit by unit."""

    def __init__(self, viewer: Viewer, interleaver: Interleaver, pipe: Any) -> None:
        self.viewer, self.interleaver, self.pipe = viewer, interleaver, pipe
        self.slots: list[tuple[int, int]] = []  # and the frame behind

    def work(self) -> None:
        """A unit, and all messages; a frame goes on air where there is nothing else to do."""
        self.interleaver.read_inbox()
        if not self.interleaver._work():
            self.show(1)
        self.read()

    def read(self) -> None:
        viewer = self.viewer
        while self.pipe.poll():
            match message := self.pipe.recv():
                case FramesReady():
                    assert message.index == viewer.end
                    viewer.video += list(self.interleaver._ring.frames[message.slot])  # type: ignore[attr-defined]
                    viewer.chunk = message.chunk + 1
                    self.slots.append((message.slot, viewer.end))
                case FramesDropped():
                    assert viewer.shown < message.frame < viewer.end
                    del viewer.video[message.frame - viewer.begin :]
                    gone = tuple(slot for slot, end in self.slots if end > message.frame)
                    self.slots = [(slot, min(end, message.frame)) for slot, end in self.slots if slot not in gone]
                    self.pipe.send(Shown("main", viewer.shown, gone))
                case _:
                    viewer.others.append(message)

    def show(self, frames: int) -> None:
        """Some frames go on air."""
        viewer = self.viewer
        viewer.shown = min(viewer.shown + frames, viewer.end)
        done = tuple(slot for slot, end in self.slots if end <= viewer.shown)
        self.slots = [(slot, end) for slot, end in self.slots if slot not in done]
        self.pipe.send(Shown("main", viewer.shown, done))


async def _until(engine: Engine, kind: type, count: int = 1) -> Any:
    """Works until a message of a kind came."""
    had = sum(isinstance(one, kind) for one in engine.viewer.others)
    while sum(isinstance(one, kind) for one in engine.viewer.others) < had + count:
        engine.work()
    return [one for one in engine.viewer.others if isinstance(one, kind)][-1]


def _buffered_at_begin(engine: Engine) -> int:
    """Works until the next chunk begins; the frames that are buffered then."""
    channels = engine.interleaver._channels
    while "main" not in channels or channels["main"].chunk is None:
        engine.work()
    return channels["main"].buffered


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", tiny_config)


@pytest.fixture
def journals(tmp_path: Path) -> Iterator[JournalWriter]:
    writer = JournalWriter(tmp_path, _generator(), lambda *told: pytest.fail(str(told)))
    yield writer
    writer.close(60)


@pytest.mark.parametrize(("seed", "released"), [(0, False), (1, False), (2, True)])
async def test_kills_leave_no_trace_in_the_video(seed: int, released: bool, journals: JournalWriter) -> None:
    """However often engines are killed, between any two units, the frames are those of one that never was.

    So they are where engines release the channel to each other. The journal has them all.
    """
    rng = random.Random(seed)
    viewer = Viewer(StateMemory(), journals)
    kills = 0
    while viewer.shown < FRAMES:
        async with viewer.engine() as engine:
            # At least a chunk: who never gets further begins anew.
            await _until(engine, ChunkDone)
            engine.show(rng.randrange(20))
            for _ in range(rng.randrange(40)):
                engine.work()
                if rng.random() < 0.3:
                    engine.show(rng.randrange(8))
            if released:
                engine.pipe.send(ReleaseChannel("main"))
                await _until(engine, ChannelReleased)
                engine.pipe.send(CloseChannel("main"))
                await _until(engine, ChannelClosed)
                assert len(engine.interleaver._ring.free) == 8  # type: ignore[attr-defined]
            kills += 1
    journals.close(60)
    video = np.stack(viewer.video)
    assert kills > 1 and (video == _offline(SETTINGS, len(video))).all()
    replay = Replay(_generator(), Journal(journals.folder / "main" / JOURNAL))
    replayed = np.concatenate([batch.i420 for batch in replay.frames(0, len(video))])
    assert len(replayed) > len(video) - 24 and (replayed == video[: len(replayed)]).all()


async def test_a_kill_in_the_first_chunk_leaves_no_trace() -> None:
    """Before a frame is there, and behind the first ones: what was answered by then comes true."""
    viewer = Viewer(StateMemory())
    async with viewer.engine() as engine:
        while not engine.interleaver._channels or not engine.interleaver._channels["main"].chunk:
            engine.work()
        engine.pipe.send(SetPrompt(1, "main", "the sea", "flow"))
        assert (await _until(engine, PromptSet)).frame == 25
    async with viewer.engine() as engine:
        while not viewer.video:
            engine.work()
    async with viewer.engine() as engine:
        await _until(engine, ChunkDone, 2)
    video = np.stack(viewer.video)
    assert len(video) == 49 and (video == _offline(SETTINGS, 49, [Change(25, "the sea")])).all()


@pytest.mark.parametrize(
    ("stage", "error"),
    [
        ("planner.transform", torch.OutOfMemoryError("out of memory")),
        ("tokenizer.decode", KeyError("x")),
        ("renderer.denoise", RuntimeError("CUDA error: an illegal memory access was encountered")),
        ("vae.decode", MemoryError()),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
async def test_an_error_in_a_stage_costs_no_frame(
    stage: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory, an error of the device or a defect, in whatever stage: the next engine makes the same frames."""
    # Traces would not come by the stage again.
    own = Generator(_generator().model, lambda device: Graphs(None))
    viewer, (part, method) = Viewer(StateMemory()), stage.split(".")
    async with viewer.engine(own) as engine:
        await _until(engine, ChunkDone)
        engine.show(20)
        module = getattr(own.model, part)
        with monkeypatch.context() as patch, pytest.raises(type(error)):
            patch.setattr(module, method, _raising(error, getattr(module, method), after=1))
            await _until(engine, ChunkDone, 5)
        engine.read()
    async with viewer.engine(own) as engine:
        await _until(engine, ChunkDone, 2)
    video = np.stack(viewer.video)
    assert len(video) > 49 and (video == _offline(SETTINGS, len(video))).all()


def _raising(error: Exception, method: Any, after: int) -> Any:
    left = after

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise error
        return method(*args, **kwargs)

    return call


async def test_a_chunk_that_ends_every_engine_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    """After some tries another video begins behind what is there, under the newest prompt; the log says so."""
    viewer = Viewer(StateMemory())
    async with viewer.engine() as engine:
        await _until(engine, ChunkDone)
        engine.show(20)
        while not engine.interleaver._channels["main"].chunk:
            engine.work()
    for number in range(MOST_TRIES + 1):
        async with viewer.engine() as engine:
            opened = await _until(engine, ChannelOpened)
            assert opened.went_on == (number < MOST_TRIES)
    assert "channel main begins anew: 3 processes ended in chunk 1" in caplog.text
    async with viewer.engine() as engine:
        await _until(engine, ChunkDone)
    assert len(viewer.video) == 50


async def test_a_state_has_no_part_in_kills(caplog: pytest.LogCaptureFixture) -> None:
    """However often engines are killed from outside in a chunk, the video goes on; ends of their own count on."""
    viewer = Viewer(StateMemory())
    async with viewer.engine() as engine:
        await _until(engine, ChunkDone)
        while not engine.interleaver._channels["main"].chunk:
            engine.work()
    for killed in (*[True] * 2 * MOST_TRIES, *[False] * MOST_TRIES, True):
        async with viewer.engine(killed=killed) as engine:
            assert (await _until(engine, ChannelOpened)).went_on
    async with viewer.engine() as engine:
        assert not (await _until(engine, ChannelOpened)).went_on
    assert "channel main begins anew: 3 processes ended in chunk 1" in caplog.text


async def test_a_state_that_is_long_past_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Rather another video begins than that viewers wait until all between is made again."""
    viewer = Viewer(StateMemory())
    async with viewer.engine() as engine:
        await _until(engine, ChunkDone)
    viewer.begin = 49
    async with viewer.engine() as engine:
        assert not (await _until(engine, ChannelOpened)).went_on
    assert "its state is of frame 25, long past" in caplog.text
    async with viewer.engine() as engine:
        # That of another channel is none.
        assert engine.interleaver._openings._keeper.left("other", 0, ChannelStart(25, 1, goes_on=True)) is None


async def test_engines_that_end_while_nothing_is_made_are_no_tries() -> None:
    """An idle channel goes on, however many processes come and go meanwhile."""
    viewer = Viewer(StateMemory())
    async with viewer.engine() as engine:
        await _until(engine, ChunkDone)
    for _ in range(2 * MOST_TRIES):
        async with viewer.engine() as engine:
            assert (await _until(engine, ChannelOpened)).went_on


async def test_behind_an_end_the_first_chunk_begins_earlier() -> None:
    """Frames are there soon again, in case that the next engine ends too; from then on the buffer is as before."""
    viewer = Viewer(StateMemory())
    async with viewer.engine() as engine:
        await _until(engine, ChunkDone)
        assert _buffered_at_begin(engine) == 20
        while viewer.end < 49:
            engine.work()
    async with viewer.engine() as engine:
        # The last chunk is there, but its end was not heard of: it is made again, and none of it is new.
        await _until(engine, ChunkDone)
        assert _buffered_at_begin(engine) == 24 and viewer.end == 49
        await _until(engine, ChunkDone)
        assert _buffered_at_begin(engine) == 20


@pytest.mark.parametrize("call", ["pwrite", "memfd_create"])
async def test_memory_that_is_full_costs_the_state_alone(
    call: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The video goes on, the log says it once; the next engine begins another one behind it. So it is where the system
    has no descriptor left for a state."""

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    viewer = Viewer(StateMemory())
    with monkeypatch.context() as patch:
        async with viewer.engine() as engine:
            patch.setattr(state_memory.os, call, full)
            await _until(engine, ChunkDone, 2)
    assert caplog.text.count("no state can be kept") == 1
    async with viewer.engine() as engine:
        assert not (await _until(engine, ChannelOpened)).went_on


async def test_states_that_are_too_large_are_not_kept(
    journals: JournalWriter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As those of the published model, which take gigabytes: nothing stale remains, and the log says it once."""
    memory = StateMemory()
    viewer = Viewer(memory, journals)
    async with viewer.engine() as engine:
        await _until(engine, ChannelOpened)
        assert memory.read(0) is not None
        monkeypatch.setattr(state_keeper, "MOST_BYTES", 1000)
        await _until(engine, ChunkDone, 2)
    journals.close(60)
    assert memory.read(0) is None and not (journals.folder / "main" / STATE).exists()
    assert caplog.text.count("behind each chunk it would take 0.0 GB") == 1


async def test_a_slow_disk_has_the_newest_state_waiting(journals: JournalWriter) -> None:
    """However many states come meanwhile, one waits; what it says at last is the newest."""
    released = threading.Event()
    viewer = Viewer(None, journals)
    async with viewer.engine() as engine:
        await _until(engine, ChunkDone)
        journals.put(lambda: released.wait(60))
        for number in range(20):
            engine.pipe.send(SetPrompt(number, "main", "the sea", "flow"))
            await _until(engine, PromptSet)
        assert journals._jobs.qsize() < 5
    released.set()
    journals.close(60)
    kept = KeptState.from_json((journals.folder / "main" / STATE).read_bytes())
    assert [promise.request for promise in kept.promises][-1] == 19


async def test_a_channel_that_ends_leaves_nothing(journals: JournalWriter) -> None:
    """Neither in memory nor in the folder, but its journal."""
    memory = StateMemory()
    viewer = Viewer(memory, journals)
    async with viewer.engine() as engine:
        await _until(engine, ChunkDone)
        engine.pipe.send(CloseChannel("main"))
        await _until(engine, ChannelClosed)
    journals.close(60)
    assert memory.read(0) is None
    assert {path.name for path in (journals.folder / "main").iterdir()} == {JOURNAL}


@pytest.mark.parametrize("late", [True, False])
async def test_another_server_goes_on(late: bool, tmp_path: Path) -> None:
    """It begins behind the last chunk that was done, with all that was answered since; from the folder alone."""
    journals = JournalWriter(tmp_path, _generator(), lambda *told: pytest.fail(str(told)))
    viewer = Viewer(StateMemory(), journals)
    async with viewer.engine() as engine:
        await _until(engine, ChunkDone, 2)
        engine.show(40)
        while late and not engine.interleaver._channels["main"].chunk:
            engine.work()
        engine.pipe.send(SetPrompt(7, "main", "the sea", "flow", 5))
        answer = await _until(engine, PromptSet)
    journals.close(60)
    with taken(tmp_path, "tiny") as left:
        settings = go_on(left[0])
    assert settings.start.frame == 49 and answer.frame == (73 if late else 49)

    journals = JournalWriter(tmp_path, _generator(), lambda *told: pytest.fail(str(told)))
    other = Viewer(StateMemory(), journals)
    other.start, other.begin = settings.start, settings.start.frame
    other.shown = other.begin
    async with other.engine() as engine:
        again = await _until(engine, PromptSet)
        await _until(engine, ChunkDone, 2)
    # It is kept in the memory of this server too.
    async with other.engine() as engine:
        await _until(engine, ChunkDone)
    journals.close(60)
    assert (again.prompt, again.frame) == ("the sea", answer.frame) and again.request != 7
    offline = _offline(SETTINGS, 49 + len(other.video), [Change(answer.frame, "the sea", "flow", 5)])
    assert len(other.video) >= 72 and (np.stack(other.video) == offline[49:]).all()


async def test_a_folder_that_cannot_be_gone_on_from_is_refused(journals: JournalWriter) -> None:
    """A snapshot that is damaged, and other weights: an error in one line, and nothing is written."""
    viewer = Viewer(None, journals)
    async with viewer.engine() as engine:
        await _until(engine, ChunkDone)
    journals.close(60)
    folder = journals.folder / "main"
    kept = KeptState.from_json((folder / STATE).read_bytes())
    viewer = Viewer(None, JournalWriter(journals.folder, _generator(), lambda *told: None))
    viewer.start = ChannelStart(kept.frame, kept.chunk, goes_on=True, from_disk=True)
    whole = (folder / str(kept.snapshot)).read_bytes()
    (folder / str(kept.snapshot)).write_bytes(whole[:1000])
    async with viewer.engine() as engine:
        with pytest.raises(ValueError, match=r"last-\d.snapshot is missing, damaged or no snapshot"):
            engine.work()
    (folder / str(kept.snapshot)).write_bytes(whole)
    (folder / STATE).write_bytes(replace(kept, weights="others").to_json())
    before = {path: path.read_bytes() for path in folder.iterdir()}
    async with viewer.engine() as engine:
        with pytest.raises(ValueError, match="is of other weights: give these with --weights"):
            engine.work()
    assert viewer.journals is not None
    viewer.journals.close(60)
    assert before == {path: path.read_bytes() for path in folder.iterdir()}
    # A server that lost it meanwhile begins anew.
    (folder / STATE).unlink()
    async with viewer.engine() as engine:
        assert not (await _until(engine, ChannelOpened)).went_on


@pytest.mark.parametrize("seed", range(3))
async def test_changes_that_were_answered_come_true_behind_a_kill(seed: int) -> None:
    """Prompts, seeds and cuts are where they were said to be, whatever process answered them."""
    rng = random.Random(seed)
    viewer = Viewer(StateMemory())
    requests: list[SetPrompt] = []
    while viewer.shown < FRAMES:
        async with viewer.engine() as engine:
            await _until(engine, ChunkDone)
            for _ in range(rng.randrange(40)):
                engine.work()
                if rng.random() < 0.3:
                    engine.show(rng.randrange(8))
                if rng.random() < 0.1:
                    mode = rng.choice(["flow", "flow", "cut"])
                    prompt = rng.choice(["the sea", "a blue boat"])
                    requests.append(SetPrompt(len(requests), "main", prompt, mode, rng.randrange(3)))
                    engine.pipe.send(requests[-1])
                    await _until(engine, PromptSet)
    video = np.stack(viewer.video)
    offline = _offline(SETTINGS, len(video), _changes(requests, viewer.others))
    assert len(requests) > 1 and not np.flatnonzero((video != offline).any(axis=(1, 2))).tolist()


def _changes(requests: list[SetPrompt], messages: list[Any]) -> list[Change]:
    """What was asked for, at the frames that were answered last."""
    changes: list[Change] = []
    replaced = {message.request for message in messages if isinstance(message, PromptReplaced)}
    frames = {message.request: message.frame for message in messages if isinstance(message, PromptSet)}
    for request in requests:
        if request.request in replaced or request.request not in frames:
            continue
        frame, mode = frames[request.request], request.mode
        if mode == "cut":
            changes = [change for change in changes if change.frame < frame]
        elif changes and changes[-1].frame == frame:
            mode = changes.pop().mode
        changes.append(Change(frame, request.prompt, mode, request.seed))
    return changes

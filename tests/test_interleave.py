import asyncio
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from checkpoint import TINY, make_folder, make_texts
from tiny import tiny_config, tiny_model, write_weights

from engine.config import PRESETS
from engine.live.control_pipe import ControlPipe
from engine.live.generator import Generator
from engine.live.interleave import LOW_MARK_S, Interleaver
from engine.live.journal import Journal
from engine.live.journal_writer import JournalWriter
from engine.live.offline import Change, generate_frames
from engine.live.process import serve
from engine.live.replay import Replay
from engine.loading.model import load
from engine.loading.options import pick_device, pick_dtype
from engine.runtime.threads import ThreadChoice
from engine.wire.messages import (
    ChannelClosed,
    ChannelOpened,
    ChannelRefused,
    ChunkDone,
    CloseChannel,
    Failed,
    FramesDropped,
    FramesReady,
    Heartbeat,
    OpenChannel,
    Paused,
    Progress,
    PromptReplaced,
    PromptSet,
    Ready,
    Refused,
    SetPrompt,
    Shown,
    Stop,
)
from engine.wire.ring import CHANNEL_SLOTS, RingConfig, RingReader, RingWriter
from engine.wire.settings import ChannelSettings, ChannelStart, EngineSettings
from engine.wire.state_folder import JOURNAL

SETTINGS = ChannelSettings("a red ball", 3, steps=2)
FPS = 8
LIMIT_S = 100.0
LOOK_AHEAD = 12  # semantic frames


@cache
def _generator() -> Generator:
    return Generator(tiny_model())


def _offline(settings: ChannelSettings, frames: int, changes: Sequence[Change] = ()) -> npt.NDArray[np.uint8]:
    start = settings.start
    channel = _generator().open(settings.prompt, settings.seed, settings.steps, start.chunk, start.frame)
    channel.open_from = start.frame
    return np.concatenate([batch.i420 for batch in generate_frames(_generator(), channel, frames, changes)])


class MemoryRing:
    """A ring in this process; frames are copied in, so that a slot that is written too early shows."""

    def __init__(self, slots: int) -> None:
        self.free = list(range(slots))
        self.frames: dict[int, npt.NDArray[np.uint8]] = {}

    def acquire(self) -> int | None:
        return self.free.pop(0) if self.free else None

    def write(self, slot: int, i420: npt.NDArray[np.uint8]) -> None:
        assert slot not in self.free
        self.frames[slot] = i420.copy()

    def release(self, slots: Sequence[int]) -> None:
        assert not set(slots) & set(self.free)
        self.free += slots


class Server:
    """The other end of the pipe: shows frames in order, as fast as a test asks."""

    def __init__(self, pipe: Connection, ring: MemoryRing, settings: ChannelSettings) -> None:
        self.pipe, self.ring = pipe, ring
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()
        self.batches: list[FramesReady] = []  # not wholly shown
        self.seen: list[FramesReady] = []
        self.video: list[npt.NDArray[np.uint8]] = []
        self.first = self.shown = self.end = settings.start.frame
        self.others: list[Any] = []

    def read(self) -> None:
        while self.pipe.poll():
            self.inbox.put_nowait(self.pipe.recv())

    async def receive(self, kind: type) -> Any:
        """The next message of a kind; batches on the way are kept, and all others too."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                message = await self.inbox.get()
                if isinstance(message, FramesReady):
                    assert message.index == self.end
                    self.end += message.frames
                    self.batches.append(message)
                    self.seen.append(message)
                    self.video.append(self.ring.frames[message.slot])
                elif isinstance(message, FramesDropped):
                    self.drop(message.frame)
                else:
                    self.others.append(message)
                if isinstance(message, kind):
                    return message

    def drop(self, frame: int) -> None:
        """Forgets frames that are made anew, and gives their slots back."""
        assert self.shown < frame < self.end
        self.end = frame
        gone = [batch.slot for batch in self.batches if batch.index >= frame]
        self.batches = self.batches[: len(self.batches) - len(gone)]
        self.video = [np.concatenate(self.video)[: frame - self.first]]
        self.pipe.send(Shown("main", self.shown, tuple(gone)))

    async def settle(self) -> None:
        """Waits until the engine has nothing left to do but to listen: it answers, then nothing follows."""
        self.pipe.send(SetPrompt(99, "nobody", "x", "flow"))
        await self.receive(Refused)
        for _ in range(300):
            await asyncio.sleep(0)
        assert self.inbox.empty()

    def show(self, count: int) -> None:
        """Shows some frames, one message each, and frees slots that are done."""
        for _ in range(min(count, self.end - self.shown)):
            self.shown += 1
            freed = [batch.slot for batch in self.batches if batch.index + batch.frames <= self.shown]
            self.batches = self.batches[len(freed) :]
            self.pipe.send(Shown("main", self.shown, tuple(freed)))


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Computes with so many threads: a process chooses its own, and the last bits depend on them."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@asynccontextmanager
async def _running(
    settings: ChannelSettings = SETTINGS,
    slots: int = 8,
    low_mark_s: float = LOW_MARK_S,
    generator: Generator | None = None,
    journals: JournalWriter | None = None,
) -> AsyncIterator[tuple[Server, Interleaver]]:
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        ring = MemoryRing(slots)
        control = ControlPipe(theirs)
        interleaver = Interleaver(
            generator or _generator(),
            ring,  # type: ignore[arg-type]
            control,
            low_mark_s=low_mark_s,
            journals=journals,
        )
        ours.send(OpenChannel("main", settings))
        interleaver.read_inbox()
        server = Server(ours, ring, settings)
        asyncio.get_running_loop().add_reader(ours.fileno(), server.read)
        task = asyncio.create_task(interleaver.run())
        try:
            yield server, interleaver
            ours.send(Stop())
            await asyncio.wait_for(task, LIMIT_S)
        finally:
            task.cancel()
            asyncio.get_running_loop().remove_reader(ours.fileno())


@pytest.mark.parametrize(
    ("slots", "low_mark", "seed"), [(8, 20, 0), (2, 1, 1), (3, 40, 2), (8, 5, 3)], ids=["usual", "tight", "few", "low"]
)
async def test_streaming_equals_offline(slots: int, low_mark: int, seed: int) -> None:
    """Whatever the credits, the pace and the moments of prompt changes, frames are those of `generate`."""
    rng = random.Random(seed)
    answers = []
    async with _running(SETTINGS, slots, low_mark / FPS) as (server, _):
        while server.end < 200:
            await server.receive(FramesReady)
            if rng.random() < 0.2:
                server.pipe.send(SetPrompt(len(answers), "main", rng.choice(["the sea", "a blue boat"]), "flow"))
                answers.append(await server.receive(PromptSet))
            server.show(rng.randrange(server.end - server.shown + 1) if server.ring.free else 99)
            if server.end - server.shown > low_mark:
                server.show(server.end - server.shown - rng.randrange(low_mark))
    replaced = {message.request for message in server.others if isinstance(message, PromptReplaced)}
    changes = [Change(answer.frame, answer.prompt) for answer in answers if answer.request not in replaced]
    video = np.concatenate(server.video)
    assert len(changes) >= 2 and (video == _offline(SETTINGS, len(video), changes)).all()


@pytest.mark.parametrize(("slots", "seed"), [(8, 0), (3, 1), (2, 2), (8, 3)])
async def test_streaming_with_cuts_equals_offline(slots: int, seed: int) -> None:
    """Whatever the moments of cuts and prompts between them, what goes on air is what `generate` makes of the answers.

    Frames up to a cut are those that were there; all prompts are answered, in order.
    """
    rng = random.Random(seed)
    answers, modes, seeds = [], [], []
    async with _running(SETTINGS, slots) as (server, _):
        while server.shown < 200:
            if rng.random() < 0.25:
                modes.append(rng.choice(["flow", "cut", "cut"]))
                seeds.append(rng.randrange(3))
                prompt = rng.choice(["the sea", "a blue boat"])
                server.pipe.send(SetPrompt(len(answers), "main", prompt, modes[-1], seeds[-1]))
                answers.append(await server.receive(PromptSet))
            elif server.end == server.shown:
                await server.receive(FramesReady)
            server.show(rng.randrange(1, 9))
            await asyncio.sleep(0)
    changes: list[Change] = []
    for answer, mode, number in zip(answers, modes, seeds, strict=True):
        if mode == "cut":
            changes = [change for change in changes if change.frame < answer.frame]
        elif changes and changes[-1].frame == answer.frame:
            # It takes the place of a change that has not begun, be that a cut.
            mode = changes.pop().mode
        changes.append(Change(answer.frame, answer.prompt, mode, number))
    video = np.concatenate(server.video)[: server.shown]
    offline = _offline(SETTINGS, len(video), changes)
    assert modes.count("cut") >= 5 and not np.flatnonzero((video != offline).any(axis=(1, 2))).tolist(), changes


async def test_a_cut_begins_with_the_frame_after_next() -> None:
    """Where the clock stands nothing has to be met: all that is not on air or about to be is made anew."""
    async with _running() as (server, interleaver):
        await server.receive(ChunkDone)
        server.show(4)
        server.pipe.send(SetPrompt(1, "main", "the sea", "cut"))
        answer = await server.receive(PromptSet)
        assert answer == PromptSet(1, "main", "the sea", 5) and server.end == 5
        await server.receive(ChunkDone)
        await server.settle()
        # Only slots of frames that may still be shown are held.
        assert len(interleaver._channels["main"].slots) == len(server.batches)
        assert len(server.ring.free) == 8 - len(server.batches)


async def test_cuts_within_one_slice_follow_each_other() -> None:
    """A second cut before a frame of the first is there goes back to the same slice; the frame before them stays."""
    async with _running() as (server, _):
        await server.receive(ChunkDone)
        for number, prompt in enumerate(("the sea", "a blue boat")):
            server.pipe.send(SetPrompt(number, "main", prompt, "cut"))
        assert [(await server.receive(PromptSet)).frame for _ in range(2)] == [1, 1]
        await server.receive(ChunkDone)
    video = np.concatenate(server.video)
    assert len(video) > 1 and (video == _offline(SETTINGS, len(video), [Change(1, "a blue boat", "cut")])).all()


async def test_a_cut_waits_for_frames_that_are_nearly_there() -> None:
    """With the buffer dry and the clock running a cut comes behind the chunk that is being made; nothing is lost."""
    async with _running() as (server, interleaver):
        while not interleaver._channels["main"].chunk:  # noqa: ASYNC110 - nobody is told of its beginning
            await asyncio.sleep(0)
        server.pipe.send(Paused("main", False))
        server.pipe.send(SetPrompt(1, "main", "the sea", "cut"))
        answer = await server.receive(PromptSet)
        assert answer.frame == server.end == 25
        server.pipe.send(SetPrompt(2, "main", "a blue boat", "cut"))
        assert (await server.receive(PromptSet)).request == 2


async def test_channels_share_the_engine() -> None:
    """Three at once, each with its own frames; one that is read slowly or ends keeps nothing from the others."""
    async with _running() as (server, interleaver):
        more = {name: ChannelSettings("the sea", number, steps=2) for number, name in enumerate(("one", "two"))}
        video: dict[str, list[npt.NDArray[np.uint8]]] = {name: [] for name in more}
        ends = dict.fromkeys(more, 0)
        for name, settings in more.items():
            server.pipe.send(OpenChannel(name, settings))

        async def take() -> None:
            message = await server.inbox.get()
            if isinstance(message, FramesReady) and message.channel in more:
                assert message.index == ends[message.channel]
                ends[message.channel] += message.frames
                video[message.channel].append(server.ring.frames[message.slot])
                if message.channel == "two":
                    server.pipe.send(Shown("two", ends["two"], (message.slot,)))
            elif isinstance(message, FramesReady):
                server.pipe.send(Shown("main", message.index + message.frames, (message.slot,)))

        while ends["two"] < 150:
            await take()
        # Nobody took a frame of `one`, which holds no more slots than it may.
        assert ends["one"] <= 49 and len(interleaver._channels["one"].slots) <= CHANNEL_SLOTS
        server.pipe.send(CloseChannel("one"))
        while "one" in interleaver._channels:
            await take()
        for name, settings in more.items():
            frames = np.concatenate(video[name])
            assert (frames == _offline(settings, len(frames))).all()


async def test_channels_that_run_come_first() -> None:
    """While a channel whose clock runs has work to do, those whose clock stands do not take a unit of it."""
    async with _running() as (server, interleaver):
        server.pipe.send(Paused("main", False))
        server.pipe.send(OpenChannel("other", SETTINGS))
        await server.receive(ChunkDone)
        other = interleaver._channels["other"]
        assert other.chunk is None and interleaver._generator.planned(other.state) == 0
        while not isinstance(message := await server.inbox.get(), ChunkDone):
            pass
        assert message.channel == "other" and other.delivered == 25


async def test_a_channel_that_cannot_be_made_is_refused(published_folder: Path) -> None:
    """The reason is answered, and the engine goes on."""
    generator = Generator(load(TINY, published_folder, torch.device("cpu"), torch.float32))
    async with _running(generator=generator) as (server, interleaver):
        server.pipe.send(OpenChannel("other", ChannelSettings("the sea", steps=1)))
        refused = await server.receive(ChannelRefused)
        assert refused.channel == "other" and "1 sampling steps" in refused.reason
        server.pipe.send(Shown("other", 1, ()))
        server.pipe.send(CloseChannel("other"))
        assert await server.receive(ChannelClosed) == ChannelClosed("other")
        assert list(interleaver._channels) == ["main"]


async def test_answer_names_the_first_changed_frame() -> None:
    """Frames under a new prompt begin exactly at the answered number; words that are not read are named."""
    async with _running() as (server, _):
        await server.receive(FramesReady)
        server.pipe.send(SetPrompt(7, "main", "  the blue\nzebra sea ", "flow"))
        answer = await server.receive(PromptSet)
        while server.end < 73:
            server.show(99)
            await server.receive(FramesReady)
    assert answer == PromptSet(7, "main", "the blue zebra sea", 25, ("zebra",))
    video = np.concatenate(server.video)
    plain = _offline(SETTINGS, len(video))
    assert np.flatnonzero((video != plain).any(axis=(1, 2))).tolist() == list(range(25, len(video)))


async def test_prompts_that_come_fast_leave_the_video_going() -> None:
    """Each chunk is planned under one prompt: two in the same moment, and floods of them, end in whole chunks.

    All are answered with a frame; those that another one replaced before that are told so.
    """
    async with _running() as (server, _):
        await server.receive(FramesReady)
        for number in range(1, 4):
            server.pipe.send(SetPrompt(number, "main", f"the sea {number}", "flow"))
        number = 4
        while server.end < 25 + 24 * 6:
            server.show(99)
            for _ in range(5):
                server.pipe.send(SetPrompt(number, "main", "the blue sea" if number % 2 else "a red boat", "flow"))
                number += 1
            await server.receive(FramesReady)
        while server.others[-1] != Refused(99, "nobody", "there is no channel 'nobody'"):
            server.pipe.send(SetPrompt(99, "nobody", "x", "flow"))
            await server.receive(Refused)
        answers = [message for message in server.others if isinstance(message, PromptSet)]
        replaced = {message.request for message in server.others if isinstance(message, PromptReplaced)}
    assert [answer.request for answer in answers] == list(range(1, number))
    kept = [answer for answer in answers if answer.request not in replaced]
    # One prompt a chunk, each later than the one before.
    assert len(kept) == len({answer.frame for answer in kept}) and [one.frame for one in kept] == sorted(
        one.frame for one in kept
    )
    video = np.concatenate(server.video)
    changes = [Change(answer.frame, answer.prompt) for answer in kept]
    assert len(kept) >= 5 and (video == _offline(SETTINGS, len(video), changes)).all()


async def test_a_prompt_after_every_unit_costs_no_unit_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that has begun is kept, so that a chunk takes as many units as under a single change."""
    monkeypatch.setattr("engine.live.generator.PASSES_PER_UNIT", 1)

    async def units(prompts: int) -> int:
        async with _running() as (server, interleaver):
            work, done = interleaver._work, 0

            def counted() -> bool:
                nonlocal done
                done += 1
                if done <= prompts:
                    interleaver._handle(SetPrompt(done, "main", f"the sea {done}", "flow"))
                return work()

            interleaver._work = counted  # type: ignore[method-assign]
            while server.end < 25 + 3 * 24:
                await server.receive(FramesReady)
                server.show(99)
            return done

    # What was planned ahead under the first prompt is lost at most once a chunk.
    assert await units(prompts=10_000) <= 4 * await units(prompts=1)


async def test_engine_waits_above_the_low_mark() -> None:
    """With more frames in the buffer than the low mark no chunk begins; planning goes on to its look-ahead."""
    async with _running() as (server, interleaver):
        await server.receive(ChunkDone)
        await server.settle()
        assert server.end == 25
        assert LOOK_AHEAD <= interleaver._ahead(interleaver._channels["main"]) < LOOK_AHEAD + 8
        server.show(4)
        await server.settle()
        assert server.end == 25
        server.show(1)
        await server.receive(ChunkDone)
        assert server.end == 49


async def test_finished_frames_wait_for_a_slot() -> None:
    """With no slot left the engine keeps a batch, goes on planning, and delivers it when one is freed."""
    async with _running(slots=2) as (server, interleaver):
        while server.end < 17:
            await server.receive(FramesReady)
        await server.settle()
        assert server.end == 17
        assert interleaver._ahead(interleaver._channels["main"]) >= LOOK_AHEAD
        server.show(8)
        await server.settle()
        assert server.end == 17
        server.show(1)
        assert (await server.receive(FramesReady)).index == 17


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (SetPrompt(1, "main", " \n", "flow"), "empty"),
        (SetPrompt(1, "main", "a\x00b", "flow"), "control characters"),
        (SetPrompt(1, "main", "x" * 3000, "flow"), "3000"),
        (SetPrompt(1, "main", "the sea", "jump"), "'jump'"),
        (SetPrompt(1, "other", "the sea", "flow"), "'other'"),
    ],
)
async def test_bad_requests_are_refused(request_: SetPrompt, reason: str) -> None:
    """A request that cannot be done is answered with its reason and changes nothing."""
    async with _running() as (server, _):
        server.pipe.send(request_)
        answer = await server.receive(Refused)
        assert answer.request == 1 and reason in answer.reason
        await server.receive(ChunkDone)
        server.show(25)
        await server.receive(ChunkDone)
    video = np.concatenate(server.video)
    assert (video == _offline(SETTINGS, len(video))).all()


async def test_chunk_reports_its_cost() -> None:
    """Every chunk is reported once, with its stages' compute and the seconds of video it made."""
    async with _running() as (server, _):
        first = await server.receive(ChunkDone)
        server.show(25)
        second = await server.receive(ChunkDone)
    assert (first.chunk, first.steps, first.seconds_of_video) == (0, 2, 25 / 8)
    assert (second.chunk, second.steps, second.seconds_of_video) == (1, 2, 24 / 8)
    for done in (first, second):
        assert set(done.stage_ms) == {"plan", "render", "vae"} and min(done.stage_ms.values()) > 0
        assert done.compute_s == pytest.approx(sum(done.stage_ms.values()) / 1000)


async def test_memory_is_given_back_behind_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What units freed would stay with the process."""
    given: list[None] = []
    monkeypatch.setattr("engine.runtime.heap.EVERY_S", 0.0)
    monkeypatch.setattr("engine.runtime.heap.return_memory", lambda: given.append(None))
    monkeypatch.setattr("engine.runtime.heap.FreedMemory.wait", lambda self, event: event.wait())
    async with _running() as (server, _):
        await server.receive(ChunkDone)
        server.show(25)
        await server.receive(ChunkDone)
    assert len(given) == 2


async def test_threads_are_chosen_by_the_steps() -> None:
    """Each denoising step's cost is told; other threads are looked for when there is nothing to do."""

    class Recorder(ThreadChoice):
        def __init__(self) -> None:
            super().__init__(lambda: None, 1)
            self.costs: list[float] = []
            self.retries = 0

        def spent(self, seconds: float) -> None:
            self.costs.append(seconds)

        def retry(self) -> bool:
            self.retries += 1
            return False

    async with _running() as (server, interleaver):
        recorder = interleaver._threads = Recorder()
        done = await server.receive(ChunkDone)
        await server.settle()
    # Not what opens a window, which costs several steps: the mean would jump at every chunk.
    assert len(recorder.costs) == done.steps and 1000 * sum(recorder.costs) < done.stage_ms["render"]
    assert recorder.retries and done.threads == (torch.get_num_threads(),)


async def test_restarted_channel_goes_on_counting() -> None:
    """Frames and chunks are numbered from the settings', and equal those of `generate` from there."""
    settings = ChannelSettings("the sea", 3, start=ChannelStart(97, 4))
    async with _running(settings) as (server, _):
        done = await server.receive(ChunkDone)
    assert (server.seen[0].index, server.seen[0].chunk, done.chunk, server.end) == (97, 4, 4, 122)
    assert (np.concatenate(server.video) == _offline(settings, 25)).all()


async def test_closed_pipe_ends_the_loop() -> None:
    """The engine ends by itself when the server is gone, while it works and while it waits."""
    for wait in (False, True):
        ours, theirs = multiprocessing.Pipe()
        with theirs:
            interleaver = Interleaver(_generator(), MemoryRing(8), ControlPipe(theirs))  # type: ignore[arg-type]
            ours.send(OpenChannel("main", SETTINGS))
            task = asyncio.create_task(interleaver.run())
            for _ in range(500 if wait else 2):
                await asyncio.sleep(0)
            ours.close()
            await asyncio.wait_for(task, LIMIT_S)


def _serve_in_thread(settings: EngineSettings, channel: ChannelSettings = SETTINGS) -> list[Any]:
    ours, theirs = multiprocessing.Pipe()
    ours.send(OpenChannel("main", channel))
    messages: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            serve(settings, MemoryRing(8), theirs)  # type: ignore[arg-type]
        except RuntimeError as error:
            errors.append(error)
        finally:
            theirs.close()

    thread = threading.Thread(target=run)
    with ours:
        thread.start()
        try:
            while True:
                if not isinstance(message := ours.recv(), Heartbeat):
                    messages.append(message)
        except (EOFError, ConnectionResetError):  # the second where the engine left messages unread
            thread.join()
    return messages + errors


@pytest.mark.parametrize(
    ("preset", "weights", "device", "words"),
    [
        ("huge", "", "cpu", "no preset 'huge'"),
        ("tiny", "missing", "cpu", "missing"),
        ("tiny", "", "toaster", "'toaster'"),
    ],
)
def test_model_that_cannot_be_loaded_is_told(
    preset: str, weights: str, device: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong presets, devices and weights end the process with one `Failed` that names them, and no exception."""
    monkeypatch.setitem(PRESETS, "tiny", tiny_config)
    messages = _serve_in_thread(EngineSettings(preset, str(tmp_path / weights), device))
    assert isinstance(messages[-1], Failed) and words in messages[-1].error and "\n" not in messages[-1].error


async def test_steps_are_those_of_the_channel() -> None:
    """A channel's chunks take the steps that its settings say, and are reported with them."""
    settings = ChannelSettings("a red ball", 3, steps=3)
    async with _running(settings) as (server, _):
        done = await server.receive(ChunkDone)
    assert done.steps == 3
    assert (np.concatenate(server.video) == _offline(settings, 25)).all()


def test_steps_that_the_solver_does_not_take_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first channel's steps are checked before the engine says that it is ready."""
    monkeypatch.setitem(PRESETS, "landiff", lambda: TINY)
    make_folder(tmp_path)
    make_texts(tmp_path)
    messages = _serve_in_thread(EngineSettings("landiff", str(tmp_path), "cpu"), ChannelSettings("the sea", steps=1))
    assert not any(isinstance(message, Ready) for message in messages)
    assert isinstance(messages[-1], Failed) and "1 sampling steps" in messages[-1].error


def test_published_model_without_weights_is_told() -> None:
    """The preset that comes without weights says how to get them."""
    messages = _serve_in_thread(EngineSettings("landiff", device="cpu"))
    assert isinstance(messages[-1], Failed) and "comes without weights: give --weights" in messages[-1].error


def test_published_model_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop loads the release's folder and streams what `generate` makes of it: 49 frames first, in slices."""
    monkeypatch.setitem(PRESETS, "landiff", lambda: TINY)
    make_folder(tmp_path)
    make_texts(tmp_path)
    settings = EngineSettings("landiff", str(tmp_path), "cpu")
    ours, theirs = multiprocessing.Pipe()
    ours.send(OpenChannel("main", ChannelSettings("a red fish", 3)))
    ring = MemoryRing(8)
    thread = threading.Thread(target=serve, args=(settings, ring, theirs))
    messages: list[Any] = []
    with ours, theirs:
        thread.start()
        while not messages or not isinstance(messages[-1], ChunkDone | Failed):
            assert ours.poll(LIMIT_S)
            if not isinstance(message := ours.recv(), Heartbeat):
                messages.append(message)
        ours.send(Stop())
        thread.join(LIMIT_S)
    device = pick_device("cpu")
    generator = Generator(load(TINY, tmp_path, device, pick_dtype(device)))
    done = messages[-1]
    assert isinstance(done, ChunkDone)
    with _threads(*done.threads):
        expected = list(generate_frames(generator, generator.open("a red fish", 3), 49))
    batches = [message for message in messages if isinstance(message, FramesReady)]
    assert [(message.index, message.frames) for message in batches] == [(one.index, one.frames) for one in expected]
    assert all((ring.frames[message.slot] == one.i420).all() for message, one in zip(batches, expected, strict=True))


def test_error_in_a_unit_is_told_and_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug ends the process with `Failed` and its exception, never in silence."""

    def broken(*_: Any) -> None:
        raise RuntimeError("out of memory")

    write_weights(tmp_path)
    monkeypatch.setitem(PRESETS, "tiny", tiny_config)
    monkeypatch.setattr(Interleaver, "_advance", broken)
    messages = _serve_in_thread(EngineSettings("tiny", str(tmp_path), "cpu"))
    assert isinstance(messages[-1], RuntimeError)
    assert messages[-2] == Failed("RuntimeError: out of memory")


@pytest.mark.parametrize("warm_up", [True, False])
def test_a_spare_is_ready_before_it_has_a_channel(
    warm_up: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepared on one thread of the lowest priority, it then serves on all; one that is hurried skips the warm-up."""
    write_weights(tmp_path)
    monkeypatch.setitem(PRESETS, "tiny", tiny_config)
    settings = EngineSettings("tiny", str(tmp_path), "cpu", spare=True, warm_up=warm_up)
    ours, theirs = multiprocessing.Pipe()
    threads = torch.get_num_threads()
    thread = threading.Thread(target=serve, args=(settings, MemoryRing(8), theirs))
    with ours, theirs:
        thread.start()
        stages = set()
        while not isinstance(message := ours.recv(), Ready):
            stages |= {message.stage} if isinstance(message, Progress) else set()
        assert stages == ({"loading", "warm-up"} if warm_up else {"loading"})
        ours.send(OpenChannel("main", SETTINGS))
        while not isinstance(message, FramesReady):
            message = ours.recv()
        assert torch.get_num_threads() == threads
        ours.send(Stop())
        thread.join(LIMIT_S)
    assert not thread.is_alive()


def _tiny_engine(settings: EngineSettings, ring: RingWriter, control: Connection) -> None:
    PRESETS["tiny"] = tiny_config
    serve(settings, ring, control)


def test_process_streams_what_generate_writes(tmp_path: Path) -> None:
    """A spawned engine streams what `generate` makes through a real ring, bears Ctrl-C and stops; `replay` can too."""
    write_weights(tmp_path)
    settings = EngineSettings("tiny", str(tmp_path), "cpu", state=str(tmp_path / "state"))
    ring = RingReader(RingConfig(8, 1 << 16))
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_tiny_engine, args=(settings, ring.writer(), theirs))
    process.start()
    theirs.close()
    ours.send(OpenChannel("main", SETTINGS))
    messages: list[Any] = []
    try:
        while not messages or not isinstance(messages[-1], ChunkDone):
            assert ours.poll(LIMIT_S)
            if not isinstance(message := ours.recv(), Heartbeat):
                messages.append(message)
            if messages and isinstance(messages[-1], Ready):
                assert process.pid is not None
                os.kill(process.pid, signal.SIGINT)
        ours.send(Stop())
        process.join(LIMIT_S)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()
        ring.close()
    kinds = [type(message) for message in messages]
    batches = [message for message in messages if isinstance(message, FramesReady)]
    progress = [Progress] * kinds.count(Progress)
    assert kinds == [*progress, ChannelOpened, Ready, *[FramesReady] * 3, ChunkDone]
    ready = messages[kinds.index(Ready)]
    assert (ready.width, ready.height, ready.fps, ready.preset, ready.steps) == (48, 32, 8.0, "tiny", 2)
    assert [message.fraction for message in messages[: len(progress)]][-1] == 1.0
    device = pick_device("cpu")
    generator = Generator(load(tiny_config(), tmp_path, device, pick_dtype(device)))
    with _threads(*messages[-1].threads):
        expected = list(generate_frames(generator, generator.open("a red ball", 3), 25))
    for message, batch in zip(batches, expected, strict=True):
        assert (message.index, message.frames) == (batch.index, batch.frames)
        assert (ring.frames(message.slot, message.frames, 32, 48) == batch.i420).all()
    PRESETS["tiny"] = tiny_config
    try:
        replay = Replay(generator, Journal(tmp_path / "state/main" / JOURNAL))
    finally:
        del PRESETS["tiny"]
    for batch, again in zip(expected, replay.frames(0, 25), strict=True):
        assert (again.i420 == batch.i420).all()

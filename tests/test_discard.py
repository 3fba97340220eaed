"""Plans that are dropped and written anew while channels run."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from test_interleave import SETTINGS, Server, _generator, _offline, _running
from test_state_keeper import Viewer, _until
from tiny import tiny_config

from engine.config import PRESETS
from engine.live.interleave import Interleaver
from engine.live.journal import Journal
from engine.live.journal_writer import JournalWriter
from engine.live.offline import finished, next_chunk
from engine.live.replay import Replay
from engine.wire.messages import (
    ChunkDone,
    DiscardPlan,
    FramesReady,
    OpenChannel,
    Paused,
    PlanDiscarded,
    PromptReplaced,
    PromptSet,
    Refused,
    SetPrompt,
    Shown,
)
from engine.wire.settings import ChannelSettings
from engine.wire.state_folder import JOURNAL
from engine.wire.state_memory import StateMemory


@dataclass(frozen=True)
class Made:
    """A change as it was answered; `plan` for a plan that was dropped before a chunk read it."""

    frame: int
    prompt: str
    mode: str
    seed: int


def offline(frames: int, changes: Sequence[Made]) -> npt.NDArray[np.uint8]:
    """The video that the answers promise."""
    generator, waiting = _generator(), list(changes)
    state = generator.open(SETTINGS.prompt, SETTINGS.seed, SETTINGS.steps)
    state.open_from = 0
    video: list[npt.NDArray[np.uint8]] = []
    begin = 0
    while begin < frames:
        while waiting and waiting[0].mode != "plan" and waiting[0].frame <= max(begin, state.next.frame):
            if waiting[0].mode == "cut" and waiting[0].frame > begin:
                break
            change = waiting.pop(0)
            if change.mode == "cut":
                generator.rewind(state, change.frame)
            generator.change(state, change.prompt, state.next, change.seed)
        for one in [one for one in waiting if one.mode == "plan" and one.frame < generator.after(state).frame]:
            latent = max(generator.latent_of(state, one.frame), state.next.latent)
            while generator.planned(state) < latent:
                generator.plan(state)
            generator.replan(state, latent, one.seed)
            waiting.remove(one)
        stop = min([frames, *(one.frame for one in waiting if one.mode == "cut")])
        for batch in finished(next_chunk(generator, state)):
            first, last = max(begin - batch.index, 0), min(stop - batch.index, batch.frames)
            if first < last:
                video.append(batch.i420[first:last])
                begin = batch.index + last
    return np.concatenate(video)


def planned(interleaver: Interleaver) -> list[int]:
    """Requests whose plan no chunk had begun to read, as they come."""
    found: list[int] = []
    changes = interleaver._changes
    replan = changes._replan

    def noted(channel: object, request: DiscardPlan) -> None:
        found.append(request.request)
        replan(channel, request)  # type: ignore[arg-type]

    changes._replan = noted  # type: ignore[method-assign, assignment]
    return found


async def answer(server: Server, request: DiscardPlan) -> PlanDiscarded | Refused:
    server.pipe.send(request)
    while True:
        kind = await server.receive(object)
        if isinstance(kind, PlanDiscarded | Refused) and kind.request == request.request:
            return kind


@pytest.mark.parametrize("frame", [49, 57, 62, 70])
async def test_a_plan_is_dropped_from_a_frame_on(frame: int) -> None:
    """Also within a chunk: what comes before it stays, the answer names the first that is another."""
    async with _running() as (server, interleaver):
        await server.receive(ChunkDone)
        await server.settle()
        made = await answer(server, DiscardPlan(1, "main", frame, 8))
        assert made == PlanDiscarded(1, "main", 49 if frame == 49 else frame - (frame - 49) % 4, 8)
        while server.end < 97:
            server.show(99)
            await server.receive(FramesReady)
    video = np.concatenate(server.video)
    assert (video == offline(len(video), [Made(made.frame, SETTINGS.prompt, "plan", 8)])).all()
    plain = _offline(SETTINGS, len(video))
    first = int(np.flatnonzero((video != plain).any(axis=(1, 2)))[0])
    # A chunk's frames see those behind them, as renderers do: none of an earlier chunk is another.
    assert first >= 49 if frame < 73 else first >= 73


async def test_what_is_rendered_is_cut() -> None:
    """From the frame on that was asked for; the seed is the next one unless it is given."""
    async with _running() as (server, _):
        await server.receive(ChunkDone)
        server.show(4)
        assert await answer(server, DiscardPlan(1, "main", 13)) == PlanDiscarded(1, "main", 13, SETTINGS.seed + 1)
        assert server.end == 13
        await server.receive(ChunkDone)
    video = np.concatenate(server.video)
    assert (video == offline(len(video), [Made(13, SETTINGS.prompt, "cut", SETTINGS.seed + 1)])).all()


async def test_a_discard_within_a_chunk_that_is_being_made_waits_for_its_frame() -> None:
    """Nothing before it is lost; a change that comes meanwhile sends it back."""
    async with _running() as (server, interleaver):
        while not interleaver._channels["main"].chunk:  # noqa: ASYNC110 - nobody is told of its beginning
            await asyncio.sleep(0)
        server.pipe.send(DiscardPlan(1, "main", 20, 8))
        server.pipe.send(DiscardPlan(2, "main", 21, 9))
        refused = await server.receive(Refused)
        assert refused.request == 1 and "try again" in refused.reason
        made = await server.receive(PlanDiscarded)
        assert made == PlanDiscarded(2, "main", 21, 9) and server.end == 21
        server.show(10)
        await server.receive(ChunkDone)
    video = np.concatenate(server.video)
    assert (video == offline(len(video), [Made(21, SETTINGS.prompt, "cut", 9)])).all()


async def test_what_cannot_be_dropped_is_refused() -> None:
    """What was on air, what nobody planned yet, and a channel that is not there; the video goes on as it was."""
    async with _running() as (server, _):
        await server.receive(ChunkDone)
        await server.settle()
        server.show(10)
        for number, (channel, frame, reason) in enumerate(
            [
                ("main", 9, "was on air; frame 11"),
                ("main", 10**6, "not planned yet"),
                ("other", 20, "no channel 'other'"),
            ]
        ):
            refused = await answer(server, DiscardPlan(number, channel, frame))
            assert isinstance(refused, Refused) and reason in refused.reason
        while server.end < 73:
            server.show(99)
            await server.receive(FramesReady)
    video = np.concatenate(server.video)
    assert (video == _offline(SETTINGS, len(video))).all()


async def test_discards_without_end_leave_the_video_going() -> None:
    """The next chunk's plan is dropped once; until that chunk begins more of it are refused."""
    async with _running() as (server, interleaver):
        await server.receive(ChunkDone)
        server.pipe.send(Paused("main", False))
        number, refusals = 1, []
        while server.end < 25 + 6 * 24:
            server.show(99)
            channel = interleaver._channels["main"]
            for _ in range(3):
                frame = max(channel.next.frame, channel.delivered)
                server.pipe.send(DiscardPlan(number, "main", frame))
                number += 1
                for _ in range(3):
                    await asyncio.sleep(0)
            if server.end == server.shown:
                await server.receive(FramesReady)
            else:
                await server.receive(object)
        refusals = [one.reason for one in server.others if isinstance(one, Refused)]
        made = [one for one in server.others if isinstance(one, PlanDiscarded)]
    assert len(made) >= 4 and any("planned anew already" in reason for reason in refusals)


async def test_a_prompt_that_waits_comes_with_the_cut() -> None:
    """It was to come later; what is dropped before that is made under it, with the new seed."""
    async with _running() as (server, interleaver):
        await server.receive(ChunkDone)
        server.pipe.send(SetPrompt(1, "main", "the sea", "flow"))
        assert (await server.receive(PromptSet)).frame == 25
        server.show(4)
        made = await answer(server, DiscardPlan(2, "main", 17, 9))
        assert made == PlanDiscarded(2, "main", 17, 9)
        await server.receive(ChunkDone)
        assert not [one for one in server.others if isinstance(one, PromptReplaced)]
        server.pipe.send(SetPrompt(3, "main", "a blue boat", "flow"))
        await server.receive(PromptSet)
    video = np.concatenate(server.video)
    assert (video == offline(len(video), [Made(17, "the sea", "cut", 9)])).all()


@pytest.mark.parametrize("seed", range(3))
async def test_streaming_with_discards_equals_offline_and_replay(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the moments, among prompts and cuts; and the journal gives the same video again, from any place on."""
    monkeypatch.setitem(PRESETS, "tiny", tiny_config)
    rng = random.Random(seed)
    made, modes = list[Made](), list[str]()
    prompt, number = SETTINGS.prompt, 0
    writer = JournalWriter(tmp_path, _generator(), lambda *told: pytest.fail(str(told)))
    async with _running(journals=writer) as (server, interleaver):
        plans = planned(interleaver)
        while server.shown < 200:
            number += 1
            if rng.random() < 0.15:
                mode, prompt = rng.choice(["flow", "cut"]), rng.choice(["the sea", "a blue boat"])
                server.pipe.send(SetPrompt(number, "main", prompt, mode, number))
                change = Made((await server.receive(PromptSet)).frame, prompt, mode, number)
                if mode == "flow" and made and made[-1].frame == change.frame and made[-1].mode == "cut":
                    change = replace(change, mode="cut")
                made = [one for one in made if one.frame < change.frame] + [change]
            elif rng.random() < 0.35:
                for _ in range(rng.randrange(60)):
                    await asyncio.sleep(0)
                state = interleaver._channels["main"].state
                end = interleaver._generator.frame_of(state, interleaver._generator.planned(state))
                # Late ones too, which are seldom rendered when they are asked for.
                begin = rng.choice([server.shown, max(server.shown, end - 24)])
                frame = rng.randrange(begin, max(end, begin + 1))
                reply = await answer(server, DiscardPlan(number, "main", frame, number))
                if isinstance(reply, PlanDiscarded):
                    modes.append("plan" if number in plans else "cut")
                    made = _with_discard(made, Made(reply.frame, prompt, modes[-1], number))
            elif server.end == server.shown:
                await server.receive(FramesReady)
            server.show(rng.randrange(1, 9))
            await asyncio.sleep(0)
    writer.close(60)
    video = np.concatenate(server.video)[: server.shown]
    assert set(modes) == {"plan", "cut"}
    expected = offline(len(video), made)
    assert not np.flatnonzero((video != expected).any(axis=(1, 2))).tolist(), made
    replay = Replay(_generator(), Journal(tmp_path / "main" / JOURNAL))
    for begin in (0, 90):
        again = np.concatenate([batch.i420 for batch in replay.frames(begin, len(video))])
        assert (again == video[begin : begin + len(again)]).all() and len(again) >= 100 - begin


def _with_discard(made: list[Made], discard: Made) -> list[Made]:
    """The changes once a discard is answered: it leaves prompts their places, but not those that a cut overtakes."""
    if discard.mode == "cut":
        return [one for one in made if one.frame < discard.frame] + [discard]
    kept = [one for one in made if one.mode != "plan" or one.frame < discard.frame]
    later = [replace(one, seed=discard.seed) if one.frame >= discard.frame else one for one in kept]
    if any(one.frame == discard.frame for one in later):
        return later
    return sorted([*later, discard], key=lambda one: one.frame)


@pytest.mark.parametrize("units", [0, 3, 20])
@pytest.mark.parametrize("frame", [30, 57])
async def test_a_discard_outlives_its_engine(frame: int, units: int) -> None:
    """The next engine drops the same plan, be the chunk that was being made before it or the one in which it lies."""
    viewer = Viewer(StateMemory())
    async with viewer.engine() as engine:
        await _until(engine, ChunkDone)
        channel = engine.interleaver._channels["main"]
        while engine.interleaver._ahead(channel) < 12 or channel.chunk is not None:
            engine.work()
        engine.pipe.send(DiscardPlan(1, "main", frame, 8))
        made = await _until(engine, PlanDiscarded)
        for _ in range(units):
            engine.work()
    async with viewer.engine() as engine:
        await _until(engine, ChunkDone, 3)
    video = np.stack(viewer.video)
    assert len(video) > 73 and made.frame <= frame
    assert (video == offline(len(video), [Made(made.frame, SETTINGS.prompt, "plan", 8)])).all()


async def test_channels_do_not_disturb_each_other() -> None:
    """One whose plan is dropped again and again changes no frame of the other."""
    async with _running() as (server, interleaver):
        other = ChannelSettings("the sea", 5, steps=2)
        server.pipe.send(OpenChannel("other", other))
        video: list[npt.NDArray[np.uint8]] = []
        number = 0
        while sum(map(len, video)) < 120:
            message = await server.inbox.get()
            number += 1
            server.pipe.send(DiscardPlan(number, "main", interleaver._channels["main"].next.frame + 8))
            if isinstance(message, FramesReady):
                if message.channel == "other":
                    video.append(server.ring.frames[message.slot])
                end = message.index + message.frames
                server.pipe.send(Shown(message.channel, end, (message.slot,)))
    frames = np.concatenate(video)
    assert (frames == _offline(other, len(frames))).all()

"""What comes, as the engine tells it: parts of the plan, with pictures and words."""

import asyncio
import time
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from test_interleave import SETTINGS, Server, _offline, _running

from engine.config import preset
from engine.live import look_ahead
from engine.live.controller import CostMeter
from engine.live.generator import Generator
from engine.live.live_channel import LiveChannel
from engine.live.look_ahead import PlanPreviews
from engine.live.offline import generate_frames
from engine.live.state_keeper import StateKeeper
from engine.loading.model import load
from engine.loading.options import place
from engine.wire.messages import (
    ChunkDone,
    DiscardPlan,
    LookAhead,
    OpenChannel,
    PlanAhead,
    PlanDiscarded,
    PlannedPart,
    PlanPicture,
    Refused,
    SetPrompt,
)
from engine.wire.settings import ChannelSettings, ChannelStart


async def look(server: Server, channel: str = "main") -> tuple[PlannedPart, ...]:
    server.pipe.send(LookAhead(channel))
    answer = await server.receive(PlanAhead)
    assert answer.channel == channel
    return tuple(answer.parts)


async def quiet(server: Server) -> None:
    """Waits until the engine has nothing left to do, and takes all that it said."""
    for _ in range(400):
        await asyncio.sleep(0)
    server.pipe.send(SetPrompt(99, "nobody", "x", "flow"))
    await server.receive(Refused)


def pictures(server: Server) -> dict[int, PlanPicture]:
    return {one.number: one for one in server.others if isinstance(one, PlanPicture)}


async def test_parts_cover_all_that_is_planned() -> None:
    """One behind the other, from the frame on air on; a picture of each follows, and nothing else does."""
    async with _running() as (server, interleaver):
        await server.receive(ChunkDone)
        await quiet(server)
        parts = await look(server)
        assert [part.frame for part in parts[:4]] == [0, 9, 17, 25] and [part.frames for part in parts[:3]] == [9, 8, 8]
        assert all(one.frame + one.frames == two.frame for one, two in zip(parts, parts[1:], strict=False))
        assert [part.rendered for part in parts[:5]] == [True] * 3 + [False] * 2
        channel = interleaver._channels["main"]
        end = parts[-1].frame + parts[-1].frames
        assert 0 <= interleaver._generator.frame_of(channel.state, channel.state.plan.gops[-1].start) <= end
        assert all(part.picture is None and part.words == {} for part in parts)
        await quiet(server)
        found = await look(server)
        assert sorted(pictures(server)) == [part.picture for part in found] and len(found) == len(parts)
        picture = pictures(server)[0]
        assert picture.width == 48 and len(picture.i420) == 48 * 48
        server.show(12)
        await quiet(server)
        assert [part.frame for part in await look(server)][0] == 9


async def test_pictures_are_those_of_the_plan() -> None:
    """What is dropped loses its pictures and gets others; what comes before keeps its own."""
    async with _running() as (server, _):
        await server.receive(ChunkDone)
        await quiet(server)
        await look(server)
        await quiet(server)
        before = await look(server)
        server.pipe.send(DiscardPlan(1, "main", 41, 9))
        await server.receive(PlanDiscarded)
        await quiet(server)
        after = await look(server)
        kept = [part for part in before if part.frame < 41]
        assert list(after[: len(kept)]) == kept
        assert not {part.picture for part in after[len(kept) :]} & {part.picture for part in before}
        await quiet(server)
        shown = pictures(server)
        late = [
            [shown[part.picture].i420 for part in parts if part.frame >= 41] for parts in (before, await look(server))
        ]
        assert late[0] and late[1] and late[0] != late[1]


async def test_nobody_who_looks_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are made for a while after somebody looked; of a channel that is not there nothing comes."""
    async with _running() as (server, _):
        await server.receive(ChunkDone)
        await quiet(server)
        assert await look(server, "nobody") == ()
        await quiet(server)
        assert pictures(server) == {}
        await look(server)
        await quiet(server)
        count = len(pictures(server))
        assert count > 3
        monkeypatch.setattr(look_ahead, "LOOK_S", 0.0)
        server.show(25)
        await server.receive(ChunkDone)
        await quiet(server)
        assert len(pictures(server)) == count


async def test_pictures_are_of_the_channel_that_is_looked_at() -> None:
    """The others go on as if nobody looked."""
    async with _running() as (server, interleaver):
        for message in (OpenChannel("other", SETTINGS), LookAhead("other")):
            server.pipe.send(message)
        found: list[PlanPicture] = []
        while len(found) < 3:
            message = await server.inbox.get()
            if isinstance(message, PlanPicture):
                found.append(message)
        assert {one.channel for one in found} == {"other"}
        assert interleaver._channels["main"].pictures == {} and interleaver._channels["other"].pictures


async def test_pictures_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """While there is anything to render or to plan none is made."""
    async with _running() as (server, interleaver):
        work, busy = PlanPreviews.work, []

        def watched(self: PlanPreviews, channels: Any) -> bool:
            channel = interleaver._channels["main"]
            ahead = interleaver._ahead(channel) >= interleaver._look_ahead
            waits = channel.chunk is None and channel.buffered > interleaver._low_mark
            busy.append(not (ahead and waits))
            return work(self, channels)

        monkeypatch.setattr(PlanPreviews, "work", watched)
        for _ in range(4):
            server.pipe.send(LookAhead("main"))
            await server.receive(ChunkDone)
            server.show(25)
            await asyncio.sleep(0)
        await quiet(server)
    assert busy and not any(busy)
    assert pictures(server)


async def test_parts_of_a_video_that_goes_on_in_another_process() -> None:
    """Frames of the process before are not told: the parts begin where the video does here."""
    settings = ChannelSettings("the sea", 3, start=ChannelStart(97, 4))
    async with _running(settings) as (server, interleaver):
        while not interleaver._channels["main"].state.plan.gops[0].count:  # noqa: ASYNC110 - nobody is told of it
            await asyncio.sleep(0)
        await server.receive(ChunkDone)
        await quiet(server)
        assert [(part.frame, part.frames) for part in (await look(server))[:3]] == [(97, 9), (106, 8), (114, 8)]


@cache
def shipped() -> Generator:
    config = preset("mini")
    return Generator(load(config, *place(config, None, "cpu")))


def test_the_shipped_plan_in_pictures_and_words() -> None:
    """Words are those of the prompt, and a preview looks like the frame that is rendered later."""
    generator, sent = shipped(), list[Any]()
    state = generator.open("a yellow butterfly left of a blue ball moves up over green hills", 3)
    state.open_from = 0
    keeper = StateKeeper(generator, None, None).open("main", 0, state, None, None)
    channel = LiveChannel("main", state, keeper, 0, 0, CostMeter(1), 1, looked_s=time.monotonic() + 3600)
    previews = PlanPreviews(generator, sent.append)
    while generator.planned(state) < 13:
        generator.plan(state)
    while previews.work([channel]):
        pass
    previews.tell("main", channel)
    parts = sent[-1].parts
    assert parts[0].words == {
        "subject": "butterfly", "colour": "yellow", "scene": "hills", "direction": "up", "speed": "normal",
        "camera": "none", "relation": "left", "second_subject": "ball", "second_colour": "blue",
    }  # fmt: skip
    made = {
        one.number: np.frombuffer(one.i420, np.uint8).reshape(-1, 192) for one in sent if isinstance(one, PlanPicture)
    }
    video = np.concatenate([batch.i420 for batch in generate_frames(generator, state, 25)])
    luma = torch.tensor(np.stack([made[part.picture][:128] for part in parts[:3]])).float()
    rendered = torch.tensor(np.stack([video[part.frame][:128] for part in parts[:3]])).float()
    near = (luma - rendered).abs().mean((1, 2))
    far = (luma - rendered.flip(2)).abs().mean((1, 2))
    assert (near < 8).all() and (near < far / 2).all()


async def test_a_preview_changes_no_frame() -> None:
    """With somebody who looks all the time the video is the same, bit for bit."""
    async with _running() as (server, _):
        while server.end < 97:
            server.pipe.send(LookAhead("main"))
            await server.receive(ChunkDone)
            await quiet(server)
            server.show(99)
    video = np.concatenate(server.video)
    assert (video == _offline(SETTINGS, len(video))).all() and pictures(server)

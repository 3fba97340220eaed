import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import av
import numpy as np
import pytest
from fakes import FPS, HEIGHT, WIDTH, test_frame

from engine.wire.messages import (
    ChunkReady,
    EngineSettings,
    HopDone,
    Progress,
    PromptSet,
    Ready,
    Refused,
    SetPrompt,
    Shown,
)
from engine.wire.ring import RingConfig, RingReader
from streaming.channels.channel import Channel
from streaming.channels.events import PromptShown, Unavailable
from streaming.channels.prompts import PromptRefused
from streaming.channels.stats import Metrics

SETTINGS = EngineSettings("mini", None, "cpu", "main", "first", 7, 0, 0, 16)
READY = Ready(WIDTH, HEIGHT, FPS, 1.0, "mini", 4)
RING = RingConfig(slots=4, slot_bytes=9 * WIDTH * HEIGHT * 3 // 2)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Sink:
    def __init__(self) -> None:
        self.packets: list[av.Packet] = []

    def offer(self, packet: av.Packet) -> None:
        self.packets.append(packet)

    @property
    def pts(self) -> list[int]:
        return [packet.pts for packet in self.packets]


class Studio:
    """A channel with an engine that does what the test says, on a clock that the test moves."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.channel = Channel(SETTINGS, self.metrics, self.clock)
        self.sent: list[object] = []
        self.index = 0
        self.ring = RingReader(RING)
        self.plug()

    def plug(self) -> None:
        self.ring.close()
        self.ring = RingReader(RING)
        self.writer = self.ring.writer()
        self.channel.attach(self.ring, self.sent.append)

    def render(self, frames: int, hop: int = 0) -> int:
        slot = self.writer.acquire()
        assert slot is not None
        self.writer.write(slot, np.stack([test_frame(self.index + step) for step in range(frames)]))
        self.channel.receive(ChunkReady("main", slot, self.index, hop, frames, self.clock.now_s, "first"))
        self.index += frames
        return slot

    async def pass_periods(self, count: int) -> None:
        for _ in range(count):
            await self.channel._step(self.clock.now_s)
            self.clock.now_s += 1 / FPS

    @property
    def shown(self) -> list[Shown]:
        return [message for message in self.sent if isinstance(message, Shown)]


@pytest.fixture
async def studio() -> AsyncIterator[Studio]:
    running = Studio()
    yield running
    running.ring.close()
    # Cancelled at once: it only closes the hubs.
    task = asyncio.create_task(running.channel.run())
    await asyncio.sleep(0)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_nothing_can_be_joined_before_the_engine_is_ready(studio: Studio) -> None:
    """Joining and prompting raise Unavailable while the engine starts; the report says what it does."""
    studio.channel.receive(Progress("weights", 0.25))
    with pytest.raises(Unavailable, match="no video"):
        studio.channel.join(Sink(), "vp8", False)
    with pytest.raises(Unavailable, match="starting"):
        await studio.channel.set_prompt("x", "flow")
    report = studio.channel.report()
    assert (report.state, report.progress, report.width, report.frame) == ("starting", "weights 25%", None, None)


async def test_frames_wait_for_a_viewer(studio: Studio) -> None:
    """Without viewers nothing goes on air and no slot is freed; with one, frames go on air a period apart."""
    studio.channel.receive(READY)
    studio.render(4)
    await studio.pass_periods(5)
    assert (studio.shown, studio.channel.report().state) == ([], "idle")
    sink = Sink()
    studio.channel.join(sink, "vp8", False)
    await studio.pass_periods(3)
    assert sink.pts == [0, 5625, 11250]
    assert [(message.frame, message.freed_slots) for message in studio.shown] == [(1, ()), (2, ()), (3, ())]
    report = studio.channel.report()
    assert (report.state, report.frame, report.viewers, report.buffered_s) == ("live", 2, 1, 0.062)


async def test_slot_is_freed_with_its_last_frame(studio: Studio) -> None:
    """Slots come back in order, each once, when all their frames were shown."""
    studio.channel.receive(READY)
    slots = [studio.render(2), studio.render(1)]
    studio.channel.join(Sink(), "vp8", False)
    await studio.pass_periods(4)
    assert [message.freed_slots for message in studio.shown] == [(), (slots[0],), (slots[1],)]


async def test_late_frames_repeat_the_last_one(studio: Studio) -> None:
    """When the buffer is dry the last frame repeats, counted; the next chunk goes on where the video stopped."""
    studio.channel.receive(READY)
    studio.render(2)
    sink = Sink()
    studio.channel.join(sink, "vp8", False)
    await studio.pass_periods(4)
    assert (studio.channel.report().repeats, studio.channel.report().frame) == (2, 1)
    assert len(sink.packets) == 4
    studio.render(2)
    await studio.pass_periods(2)
    assert [message.frame for message in studio.shown] == [1, 2, 3, 4]
    assert all(later > earlier for earlier, later in zip(sink.pts, sink.pts[1:], strict=False))


async def test_second_viewer_gets_a_picture_between_frames(studio: Studio) -> None:
    """Who joins between two frames gets the frame on air at once; the first viewer's pictures keep their times."""
    studio.channel.receive(READY)
    studio.render(9)
    first, second = Sink(), Sink()
    studio.channel.join(first, "vp8", False)
    await studio.pass_periods(2)
    studio.clock.now_s -= 0.5 / FPS
    studio.channel.join(second, "h264", False)
    await studio.channel._step(studio.clock.now_s)
    assert (len(first.packets), len(second.packets)) == (2, 1)
    assert second.packets[0].is_keyframe
    studio.clock.now_s += 0.5 / FPS
    await studio.pass_periods(1)
    assert (first.pts, second.pts) == ([0, 5625, 11250], [5625 + 2813, 11250])


async def test_clock_stops_with_the_last_viewer(studio: Studio) -> None:
    """When everybody left, frames wait again; leaving twice does no harm."""
    studio.channel.receive(READY)
    studio.render(9)
    sink = Sink()
    studio.channel.join(sink, "vp8", False)
    await studio.pass_periods(2)
    studio.channel.leave(sink)
    studio.channel.leave(sink)
    await studio.pass_periods(5)
    assert len(studio.shown) == 2
    assert studio.channel.report().state == "idle"


async def test_prompt_change_names_its_first_frame(studio: Studio) -> None:
    """The answer has the frame and the time until then; an event follows when that frame is on air, once."""
    studio.channel.receive(READY)
    studio.render(4)
    studio.channel.join(Sink(), "vp8", False)
    with studio.channel.events.listen() as queue:
        asking = asyncio.create_task(studio.channel.set_prompt("second", "flow"))
        await asyncio.sleep(0)
        request = studio.sent[-1]
        assert isinstance(request, SetPrompt)
        assert (request.prompt, request.mode, request.channel) == ("second", "flow", "main")
        studio.channel.receive(PromptSet(request.request, "main", "second", 2))
        answer = await asking
        assert (answer.prompt, answer.frame, answer.eta_s) == ("second", 2, 2 / FPS)
        await studio.pass_periods(4)
        events = [queue.get_nowait() for _ in range(queue.qsize())]
    assert [event for event in events if isinstance(event, PromptShown)] == [
        PromptShown("first", 0),
        PromptShown("second", 2),
    ]
    assert [(record.prompt, record.shown) for record in studio.channel.report().prompts] == [
        ("first", True),
        ("second", True),
    ]


async def test_refused_prompt_changes_nothing(studio: Studio) -> None:
    """The engine's reason reaches who asked; the prompt stays."""
    studio.channel.receive(READY)
    asking = asyncio.create_task(studio.channel.set_prompt("second", "flow"))
    await asyncio.sleep(0)
    request = studio.sent[-1]
    assert isinstance(request, SetPrompt)
    studio.channel.receive(Refused(request.request, "too strange"))
    with pytest.raises(PromptRefused, match="too strange"):
        await asking
    assert studio.channel.report().prompt == "first"


async def test_crash_is_named_and_the_video_goes_on(studio: Studio) -> None:
    """Buffered frames still go on air, then the last repeats; the next engine begins where the buffer ends."""
    studio.channel.receive(READY)
    studio.render(3, hop=5)
    sink = Sink()
    studio.channel.join(sink, "vp8", False)
    await studio.pass_periods(1)
    asking = asyncio.create_task(studio.channel.set_prompt("second", "flow"))
    await asyncio.sleep(0)
    studio.channel.detach("it crashed", final=False)
    with pytest.raises(Unavailable, match="stopped"):
        await asking
    with pytest.raises(Unavailable, match="it crashed"):
        await studio.channel.set_prompt("third", "flow")
    await studio.pass_periods(4)
    report = studio.channel.report()
    assert (report.state, report.error, report.frame, report.repeats) == ("restarting", "it crashed", 2, 2)
    settings = studio.channel.settings()
    assert (settings.first_frame, settings.first_hop, settings.prompt, settings.seed) == (3, 6, "first", 7)

    studio.sent.clear()
    studio.plug()
    studio.channel.receive(READY)
    studio.render(2, hop=6)
    await studio.pass_periods(2)
    report = studio.channel.report()
    assert (report.state, report.error, report.frame) == ("live", None, 4)
    assert [message.frame for message in studio.shown] == [4, 5]
    assert len(sink.packets) == 7


async def test_slots_of_a_dead_engine_are_not_given_to_the_next(studio: Studio) -> None:
    """Frames that outlived their engine are shown, but only the new engine's slots are freed."""
    studio.channel.receive(READY)
    studio.render(2)
    studio.channel.join(Sink(), "vp8", False)
    studio.channel.detach("gone", final=False)
    studio.plug()
    studio.channel.receive(READY)
    slot = studio.render(1, hop=1)
    await studio.pass_periods(3)
    assert [(message.frame, message.freed_slots) for message in studio.shown] == [(1, ()), (2, ()), (3, (slot,))]


async def test_final_failure_is_a_state(studio: Studio) -> None:
    """When the supervisor gave up, the report says failed and why."""
    studio.channel.receive(READY)
    studio.channel.detach("no memory", final=True)
    assert (studio.channel.report().state, studio.channel.report().error) == ("failed", "no memory")
    assert not studio.channel.ready


@pytest.mark.parametrize(
    "message",
    [
        ChunkReady("main", 0, 5, 0, 1, 0.0, "first"),
        ChunkReady("main", 9, 0, 0, 1, 0.0, "first"),
        ChunkReady("main", 0, 0, 0, 99, 0.0, "first"),
        Ready(WIDTH * 2, HEIGHT, FPS, 1.0, "mini", 4),
        Shown("main", 0, ()),
    ],
)
async def test_protocol_errors_are_refused(studio: Studio, message: object) -> None:
    """A gap, a slot that does not exist, too many frames, another size and a stray message raise ValueError."""
    studio.channel.receive(READY)
    with pytest.raises(ValueError, match=r"frame|slot|viewers watch|does not expect"):
        studio.channel.receive(message)  # type: ignore[arg-type]


async def test_frames_before_ready_are_refused(studio: Studio) -> None:
    """Sizes are unknown before Ready, so frames raise ValueError."""
    with pytest.raises(ValueError, match="before it was ready"):
        studio.channel.receive(ChunkReady("main", 0, 0, 0, 1, 0.0, "first"))


async def test_hop_figures_are_reported(studio: Studio) -> None:
    """The report has the last hop's stages, its steps and the real-time factor."""
    studio.channel.receive(READY)
    assert studio.channel.report().steps == 4
    studio.channel.receive(HopDone("main", 3, 6, 3.0, 1.5, {"render": 1200.0}))
    report = studio.channel.report()
    assert report.hop is not None
    assert (report.steps, report.realtime_factor, report.hop.index, report.hop.ms) == (6, 2.0, 3, {"render": 1200.0})


async def test_run_keeps_time_by_itself() -> None:
    """The loop puts 8 frames at 16 fps on air in real time, woken by the clock and by arrivals, and ends on cancel."""
    studio = Studio()
    studio.channel = Channel(SETTINGS, studio.metrics)
    studio.plug()
    air = asyncio.create_task(studio.channel.run())
    sink = Sink()
    studio.channel.receive(READY)
    studio.channel.join(sink, "vp8", False)
    began_s = asyncio.get_running_loop().time()
    studio.channel.receive(PromptSet(0, "main", "last", 7))
    studio.render(8)
    with studio.channel.events.listen() as queue:
        while await queue.get() != PromptShown("last", 7):
            pass
    took_s = asyncio.get_running_loop().time() - began_s
    air.cancel()
    with pytest.raises(asyncio.CancelledError):
        await air
    studio.ring.close()
    assert 7 / FPS <= took_s < 14 / FPS

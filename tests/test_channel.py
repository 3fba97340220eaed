import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import av
import numpy as np
import pytest
from fakes import FPS, HEIGHT, WIDTH, test_frame

from engine.text.asked import Asked
from engine.wire.messages import (
    ChunkDone,
    FramesDropped,
    FramesReady,
    Paused,
    Progress,
    PromptSet,
    Ready,
    Refused,
    SetPrompt,
    Shown,
)
from engine.wire.ring import RingConfig, RingReader
from engine.wire.settings import ChannelSettings, ChannelStart, EngineSettings
from streaming.channels.channel import Channel
from streaming.channels.events import PromptShown, StateChanged
from streaming.channels.prompts import RequestRefused
from streaming.engines.link import EngineLink
from streaming.errors import Unavailable
from streaming.media.metrics import Metrics

SETTINGS = ChannelSettings("first", 7)
READY = Ready(WIDTH, HEIGHT, FPS, 1.0, "mini", 4)
RED_BALL = Asked("ball", "red").understood(0, ())
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

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self.clock = Clock()
        clock = clock or self.clock
        self.metrics = Metrics()
        self.engine = EngineLink(EngineSettings("mini", picture=None), self.metrics)
        self.channel = Channel("main", SETTINGS, self.engine, self.metrics.channel("main"), clock)
        self.engine.open(self.channel)
        self.sent: list[object] = []
        self.index = 0
        self.ring = RingReader(RING)
        self.plug()

    def plug(self) -> None:
        self.ring.close()
        self.ring = RingReader(RING)
        self.writer = self.ring.writer()
        self.engine.attach(self.ring, self.sent.append)

    def render(self, frames: int, chunk: int = 0) -> int:
        slot = self.writer.acquire()
        assert slot is not None
        self.writer.write(slot, np.stack([test_frame(self.index + step) for step in range(frames)]))
        self.engine.receive(FramesReady("main", slot, self.index, chunk, frames))
        self.index += frames
        return slot

    async def pass_periods(self, count: int) -> None:
        for _ in range(count):
            await self.channel._playout.step(self.clock.now_s)
            self.clock.now_s += 1 / FPS

    @property
    def shown(self) -> list[Shown]:
        return [message for message in self.sent if isinstance(message, Shown)]

    @property
    def asked(self) -> SetPrompt:
        """The prompt that was sent last."""
        return next(message for message in reversed(self.sent) if isinstance(message, SetPrompt))


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
    # Encoders take megabytes, and would stay as long as the channel's cycle does.
    assert not running.channel._playout._hubs


async def test_nothing_can_be_joined_before_the_engine_is_ready(studio: Studio) -> None:
    """Joining and prompting raise Unavailable while the engine starts; the report says what it does."""
    studio.engine.receive(Progress("weights", 0.25))
    with pytest.raises(Unavailable, match="no video"):
        studio.channel.join(Sink(), "vp8", False)
    with pytest.raises(Unavailable, match="starting"):
        await studio.channel.change("x", "flow")
    report = studio.channel.report()
    assert (report.state, report.progress, report.width, report.frame) == ("starting", "weights 25%", None, None)


async def test_later_processes_draw_the_pictures_of_the_first(studio: Studio) -> None:
    """What the first one chose is asked of those that take its place: viewers watch one size."""
    assert studio.engine.settings.picture is None
    studio.engine.receive(READY)
    assert studio.engine.settings.picture == "small"


async def test_frames_wait_for_a_viewer(studio: Studio) -> None:
    """Without viewers nothing goes on air and no slot is freed; with one, frames go on air a period apart."""
    studio.engine.receive(READY)
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
    studio.engine.receive(READY)
    slots = [studio.render(2), studio.render(1)]
    studio.channel.join(Sink(), "vp8", False)
    await studio.pass_periods(4)
    assert [message.freed_slots for message in studio.shown] == [(), (slots[0],), (slots[1],)]


async def test_late_frames_repeat_the_last_one(studio: Studio) -> None:
    """When the buffer is dry the last frame repeats, counted; the next batch goes on where the video stopped."""
    studio.engine.receive(READY)
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
    studio.engine.receive(READY)
    studio.render(9)
    first, second = Sink(), Sink()
    studio.channel.join(first, "vp8", False)
    await studio.pass_periods(2)
    studio.clock.now_s -= 0.5 / FPS
    studio.channel.join(second, "h264", False)
    await studio.channel._playout.step(studio.clock.now_s)
    assert (len(first.packets), len(second.packets)) == (2, 1)
    assert second.packets[0].is_keyframe
    studio.clock.now_s += 0.5 / FPS
    await studio.pass_periods(1)
    assert (first.pts, second.pts) == ([0, 5625, 11250], [5625 + 2813, 11250])


async def test_clock_stops_with_the_last_viewer(studio: Studio) -> None:
    """When everybody left, frames wait again; leaving twice does no harm."""
    studio.engine.receive(READY)
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
    studio.engine.receive(READY)
    studio.render(4)
    studio.channel.join(Sink(), "vp8", False)
    with studio.channel.events.listen("test") as queue:
        asking = asyncio.create_task(studio.channel.change("second", "flow"))
        await asyncio.sleep(0)
        request = studio.asked
        assert (request.prompt, request.mode, request.channel) == ("second", "flow", "main")
        studio.engine.receive(PromptSet(request.request, "main", "second", 2, ("second",), RED_BALL))
        answer = await asking
        assert (answer.prompt, answer.frame, answer.eta_s, answer.unread) == ("second", 2, 2 / FPS, ("second",))
        assert answer.understood == studio.channel.report().prompts[-1].understood == RED_BALL
        await studio.pass_periods(4)
        assert [await queue.get() for _ in range(3)] == [
            PromptShown("first", 0),
            PromptShown("second", 2),
            StateChanged(),
        ]
    assert [(record.prompt, record.shown) for record in studio.channel.report().prompts] == [
        ("first", True),
        ("second", True),
    ]


async def test_a_change_may_lose_its_frame_before_it_is_answered(studio: Studio) -> None:
    """The engine answers two in a row: the first has no frame then, and names the other."""
    studio.engine.receive(READY)
    studio.render(4)
    asking = [asyncio.create_task(studio.channel.change(prompt, "cut")) for prompt in ("second", "third")]
    await asyncio.sleep(0)
    for prompt in ("second", "third"):
        studio.engine.receive(PromptSet(studio.asked.request, "main", prompt, 3))
    second, third = await asyncio.gather(*asking)
    assert (second.frame, second.eta_s, second.replaced_by) == (None, None, "third")
    assert (third.frame, third.replaced_by) == (3, None)


async def test_a_cut_takes_frames_off_before_they_air(studio: Studio) -> None:
    """Frames that were made anew are shown in place of the old ones; slots come back; the clock notices nothing."""
    studio.engine.receive(READY)
    slots = [studio.render(4), studio.render(4)]
    sink = Sink()
    studio.channel.join(sink, "vp8", False)
    await studio.pass_periods(2)
    asking = asyncio.create_task(studio.channel.change("second", "cut", 9))
    await asyncio.sleep(0)
    assert (studio.asked.mode, studio.asked.seed) == ("cut", 9)
    studio.engine.receive(FramesDropped("main", 3))
    studio.engine.receive(PromptSet(studio.asked.request, "main", "second", 3))
    assert (await asking).frame == 3 and studio.shown[-1] == Shown("main", 2, (slots[1],))
    studio.writer.release((slots[1],))
    studio.index = 3
    studio.render(3, chunk=1)
    await studio.pass_periods(4)
    assert [message.frame for message in studio.shown] == [1, 2, 2, 3, 4, 5, 6]
    report = studio.channel.report()
    assert (report.repeats, report.prompt, report.seed, report.prompts[-1].shown) == (0, "second", 9, True)
    assert sink.pts == [5625 * number for number in range(6)]


async def test_a_paused_video_stands_for_all(studio: Studio) -> None:
    """The frame on air stays, is sent again each second and to who joins; then the next frame follows."""
    studio.engine.receive(READY)
    studio.render(9)
    first, second = Sink(), Sink()
    studio.channel.join(first, "vp8", False)
    await studio.pass_periods(3)
    answer = studio.channel.pause(True)
    assert (answer.prompt, answer.frame) == ("first", 2)
    assert studio.sent[-1] == Paused("main", True) and studio.channel.report().state == "paused"
    await studio.pass_periods(int(3 * FPS))
    assert len(studio.shown) == 3 and 5 <= len(first.packets) <= 7
    studio.channel.join(second, "h264", False)
    await studio.pass_periods(1)
    assert len(second.packets) == 1 and second.packets[0].is_keyframe
    studio.channel.pause(False)
    assert studio.sent[-1] == Paused("main", False)
    await studio.pass_periods(2)
    assert [message.frame for message in studio.shown] == [1, 2, 3, 4, 5]
    assert all(later > earlier for earlier, later in zip(first.pts, first.pts[1:], strict=False))
    assert studio.channel.report().repeats == 0


async def test_a_video_paused_before_it_began_shows_its_first_frame(studio: Studio) -> None:
    """Who watches it sees one picture that stands."""
    studio.channel.pause(True)
    studio.engine.receive(READY)
    studio.render(9)
    studio.channel.join(Sink(), "vp8", False)
    await studio.pass_periods(9)
    assert [message.frame for message in studio.shown] == [1]


async def test_refused_prompt_changes_nothing(studio: Studio) -> None:
    """The engine's reason reaches who asked; the prompt stays."""
    studio.engine.receive(READY)
    asking = asyncio.create_task(studio.channel.change("second", "flow"))
    await asyncio.sleep(0)
    request = studio.asked
    studio.engine.receive(Refused(request.request, "main", "too strange"))
    with pytest.raises(RequestRefused, match="too strange"):
        await asking
    assert studio.channel.report().prompt == "first"


async def test_crash_is_named_and_the_video_goes_on(studio: Studio) -> None:
    """Buffered frames still go on air, then the last repeats; the next engine begins where the buffer ends."""
    studio.engine.receive(READY)
    studio.render(3, chunk=5)
    sink = Sink()
    studio.channel.join(sink, "vp8", False)
    await studio.pass_periods(1)
    asking = asyncio.create_task(studio.channel.change("second", "flow"))
    await asyncio.sleep(0)
    studio.engine.detach("it crashed", final=False)
    with pytest.raises(Unavailable, match="stopped"):
        await asking
    with pytest.raises(Unavailable, match="it crashed"):
        await studio.channel.change("third", "flow")
    await studio.pass_periods(4)
    report = studio.channel.report()
    assert (report.state, report.error, report.frame, report.repeats) == ("restarting", "it crashed", 2, 2)
    settings = studio.channel.settings()
    assert settings == ChannelSettings("first", 7, start=ChannelStart(3, 6))

    studio.sent.clear()
    studio.plug()
    studio.engine.receive(READY)
    studio.render(2, chunk=6)
    await studio.pass_periods(2)
    report = studio.channel.report()
    assert (report.state, report.error, report.frame) == ("live", None, 4)
    assert [message.frame for message in studio.shown] == [4, 5]
    assert len(sink.packets) == 7


async def test_slots_of_a_dead_engine_are_not_given_to_the_next(studio: Studio) -> None:
    """Frames that outlived their engine are shown, but only the new engine's slots are freed."""
    studio.engine.receive(READY)
    studio.render(2)
    studio.channel.join(Sink(), "vp8", False)
    studio.engine.detach("gone", final=False)
    studio.plug()
    studio.engine.receive(READY)
    slot = studio.render(1, chunk=1)
    await studio.pass_periods(3)
    assert [(message.frame, message.freed_slots) for message in studio.shown] == [(1, ()), (2, ()), (3, (slot,))]


async def test_final_failure_is_a_state(studio: Studio) -> None:
    """When the supervisor gave up, the report says failed and why."""
    studio.engine.receive(READY)
    studio.engine.detach("no memory", final=True)
    assert (studio.channel.report().state, studio.channel.report().error) == ("failed", "no memory")
    assert not studio.engine.running


@pytest.mark.parametrize(
    "message",
    [
        FramesReady("main", 0, 5, 0, 1),
        FramesReady("main", 9, 0, 0, 1),
        FramesReady("main", 0, 0, 0, 99),
        Ready(WIDTH * 2, HEIGHT, FPS, 1.0, "mini", 4),
        Shown("main", 0, ()),
        FramesReady("other", 0, 0, 0, 1),
    ],
)
async def test_protocol_errors_are_refused(studio: Studio, message: object) -> None:
    """A gap, a wrong slot or channel, too many frames, another size and a stray message raise ValueError."""
    studio.engine.receive(READY)
    with pytest.raises(ValueError, match=r"frame|slot|viewers watch|not expected|no such channel"):
        studio.engine.receive(message)  # type: ignore[arg-type]


async def test_frames_before_ready_are_refused(studio: Studio) -> None:
    """Sizes are unknown before Ready, so frames raise ValueError."""
    with pytest.raises(ValueError, match="before it was ready"):
        studio.engine.receive(FramesReady("main", 0, 0, 0, 1))


async def test_chunk_figures_are_reported(studio: Studio) -> None:
    """The report has the last chunk's stages, its steps and the real-time factor."""
    studio.engine.receive(READY)
    assert studio.channel.report().steps == 4
    studio.engine.receive(ChunkDone("main", 3, 6, 3.0, 1.5, {"render": 1200.0}, (2,)))
    report = studio.channel.report()
    assert report.chunk is not None
    assert (report.steps, report.realtime_factor, report.chunk.index, report.chunk.ms) == (
        6,
        2.0,
        3,
        {"render": 1200.0},
    )


async def test_run_keeps_time_by_itself() -> None:
    """The loop puts 8 frames at 16 fps on air in real time, woken by the clock and by arrivals, and ends on cancel."""
    studio = Studio(time.monotonic)
    air = asyncio.create_task(studio.channel.run())
    sink = Sink()
    studio.engine.receive(READY)
    studio.channel.join(sink, "vp8", False)
    began_s = asyncio.get_running_loop().time()
    studio.engine.receive(PromptSet(0, "main", "last", 7))
    studio.render(8)
    with studio.channel.events.listen("test") as queue:
        while await queue.get() != PromptShown("last", 7):
            pass
    took_s = asyncio.get_running_loop().time() - began_s
    air.cancel()
    with pytest.raises(asyncio.CancelledError):
        await air
    studio.ring.close()
    assert 7 / FPS <= took_s < 14 / FPS

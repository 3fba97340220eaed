"""Which engine makes which channel, and that a channel's viewers notice nothing when another one does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from fakes import FPS, HEIGHT, WIDTH, test_frame
from test_channel import Sink
from test_registry import turns

from engine.wire.messages import (
    ChannelClosed,
    ChannelOpened,
    ChannelReleased,
    ChunkDone,
    CloseChannel,
    FramesReady,
    OpenChannel,
    Paused,
    PromptSet,
    Ready,
    ReleaseChannel,
    SetPrompt,
)
from engine.wire.ring import RingConfig, RingReader
from engine.wire.settings import ChannelSettings, EngineSettings
from streaming.channels.channel import Channel
from streaming.channels.registry import Channels
from streaming.engines import link
from streaming.engines.pool import EnginePool
from streaming.errors import Unavailable
from streaming.media.metrics import Metrics

READY = Ready(WIDTH, HEIGHT, FPS, 1.0, "mini", 4)


class Site:
    """A registry with engines that do what the test says."""

    def __init__(self, engines: int) -> None:
        self.metrics = Metrics()
        self.pool = EnginePool(EngineSettings("mini", picture=None), self.metrics, engines)
        self.channels = Channels(self.pool, self.metrics)
        self.rings = [RingReader(RingConfig(slots=4, slot_bytes=9 * WIDTH * HEIGHT * 3 // 2)) for _ in self.pool.links]
        self.writers = [ring.writer() for ring in self.rings]
        self.sent: list[list[object]] = [[] for _ in self.pool.links]

    def begin(self, name: str) -> Channel:
        self.channels.begin(name, ChannelSettings(name))
        return self.channels[name]

    def ready(self, number: int) -> None:
        """An engine's process is there and warm."""
        self.pool.links[number].attach(self.rings[number], self.sent[number].append)
        self.pool.links[number].receive(READY)
        self.pool.came(self.pool.links[number])

    def render(self, number: int, name: str, index: int, frames: int) -> int:
        """An engine makes frames; returns the slot."""
        slot = self.writers[number].acquire()
        assert slot is not None
        self.writers[number].write(slot, np.stack([test_frame(index + step) for step in range(frames)]))
        self.pool.links[number].receive(FramesReady(name, slot, index, 0, frames))
        return slot

    def release(self, number: int, name: str) -> None:
        """An engine answers that it makes a channel no more, and that its slots are free."""
        assert ReleaseChannel(name) in self.sent[number]
        self.pool.links[number].receive(ChannelReleased(name))
        assert self.sent[number][-1] == CloseChannel(name)
        self.pool.links[number].receive(ChannelClosed(name))

    def opened(self, number: int) -> list[str]:
        return [message.channel for message in self.sent[number] if isinstance(message, OpenChannel)]

    def made(self) -> list[list[str]]:
        """Names of channels by engine."""
        return [sorted(channel.id for channel in one.channels) for one in self.pool.links]


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site(2)
    task = asyncio.create_task(made.channels.run())
    await asyncio.sleep(0)
    yield made
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    for ring in made.rings:
        ring.close()


async def test_channels_are_spread(site: Site) -> None:
    """Before any engine is warm each gets as many as another; then those that run do, the least loaded first."""
    for name in "abc":
        site.begin(name)
    assert site.made() == [["a", "c"], ["b"]]
    site.ready(0)
    assert site.pool.choose() is site.pool.links[0]
    site.ready(1)
    assert site.pool.choose() is site.pool.links[1] and site.opened(0) == ["a", "c"] and site.opened(1) == ["b"]
    assert len({channel.area for channel in site.channels.values()}) == 3
    # One that runs counts more than two that stand.
    site.render(1, "b", 0, 4)
    site.channels["b"].join(Sink(), "vp8", False)
    assert site.pool.choose() is site.pool.links[0]
    assert b"landiff_engine_ready 2.0" in site.metrics.text()


async def test_a_lost_engine_s_channels_go_on_elsewhere(site: Site) -> None:
    """At once where another engine runs, behind the frames that are there; else when one does."""
    channel = site.begin("a")
    site.ready(0)
    site.render(0, "a", 0, 4)
    site.pool.links[0].receive(ChannelOpened("a"))
    site.pool.links[0].detach("it crashed", final=False)
    site.pool.lost(site.pool.links[0])
    assert site.made() == [["a"], []] and channel.report().state == "restarting"
    site.ready(1)
    assert site.made() == [[], ["a"]] and channel.report().state == "idle"
    (opened,) = (message for message in site.sent[1] if isinstance(message, OpenChannel))
    assert opened.settings.start.frame == 4 and opened.settings.start.goes_on
    assert b"landiff_engine_ready 1.0" in site.metrics.text()


async def test_an_engine_that_loads_keeps_its_channels(site: Site) -> None:
    """Its process was told of them: another engine, warm before it, gets them only if it ends."""
    channel = site.begin("a")
    site.ready(0)
    loading = site.pool.links[0]
    for _ in range(2):
        loading.detach("it crashed", final=False)
        site.pool.lost(loading)
        loading.attach(site.rings[0], site.sent[0].append)
    site.ready(1)
    assert site.made() == [["a"], []] and site.opened(1) == []
    loading.receive(READY)
    site.pool.came(loading)
    loading.receive(ChannelOpened("a"))
    assert site.made() == [["a"], []] and channel.report().state == "idle"
    loading.detach("it crashed", final=False)
    site.pool.lost(loading)
    assert site.made() == [[], ["a"]] and site.opened(1) == ["a"]


async def test_an_engine_that_is_given_up_keeps_no_channel(site: Site) -> None:
    """Its channels wait for an engine that starts rather than stay with it."""
    site.begin("a")
    site.pool.links[0].detach("no weights", final=True)
    site.pool.lost(site.pool.links[0])
    assert site.made() == [[], ["a"]]
    site.pool.links[1].detach("no weights", final=True)
    site.pool.lost(site.pool.links[1])
    assert site.made() == [[], ["a"]] and site.channels["a"].report().error == "no weights"


async def test_a_new_engine_takes_its_share(site: Site) -> None:
    """Channels move to it until none has two more than another; each when its engine has written it down."""
    for name in "abcd":
        site.begin(name)
    site.ready(1)
    site.pool.links[1].detach("it crashed", final=False)
    site.ready(0)
    assert site.made() == [["a", "b", "c", "d"], []]
    site.ready(1)
    moved = [message.channel for message in site.sent[0] if isinstance(message, ReleaseChannel)]
    assert len(moved) == 2 and site.made() == [["a", "b", "c", "d"], []]
    for name in moved:
        site.release(0, name)
    assert site.made()[1] == sorted(moved) and site.opened(1)[2:] == moved


async def test_a_move_costs_no_frame(site: Site) -> None:
    """Frames that are there stay though their slots are filled anew; what was not answered is asked of the other."""
    channel = site.begin("a")
    site.ready(0)
    site.ready(1)
    site.render(0, "a", 0, 4)
    site.pool.links[0].receive(ChannelOpened("a"))
    asking = asyncio.create_task(channel.change("the sea", "flow"))
    await turns()
    site.pool.drain(site.pool.links[0])
    later = asyncio.create_task(channel.change(None, "flow", 5))
    await turns()
    slot = site.render(0, "a", 4, 4)
    site.pool.links[0].receive(ChannelReleased("a"))
    site.writers[0].release([slot])
    site.writers[0].write(site.writers[0].acquire() or 0, np.zeros((4, HEIGHT * 3 // 2, WIDTH), np.uint8))
    site.pool.links[0].receive(ChannelClosed("a"))
    assert site.made() == [[], ["a"]] and Paused("a", False) not in site.sent[1]
    # Both asked for one change, which the other engine answers.
    (asked,) = (message for message in site.sent[1] if isinstance(message, SetPrompt))
    assert (asked.prompt, asked.seed) == ("the sea", 5)
    site.pool.links[1].receive(ChannelOpened("a", went_on=True))
    site.pool.links[1].receive(PromptSet(asked.request, "a", "the sea", 24))
    assert (await later).frame == 24 and (await asking).replaced_by == "the sea"
    site.render(1, "a", 8, 4)
    frames = channel._playout.frames
    for index in range(12):
        number, frame, _ = frames.take()
        assert number == index and (frame == test_frame(index)).all()


async def test_a_viewer_moves_a_channel_to_where_there_is_room(site: Site) -> None:
    """Its own engine would be too slow; where every engine would be, the viewer is refused."""
    for name in "abc":
        site.begin(name)
    site.ready(0)
    site.ready(1)
    assert site.made() == [["a", "c"], ["b"]]
    site.render(0, "a", 0, 1)
    site.pool.links[0].receive(ChunkDone("a", 0, 4, 3.0, 3.0 / 2, {}, (1,)))
    site.channels["a"].join(Sink(), "vp8", False)
    site.channels["c"].check()
    site.release(0, "c")
    assert site.made() == [["a"], ["b", "c"]]
    site.render(1, "b", 0, 1)
    site.pool.links[1].receive(ChunkDone("b", 0, 4, 3.0, 3.0 / 2, {}, (1,)))
    site.channels["b"].join(Sink(), "vp8", False)
    with pytest.raises(Unavailable, match="each of them would have"):
        site.channels["c"].check()


async def test_an_engine_that_cannot_write_is_not_waited_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that hangs holds a channel up for a moment; its late answer changes nothing."""
    monkeypatch.setattr(link, "RELEASE_S", 0.01)
    site.begin("a")
    site.ready(0)
    site.ready(1)
    site.pool.move(site.channels["a"])
    site.pool.move(site.channels["a"])
    assert site.sent[0].count(ReleaseChannel("a")) == 1
    async with asyncio.timeout(5):
        while CloseChannel("a") not in site.sent[0]:  # noqa: ASYNC110 - the engine is told, nobody else
            await asyncio.sleep(0.01)
    made = site.made()
    site.pool.links[0].receive(ChannelReleased("a"))
    site.pool.links[0].receive(ChannelClosed("a"))
    assert site.made() == made


async def test_a_channel_ends_on_its_way(site: Site) -> None:
    """It is in no engine then."""
    channel = site.begin("a")
    site.ready(0)
    site.ready(1)
    site.pool.drain(site.pool.links[0])
    ending = asyncio.create_task(site.channels.end(channel))
    await turns()
    site.pool.links[0].receive(ChannelReleased("a"))
    site.pool.links[0].receive(ChannelClosed("a"))
    await ending
    assert site.made() == [[], []] and site.opened(1) == []


async def test_another_picture_is_refused(site: Site) -> None:
    """An engine whose video has another size cannot go on with the channels of the others."""
    site.ready(0)
    site.pool.links[1].attach(site.rings[1], site.sent[1].append)
    with pytest.raises(ValueError, match="viewers watch"):
        site.pool.links[1].receive(Ready(WIDTH, 2 * HEIGHT, FPS, 1.0, "mini", 4))


async def test_one_engine_chooses_the_pictures(site: Site) -> None:
    """The others wait for it, or take its place when it cannot start, and are told what it chose."""
    first, second = site.pool.links
    await site.pool.turn(first)
    waiting = asyncio.create_task(site.pool.turn(second))
    await turns()
    assert not waiting.done()
    first.detach("no weights", final=True)
    site.pool.lost(first)
    await waiting
    second.attach(site.rings[1], site.sent[1].append)
    second.receive(replace(READY, picture="large"))
    site.pool.came(second)
    assert site.pool.add().settings.picture == "large"
    await site.pool.turn(site.pool.links[2])

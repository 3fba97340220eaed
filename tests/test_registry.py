import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from fakes import FPS, HEIGHT, WIDTH
from test_channel import Sink

from engine.wire.messages import (
    ChannelClosed,
    ChannelOpened,
    ChannelRefused,
    ChunkDone,
    CloseChannel,
    DiscardPlan,
    FramesReady,
    LookAhead,
    OpenChannel,
    Paused,
    PlanAhead,
    PlannedPart,
    Ready,
)
from engine.wire.ring import MOST_CHANNELS, RingConfig, RingReader
from engine.wire.settings import ChannelSettings, ChannelStart, EngineSettings, Fork
from engine.wire.state_folder import JOURNAL, SNAPSHOTS, STATE, channel_folder
from streaming.channels.channel import Channel
from streaming.channels.prompts import RequestRefused
from streaming.channels.registry import ChannelExists, Channels
from streaming.engines.pool import EnginePool
from streaming.errors import Unavailable
from streaming.media.metrics import Metrics

SETTINGS = ChannelSettings("first")


async def turns() -> None:
    """Lets tasks do all that they can do now."""
    for _ in range(10):
        await asyncio.sleep(0)


class House:
    """A registry with an engine that does what the test says."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.pool = EnginePool(EngineSettings("mini"), self.metrics)
        (self.engine,) = self.pool.links
        self.channels = Channels(self.pool, self.metrics)
        self.sent: list[object] = []
        self.ring = RingReader(RingConfig(slots=4, slot_bytes=9 * WIDTH * HEIGHT * 3 // 2))
        self.channels.begin("main", SETTINGS)
        self.engine.attach(self.ring, self.sent.append)
        self.engine.receive(Ready(WIDTH, HEIGHT, FPS, 1.0, "mini", 4))

    async def create(self, name: str) -> Channel:
        making = asyncio.create_task(self.channels.create(name, SETTINGS))
        await asyncio.sleep(0)
        assert making.done() or self.sent[-1] == OpenChannel(name, SETTINGS, self.channels[name].area)
        if not making.done():
            self.engine.receive(ChannelOpened(name))
        return await making

    def run(self, name: str, factor: float) -> None:
        """A viewer watches the channel, which takes 1 / factor seconds of computing a second."""
        slot = self.ring.writer().acquire()
        assert slot is not None
        self.engine.receive(FramesReady(name, slot, 0, 0, 1))
        self.engine.receive(ChunkDone(name, 0, 4, 3.0, 3.0 / factor, {}, (1,)))
        self.channels[name].join(Sink(), "vp8", False)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    made = House()
    task = asyncio.create_task(made.channels.run())
    await asyncio.sleep(0)
    yield made
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    made.ring.close()


async def test_channels_begin_and_end(house: House) -> None:
    """A new channel is there when the engine made it; one that ended is nowhere, and its id can be taken again."""
    before = len(asyncio.all_tasks())
    channel = await house.create("second")
    assert list(house.channels) == ["main", "second"] and house.channels["second"] is channel
    with channel.events.listen("test") as listener:
        ending = asyncio.create_task(house.channels.end(channel))
        await turns()
        assert listener.ended and house.sent[-1] == CloseChannel("second")
        # What the engine said before it read that is passed over.
        house.engine.receive(ChunkDone("second", 0, 4, 3.0, 1.0, {}, (1,)))
        with pytest.raises(ChannelExists):
            await house.create("second")
        house.engine.receive(ChannelClosed("second"))
        await ending
    assert list(house.channels) == ["main"] and len(asyncio.all_tasks()) == before
    assert b'channel="second"' not in house.metrics.text()
    with pytest.raises(ValueError, match="no such channel"):
        house.engine.receive(ChunkDone("second", 0, 4, 3.0, 1.0, {}, (1,)))
    with pytest.raises(Unavailable, match="ended"):
        channel.join(Sink(), "vp8", False)
    await house.create("second")


async def test_an_id_is_taken_once(house: House) -> None:
    """A second channel of the same id is refused, and the first one stays."""
    first = house.channels["main"]
    with pytest.raises(ChannelExists, match="'main'"):
        await house.create("main")
    assert house.channels["main"] is first


async def test_what_the_engine_refuses_leaves_nothing(house: House) -> None:
    """Its reason reaches who asked; so does the end of the engine meanwhile."""
    making = asyncio.create_task(house.channels.create("second", SETTINGS))
    await asyncio.sleep(0)
    house.engine.receive(ChannelRefused("second", "no such steps"))
    await turns()
    house.engine.receive(ChannelClosed("second"))
    with pytest.raises(RequestRefused, match="no such steps"):
        await making
    making = asyncio.create_task(house.channels.create("second", SETTINGS))
    await asyncio.sleep(0)
    house.engine.detach("it crashed", final=False)
    with pytest.raises(Unavailable, match="stopped"):
        await making
    assert list(house.channels) == ["main"]
    with pytest.raises(Unavailable, match="it crashed"):
        await house.create("second")


async def test_nobody_joins_before_the_engine_agreed(house: House) -> None:
    """A channel that may be refused has no viewers yet, who would stay when it is."""
    making = asyncio.create_task(house.channels.create("second", SETTINGS))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="being made"):
        house.channels["second"].check()
    house.engine.receive(ChannelOpened("second"))
    (await making).check()


async def test_an_ended_channel_leaves_another_of_its_id_alone(house: House) -> None:
    """Who leaves the old one late, or ends it again, changes nothing of the new one, nor tells the engine."""
    old, sink = await house.create("second"), Sink()
    slot = house.ring.writer().acquire()
    assert slot is not None
    house.engine.receive(FramesReady("second", slot, 0, 0, 1))
    old.join(sink, "vp8", False)
    ending = asyncio.create_task(house.channels.end(old))
    await turns()
    house.engine.receive(ChannelClosed("second"))
    await ending
    new = await house.create("second")
    told = len(house.sent)
    old.leave(sink)
    assert len(house.sent) == told
    await house.channels.end(old)
    assert len(house.sent) == told and house.channels["second"] is new


async def test_the_number_of_channels_is_bounded(house: House) -> None:
    """One more than the ring has room for is refused."""
    for number in range(MOST_CHANNELS - 1):
        await house.create(f"channel-{number}")
    with pytest.raises(Unavailable, match=f"There are {MOST_CHANNELS} channels"):
        await house.create("more")


async def test_channels_that_run_share_the_machine(house: House) -> None:
    """A channel is refused, and its first viewer too, where each would have less than 1.2 of real time."""
    await house.create("second")
    third = await house.create("third")
    house.run("main", 2.5)
    third.check()
    house.run("second", 2.5)
    for refused in (house.create("more"), asyncio.to_thread(third.check)):
        with pytest.raises(Unavailable, match=r"run: 2\. .* renders 2\.50 s .* would have 0\.83"):
            await refused
    # Those that run already take more viewers.
    house.channels["second"].check()
    assert Paused("second", False) in house.sent


async def test_a_slow_machine_still_has_one_channel(house: House) -> None:
    """The only channel that runs is never refused."""
    house.run("main", 0.5)
    house.channels["main"].check()
    with pytest.raises(Unavailable, match="would have 0.25"):
        await house.create("second")


async def test_a_channel_that_ends_while_no_engine_runs_stays_gone(house: House, tmp_path: Path) -> None:
    """The server removes its state, which no engine does then: another server does not go on with it."""
    house.pool.settings = EngineSettings("mini", state=str(tmp_path))
    channel = await house.create("second")
    for name in (STATE, *SNAPSHOTS, JOURNAL):
        (channel_folder(tmp_path, "second") / name).parent.mkdir(exist_ok=True)
        (channel_folder(tmp_path, "second") / name).touch()
    house.engine.detach("it crashed", final=False)
    await house.channels.end(channel)
    assert [path.name for path in (tmp_path / "second").iterdir()] == [JOURNAL]


async def test_requests_that_wait_for_their_turn_end_with_the_channel(house: House) -> None:
    """None of them reaches the engine, whose answer would name a channel that is gone and end it for all others."""
    channel = await house.create("second")
    asking = [asyncio.create_task(channel.plan.discard(100, None)) for _ in range(3)]
    await asyncio.sleep(0)
    channel.end()
    for request in asking:
        with pytest.raises(Unavailable, match="has ended"):
            await request
    ending = asyncio.create_task(house.channels.end(channel))
    await turns()
    house.engine.receive(ChannelClosed("second"))
    await ending
    with pytest.raises(Unavailable, match="has ended"):
        await channel.plan.parts()
    with pytest.raises(Unavailable, match="has ended"):
        house.engine.ask(channel, LookAhead("second"))
    assert [type(one) for one in house.sent if isinstance(one, DiscardPlan | LookAhead)] == [DiscardPlan]


async def test_a_plan_has_the_prompt_that_the_engine_knew(house: House) -> None:
    """A fork that is given no prompt of its own goes on under the one that was there."""
    fork = ChannelSettings(None, None, source=Fork("main", 3))
    making = asyncio.create_task(house.channels.create("fork", fork))
    await asyncio.sleep(0)
    house.engine.receive(ChannelOpened("fork", settings=ChannelSettings("a fish", 5, start=ChannelStart(24, 3))))
    channel = await making
    asking = asyncio.create_task(channel.plan.parts())
    await asyncio.sleep(0)
    house.engine.receive(PlanAhead("fork", (PlannedPart(24, 8, True, {}, None),)))
    assert [part.prompt for part in await asking] == ["a fish"]

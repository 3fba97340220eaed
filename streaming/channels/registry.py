"""All channels of the server: they begin and end here, and share what its engines can compute."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from engine.wire.kept_state import KeptState
from engine.wire.ring import MOST_CHANNELS
from engine.wire.settings import ChannelSettings, ChannelStart
from engine.wire.state_folder import forget
from engine.wire.state_memory import AREAS
from streaming.channels.channel import Channel
from streaming.engines.link import EngineLink
from streaming.engines.pool import EnginePool
from streaming.errors import Unavailable
from streaming.media.metrics import Metrics

LEAST_FACTOR = 1.2  # seconds of video a second that every channel that runs must have


class ChannelExists(Exception):
    """There is a channel of this id already."""


def go_on(kept: KeptState) -> ChannelSettings:
    """Settings of a channel that goes on where another server left it."""
    start = ChannelStart(kept.frame, kept.chunk, goes_on=True, from_disk=True)
    return ChannelSettings(kept.prompt, kept.seed, kept.steps, start)


class Channels(Mapping[str, Channel]):
    """Channels by id, each with a task that puts it on air."""

    def __init__(self, engines: EnginePool, metrics: Metrics) -> None:
        self._engines, self._metrics = engines, metrics
        self._channels: dict[str, Channel] = {}
        self._ending: dict[str, Channel] = {}  # which an engine may still name
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None  # while it runs
        self._load: float | None = None  # of a channel, measured last

    def __getitem__(self, name: str) -> Channel:
        return self._channels[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._channels)

    def __len__(self) -> int:
        return len(self._channels)

    async def run(self) -> None:
        """Puts all channels on air until cancelled, those too that come later."""
        async with asyncio.TaskGroup() as self._group:
            for channel in self._channels.values():
                self._put_on_air(channel)
            await asyncio.Event().wait()

    def begin(self, name: str, settings: ChannelSettings, left: Sequence[KeptState] = ()) -> None:
        """The channels that the server starts with: those that a server left, and one of this name in any case.

        The engines must be able to make them.
        """
        for one, of_one in {name: settings, **{kept.channel: go_on(kept) for kept in left}}.items():
            channel = self._new(one, of_one, self._engines.choose())
            channel.engine.open(channel)

    async def create(self, name: str, settings: ChannelSettings) -> Channel:
        """A new channel, which an engine has agreed to make.

        Raises ChannelExists for an id that is taken, Unavailable when there is no room for it or no engine,
        RequestRefused with the engine's reason.
        """
        if name in self._channels or name in self._ending:
            raise ChannelExists(f"There is a channel {name!r} already; choose another id.")
        if len(self._channels) + len(self._ending) >= MOST_CHANNELS:
            raise Unavailable(f"There are {MOST_CHANNELS} channels, which is the limit; delete one first.")
        engine = self._engines.choose()
        engine.check()
        self._check_room(engine)
        channel = self._new(name, settings, engine)
        try:
            await channel.open()
        except BaseException:
            await self.end(channel)
            raise
        return channel

    async def end(self, channel: Channel, last: Callable[[], Awaitable[None]] | None = None) -> None:
        """Takes a channel off the air and out of the engine; who receives it should be sent away before.

        `last` is what is to be done before another channel may have its id; its errors are the caller's.
        """
        if self._channels.get(channel.id) is not channel:
            # It has ended already, and another may have its id.
            return
        del self._channels[channel.id]
        self._ending[channel.id] = channel
        channel.end()
        if channel.load is not None:
            self._load = channel.load
        task = self._tasks.pop(channel.id, None)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        # Not before the task's end: the engine takes the slots back, which the task reads.
        try:
            await channel.engine.close(channel.id)
            if (state := self._engines.settings.state) is not None:
                # The engine does it too, but may have ended before.
                await asyncio.to_thread(forget, Path(state), channel.id)
            if last is not None:
                await last()
        finally:
            del self._ending[channel.id]
            self._metrics.forget(channel.id)

    def _new(self, name: str, settings: ChannelSettings, engine: EngineLink) -> Channel:
        metrics = self._metrics.channel(name)
        taken = {channel.area for channel in (*self._channels.values(), *self._ending.values())}
        area = min({*range(AREAS)} - taken)
        channel = self._channels[name] = Channel(name, settings, engine, metrics, admit=self._admit, area=area)
        if self._group is not None:
            self._put_on_air(channel)
        return channel

    def _put_on_air(self, channel: Channel) -> None:
        assert self._group is not None, "the registry runs"
        self._tasks[channel.id] = self._group.create_task(channel.run(), name=f"channel {channel.id}")

    def _admit(self, channel: Channel) -> None:
        """Has a channel that is to run made where there is room for it. Raises Unavailable where that is nowhere."""
        try:
            self._check_room(channel.engine)
        except Unavailable:
            other = self._engines.choose()
            if other is channel.engine or not other.running:
                raise
            self._check_room(other)
            self._engines.move(channel)

    def _check_room(self, engine: EngineLink) -> None:
        """Raises Unavailable where one more channel that runs in an engine would leave too little for each there."""
        running = [channel.load for channel in engine.staying if not channel.paused]
        if not running:
            # The only one gets all there is, be it enough or not.
            return
        known = [channel.load for channel in self._channels.values() if channel.load is not None]
        one = median(known) if known else self._load
        if one is None:
            raise Unavailable("It is not measured yet how fast this machine renders; try again in a moment.")
        shared = 1 / (sum(load or one for load in running) + one)
        if shared < LEAST_FACTOR:
            raise Unavailable(
                f"Channels that run: {len(running)}. This machine renders {1 / one:.2f} s of video a second; with one "
                f"more each of them would have {shared:.2f}, and at least {LEAST_FACTOR} is needed. Try again when "
                "fewer run."
            )

"""A channel's way on air: rendered frames wait for their time, and each is encoded once a codec when it comes.

A `Playout` lives in the server's event loop. Only `run` awaits encoders; everything else returns at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from engine.wire.frames import FrameBatch
from streaming.media.frame_queue import FrameQueue
from streaming.media.hub import Geometry, Hub, Picture, Sink
from streaming.media.metrics import ChannelMetrics
from streaming.media.pacer import Action, Pacer
from streaming.media.rate import Rung

STILL_EVERY_S = 1.0  # a video that is held sends its picture again: key frames may be asked for


class PlayoutOwner(Protocol):
    """Who is told what happens on air."""

    def shown(self, frame: int, freed: tuple[int, ...]) -> None:
        """This frame goes on air for the first time, and these slots of the ring are free."""
        ...

    def aired(self, frame: int) -> None:
        """This frame was sent, for the first time or again."""
        ...

    def clock_changed(self) -> None:
        """The media clock stands, or goes on."""
        ...


class Playout:
    """Frames that wait, the media clock, and the hubs with their sinks. The clock runs while somebody receives."""

    def __init__(
        self,
        start: int,
        metrics: ChannelMetrics,
        owner: PlayoutOwner,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The first frame has the number `start`."""
        self.frames = FrameQueue(start)
        self.on_air: Picture | None = None  # the last frame shown
        self.held = False
        self.pacer: Pacer | None = None
        self._metrics = metrics
        self._owner, self._clock = owner, clock
        self._geometry: Geometry | None = None
        self._hubs: dict[tuple[str, bool, Rung], Hub] = {}
        self._recorders: set[Sink] = set()  # sinks of the hubs where nobody watches
        self._still_s = float("-inf")  # when a held picture is sent again
        self._wake = asyncio.Event()

    def begin(self, frame: int) -> None:
        """The first frame has another number; none has come yet."""
        self.frames = FrameQueue(frame)

    def start(self, geometry: Geometry) -> None:
        """Makes the media clock, once the picture's size is known; later calls change nothing."""
        if self.pacer is None:
            self._geometry, self.pacer = geometry, Pacer(geometry.fps)

    @property
    def running(self) -> bool:
        """Whether the media clock runs."""
        return self.pacer is not None and self.pacer.due_s is not None

    @property
    def state(self) -> str:
        """`live`, `paused` by people, or `idle`, since nobody receives."""
        return "paused" if self.held else "live" if self.receivers else "idle"

    @property
    def buffered_s(self) -> float:
        return round(len(self.frames) / self.pacer.fps, 3) if self.pacer else 0.0

    @property
    def receivers(self) -> int:
        """Number of sinks that receive the video, viewers or not."""
        return sum(hub.sinks for hub in self._hubs.values())

    @property
    def viewers(self) -> int:
        """Number of viewers that receive the video."""
        return self.receivers - len(self._recorders)

    def join(self, sink: Sink, codec: str, marked: bool, viewer: bool = True, rung: Rung = Rung.HIGH) -> Hub:
        """Sends to `sink` from now on, a key frame first; without `viewer` it does not count as one.

        A sink that joined before changes over.
        """
        assert self._geometry is not None, "the video has started"
        for hub in self._hubs.values():
            hub.discard(sink)
        if (codec, marked, rung) not in self._hubs:
            self._hubs[codec, marked, rung] = Hub(codec, self._geometry, marked, self._metrics, self._clock, rung)
        hub = self._hubs[codec, marked, rung]
        hub.add(sink)
        if not viewer:
            self._recorders.add(sink)
        self._update_clock()
        return hub

    def leave(self, sink: Sink) -> None:
        """Stops sending to `sink`; idempotent."""
        for hub in self._hubs.values():
            hub.discard(sink)
        self._recorders.discard(sink)
        self._update_clock()

    def put(self, batch: FrameBatch, slot: int) -> tuple[int, ...]:
        """Frames were rendered; returns slots that are free.

        Raises ValueError when they do not follow the last ones.
        """
        freed = self.frames.put(batch, slot)
        assert self.pacer is not None, "an engine that sends frames was ready"
        if len(self.frames):
            self.pacer.arrive(self._clock())
        self._update_clock()
        return freed

    def hold(self, held: bool) -> None:
        """Stops the video at the frame on air, or lets it go on."""
        self.held = held
        self._update_clock()

    async def run(self) -> None:
        """Puts frames on air until cancelled; ends the hubs' threads then."""
        try:
            while True:
                await self._until_due()
                await self.step(self._clock())
        finally:
            for hub in self._hubs.values():
                hub.close()
            # Encoders take megabytes; the playout and its channel are a cycle, which goes later.
            self._hubs.clear()

    async def _until_due(self) -> None:
        due_s = self._still_s if self._stands else self.pacer.due_s if self.pacer else None
        with suppress(TimeoutError):
            async with asyncio.timeout(None if due_s is None else max(0.0, due_s - self._clock())):
                await self._wake.wait()
        self._wake.clear()

    @property
    def _stands(self) -> bool:
        """Whether people look at a picture that is held."""
        return self.held and not self.running and self.on_air is not None and self.receivers > 0

    async def step(self, now_s: float) -> None:
        """Puts a picture on air when one is due, or the last one again for a viewer who just joined."""
        if self.pacer is None:
            return
        if self.pacer.due_s is not None and now_s >= self.pacer.due_s:
            await self._tick(self.pacer, now_s)
        elif self.on_air is not None:
            again = self._stands and now_s >= self._still_s
            hubs = [hub for hub in self._hubs.values() if hub.joined or (again and hub.sinks)]
            if again:
                self._still_s = now_s + STILL_EVERY_S
            if hubs:
                await self._encode(hubs, self.on_air, self.pacer.stamp(now_s))

    async def _tick(self, pacer: Pacer, now_s: float) -> None:
        underruns, slips = pacer.underruns, pacer.slips
        tick = pacer.tick(now_s, len(self.frames))
        self._metrics.lateness_s.observe(tick.late_s)
        self._metrics.underruns.inc(pacer.underruns - underruns)
        self._metrics.slips.inc(pacer.slips - slips)
        if tick.action is Action.SHOW:
            index, i420, freed = self.frames.take()
            self.on_air = Picture(index, i420)
            self._owner.shown(index, freed)
            self._metrics.frames.inc()
        else:
            self._metrics.repeats.inc()
        assert self.on_air is not None, "the clock runs only when there is a picture"
        self._update_clock()
        await self._encode([hub for hub in self._hubs.values() if hub.sinks], self.on_air, tick.pts)
        self._owner.aired(self.on_air.index)

    async def _encode(self, hubs: list[Hub], picture: Picture, pts: int) -> None:
        await asyncio.gather(*(hub.encode(picture, pts) for hub in hubs))

    def _update_clock(self) -> None:
        """Runs the media clock while someone watches or records and there is something to see."""
        self._wake.set()
        if self.pacer is None:
            return
        ran = self.running
        # A video that is held before it began shows its first frame.
        held = self.held and self.on_air is not None
        if self.receivers and not held and (self.on_air is not None or len(self.frames)):
            self.pacer.resume(self._clock())
        else:
            self.pacer.pause()
        if self.running != ran:
            self._owner.clock_changed()

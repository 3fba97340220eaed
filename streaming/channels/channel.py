"""One endless video on air: ring to pacer to hubs, and what people ask of it.

A `Channel` lives in the server's event loop. The supervisor hands it a ring and the messages of each engine process;
viewers hand it sinks. Only `run` awaits encoders; everything else returns at once.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from engine.wire.frames import FrameChunk
from engine.wire.messages import (
    ChunkReady,
    EngineSettings,
    FromEngine,
    HopDone,
    Progress,
    PromptSet,
    Ready,
    Refused,
    SetPrompt,
    Shown,
    ToEngine,
)
from engine.wire.ring import ChunkQueue, RingReader
from streaming.channels.events import Broadcast, StateChanged, Unavailable
from streaming.channels.prompts import PromptBook
from streaming.channels.stats import ChannelReport, HopStats, Metrics
from streaming.media.hub import Geometry, Hub, Picture, Sink
from streaming.media.pacer import Action, Pacer


@dataclass(frozen=True, slots=True)
class PromptAnswer:
    """What a prompt change is answered with."""

    prompt: str
    frame: int  # first frame under the prompt
    eta_s: float  # until that frame is on air, if someone watches and the video does not stall


class Channel:
    """The channel of one engine process after another; `settings` are those of the first."""

    def __init__(self, settings: EngineSettings, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self.id = settings.channel
        self.events = Broadcast()
        self._first = settings
        self._metrics = metrics
        self._clock = clock
        self._engine = "starting"  # starting, running, restarting or failed
        self._error: str | None = None
        self._progress: str | None = None
        self._ready: Ready | None = None
        self._pacer: Pacer | None = None
        self._ring: RingReader | None = None
        self._send: Callable[[ToEngine], None] | None = None
        self._chunks = ChunkQueue(settings.first_frame)
        self._next_hop = settings.first_hop
        self._on_air: Picture | None = None
        self._hubs: dict[tuple[str, bool], Hub] = {}
        self._hops = HopStats()
        self._prompts = PromptBook(settings.prompt, settings.first_frame)
        self._wake = asyncio.Event()

    def settings(self) -> EngineSettings:
        """Settings for the next engine process: it goes on behind the frames that are already here."""
        return dataclasses.replace(
            self._first, prompt=self._prompts.newest, first_frame=self._chunks.end, first_hop=self._next_hop
        )

    def attach(self, ring: RingReader, send: Callable[[ToEngine], None]) -> None:
        """A new engine process writes to `ring` and hears what is given to `send`."""
        self._ring, self._send = ring, send

    def receive(self, message: FromEngine) -> None:
        """Takes one message of the engine. Raises ValueError when it breaks the protocol."""
        match message:
            case Progress():
                self._progress = f"{message.stage} {message.fraction:.0%}"
            case Ready():
                self._on_ready(message)
            case ChunkReady():
                self._on_chunk(message)
            case HopDone():
                self._on_hop(message)
            case PromptSet():
                self._prompts.accept(message)
            case Refused():
                self._prompts.refuse(message)
            case _:
                raise ValueError(f"the engine sent {message!r}, which a channel does not expect")
        self._changed()

    def detach(self, error: str, final: bool) -> None:
        """The engine process ended. Buffered frames still go on air, then the last one repeats."""
        self._engine, self._error, self._progress = ("failed" if final else "restarting"), error, None
        self._send = None
        self._chunks.forget_slots()
        self._prompts.interrupt(self._chunks.end)
        self._metrics.ready.set(0)
        self._changed()

    @property
    def ready(self) -> bool:
        """Whether the engine is warm and running."""
        return self._engine == "running"

    @property
    def was_ready(self) -> bool:
        """Whether an engine of this channel was ever ready."""
        return self._ready is not None

    @property
    def rate_bps(self) -> int:
        """Bit rate of the encoded video. Raises Unavailable before the first engine is ready."""
        return self._geometry().rate_bps

    @property
    def viewers(self) -> int:
        """How many sinks receive the video."""
        return sum(hub.sinks for hub in self._hubs.values())

    def join(self, sink: Sink, codec: str, marked: bool) -> Hub:
        """Sends to `sink` from now on, a key frame first. Raises Unavailable before the first engine is ready."""
        if (codec, marked) not in self._hubs:
            self._hubs[codec, marked] = Hub(codec, self._geometry(), marked, self._metrics, self._clock)
        hub = self._hubs[codec, marked]
        hub.add(sink)
        self._wind()
        self._changed()
        return hub

    def leave(self, sink: Sink) -> None:
        """Stops sending to `sink`; idempotent."""
        for hub in self._hubs.values():
            hub.discard(sink)
        self._wind()
        self._changed()

    async def set_prompt(self, prompt: str, mode: str) -> PromptAnswer:
        """Changes the prompt and answers with the first frame under it.

        Raises Unavailable when the engine is not running or stops meanwhile, PromptRefused when it refuses.
        """
        if self._send is None or not self.ready:
            raise Unavailable(self._error or "The engine is still starting; try again in a moment.")
        number, future = self._prompts.ask()
        self._send(SetPrompt(number, self.id, prompt, mode))
        answer = await future
        ahead = max(0, answer.frame - self._chunks.start)
        return PromptAnswer(answer.prompt, answer.frame, round(ahead / self._geometry().fps, 3))

    def report(self) -> ChannelReport:
        """The channel's state as one record."""
        ready, hop = self._ready, self._hops.last
        return ChannelReport(
            id=self.id,
            prompt=self._prompts.newest,
            seed=self._first.seed,
            preset=self._first.preset,
            width=ready.width if ready else None,
            height=ready.height if ready else None,
            fps=ready.fps if ready else None,
            state=("live" if self.viewers else "idle") if self.ready else self._engine,
            error=self._error,
            frame=self._on_air.index if self._on_air else None,
            buffered_s=self._buffered_s,
            viewers=self.viewers,
            repeats=self._pacer.repeats if self._pacer else 0,
            realtime_factor=self._hops.realtime_factor,
            steps=hop.steps if hop else ready.steps if ready else None,
            progress=self._progress,
            hop=self._hops.report(),
            prompts=self._prompts.report(),
        )

    async def run(self) -> None:
        """Puts frames on air until cancelled; ends the hubs' threads then."""
        try:
            while True:
                await self._until_due()
                await self._step(self._clock())
        finally:
            for hub in self._hubs.values():
                hub.close()

    async def _until_due(self) -> None:
        due_s = self._pacer.due_s if self._pacer else None
        with suppress(TimeoutError):
            async with asyncio.timeout(None if due_s is None else max(0.0, due_s - self._clock())):
                await self._wake.wait()
        self._wake.clear()

    async def _step(self, now_s: float) -> None:
        """Puts a picture on air when one is due, or the last one again for a viewer who just joined."""
        if self._pacer is None or self._pacer.due_s is None:
            return
        if now_s >= self._pacer.due_s:
            await self._tick(self._pacer, now_s)
        elif self._on_air is not None:
            joined = [hub for hub in self._hubs.values() if hub.joined]
            if joined:
                await self._encode(joined, self._on_air, self._pacer.stamp(now_s))

    async def _tick(self, pacer: Pacer, now_s: float) -> None:
        underruns, slips = pacer.underruns, pacer.slips
        tick = pacer.tick(now_s, len(self._chunks))
        self._metrics.lateness_s.observe(tick.late_s)
        self._metrics.underruns.inc(pacer.underruns - underruns)
        self._metrics.slips.inc(pacer.slips - slips)
        if tick.action is Action.SHOW:
            index, i420, freed = self._chunks.take()
            self._on_air = Picture(index, i420)
            if self._send is not None:
                self._send(Shown(self.id, index + 1, freed))
            self._metrics.frames.inc()
        else:
            self._metrics.repeats.inc()
        assert self._on_air is not None, "the clock runs only when there is a picture"
        await self._encode([hub for hub in self._hubs.values() if hub.sinks], self._on_air, tick.pts)
        for event in self._prompts.show(self._on_air.index):
            self.events.publish(event)

    async def _encode(self, hubs: list[Hub], picture: Picture, pts: int) -> None:
        await asyncio.gather(*(hub.encode(picture, pts) for hub in hubs))

    def _on_ready(self, ready: Ready) -> None:
        if self._ready is not None and (self._ready.width, self._ready.height, self._ready.fps) != (
            ready.width,
            ready.height,
            ready.fps,
        ):
            raise ValueError(f"the engine came back as {ready}; viewers watch {self._ready}")
        self._ready = ready
        self._pacer = self._pacer or Pacer(self._geometry().fps)
        self._engine, self._error, self._progress = "running", None, None
        self._metrics.ready.set(1)

    def _on_chunk(self, message: ChunkReady) -> None:
        if self._pacer is None or self._ready is None or self._ring is None:
            raise ValueError(f"the engine sent {message} before it was ready")
        view = self._ring.frames(message.slot, message.frames, self._ready.height, self._ready.width)
        self._chunks.put(FrameChunk(message.index, message.hop, view, message.created_s), message.slot)
        self._next_hop = message.hop + 1
        self._pacer.arrive(self._clock())
        self._wind()

    def _on_hop(self, hop: HopDone) -> None:
        self._hops.add(hop)
        self._metrics.hop_s.observe(hop.compute_s)
        self._metrics.realtime_factor.set(self._hops.realtime_factor or 0)

    def _geometry(self) -> Geometry:
        if self._ready is None:
            raise Unavailable("The channel has no video yet.")
        return Geometry(self._ready.width, self._ready.height, self._ready.fps)

    @property
    def _buffered_s(self) -> float:
        return round(len(self._chunks) / self._ready.fps, 3) if self._ready else 0.0

    def _wind(self) -> None:
        """Runs the media clock while someone watches and there is something to see."""
        if self._pacer is None:
            return
        if self.viewers and (self._on_air is not None or len(self._chunks)):
            self._pacer.resume(self._clock())
        else:
            self._pacer.pause()

    def _changed(self) -> None:
        self._metrics.viewers.set(self.viewers)
        self._metrics.buffered_s.set(self._buffered_s)
        self._wake.set()
        self.events.publish(StateChanged())

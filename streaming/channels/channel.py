"""One endless video on air: frames from the engine to the pacer to the hubs, and what people ask of it.

A `Channel` lives in the server's event loop. The engine's link hands it messages, viewers hand it sinks. Only `run`
awaits encoders; everything else returns at once.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from engine.wire.frames import FrameBatch
from engine.wire.messages import (
    ChannelMessage,
    ChunkDone,
    FramesReady,
    PromptReplaced,
    PromptSet,
    Refused,
    SetPrompt,
    Shown,
)
from engine.wire.settings import ChannelSettings, ChannelStart
from streaming.channels.events import Broadcast, Event, StateChanged
from streaming.channels.prompts import PromptBook
from streaming.channels.report import ChannelReport, ChunkStats
from streaming.engines.link import EngineLink
from streaming.errors import Unavailable
from streaming.media.frame_queue import FrameQueue
from streaming.media.hub import Geometry, Hub, Picture, Sink
from streaming.media.metrics import ChannelMetrics
from streaming.media.pacer import Action, Pacer

REPORT_S = 0.1  # a report that is kept is at most so old


@dataclass(frozen=True, slots=True)
class PromptAnswer:
    """The answer to a prompt change."""

    prompt: str
    frame: int | None  # first frame under the prompt; None if another replaced it before it had one
    eta_s: float | None  # until that frame is on air, if someone watches and the video does not stall
    replaced_by: str | None  # the prompt that came in its place: this one is never shown
    unread: tuple[str, ...]  # words of it that the model does not read


class Channel:
    """A video that goes on over crashes of the engine; `settings` are those that it begins with."""

    def __init__(
        self,
        name: str,
        settings: ChannelSettings,
        engine: EngineLink,
        metrics: ChannelMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.id = name
        self.events = Broadcast()
        self._first = settings
        self._engine = engine
        self._metrics = metrics
        self._clock = clock
        self._pacer: Pacer | None = None
        self._frames = FrameQueue(settings.start.frame)
        self._next_chunk = settings.start.chunk
        self._on_air: Picture | None = None
        self._hubs: dict[tuple[str, bool], Hub] = {}
        self._recorders: set[Sink] = set()  # sinks of the hubs where nobody watches
        self._chunks = ChunkStats()
        self._prompts = PromptBook(settings.prompt, settings.start.frame)
        self._wake = asyncio.Event()
        self._report_json, self._reported_s = "", float("-inf")

    def settings(self) -> ChannelSettings:
        """Settings for the next engine process: it goes on behind the frames that are already here."""
        start = ChannelStart(self._frames.end, self._next_chunk)
        return dataclasses.replace(self._first, prompt=self._prompts.newest, start=start)

    def receive(self, message: ChannelMessage) -> None:
        """Takes one message of the engine. Raises ValueError when it breaks the protocol."""
        match message:
            case FramesReady():
                self._on_frames(message)
            case ChunkDone():
                self._on_chunk(message)
            case PromptSet():
                self._prompts.accept(message)
            case PromptReplaced():
                self._publish(self._prompts.replace(message))
            case Refused():
                self._prompts.refuse(message)
        self._send_prompt()
        self._changed()

    def engine_changed(self) -> None:
        """The engine's status is another; with the first process that is ready the media clock is made."""
        if self._engine.ready is not None and self._pacer is None:
            self._pacer = Pacer(self._geometry().fps)
        self._changed()

    def interrupted(self) -> None:
        """The engine process ended. Buffered frames still go on air, then the last one repeats."""
        self._frames.forget_slots()
        reason = "The engine stopped before it took the prompt; try again."
        self._publish(self._prompts.interrupt(self._frames.end, reason))

    @property
    def rate_bps(self) -> int:
        """Bit rate of the encoded video. Raises Unavailable before the first engine is ready."""
        return self._geometry().rate_bps

    @property
    def on_air(self) -> Picture | None:
        """The frame on air, or the last one that was; None before the first."""
        return self._on_air

    @property
    def receivers(self) -> int:
        """Number of sinks that receive the video, viewers or not."""
        return sum(hub.sinks for hub in self._hubs.values())

    @property
    def viewers(self) -> int:
        """Number of viewers that receive the video."""
        return self.receivers - len(self._recorders)

    def join(self, sink: Sink, codec: str, marked: bool, viewer: bool = True) -> Hub:
        """Sends to `sink` from now on, a key frame first; without `viewer` it does not count as one.

        Raises Unavailable before the first engine is ready.
        """
        if (codec, marked) not in self._hubs:
            self._hubs[codec, marked] = Hub(codec, self._geometry(), marked, self._metrics, self._clock)
        hub = self._hubs[codec, marked]
        hub.add(sink)
        if not viewer:
            self._recorders.add(sink)
        self._update_clock()
        self._changed()
        return hub

    def leave(self, sink: Sink) -> None:
        """Stops sending to `sink`; idempotent."""
        for hub in self._hubs.values():
            hub.discard(sink)
        self._recorders.discard(sink)
        self._update_clock()
        self._changed()

    async def set_prompt(self, prompt: str, mode: str) -> PromptAnswer:
        """Changes the prompt and answers with the first frame under it.

        Raises Unavailable when the engine is not running or stops meanwhile, PromptRefused when it refuses.
        """
        self._engine.check()
        future = self._prompts.ask(prompt, mode)
        self._send_prompt()
        report = await future
        eta_s = None
        if report.frame is not None and report.replaced_by is None:
            eta_s = round(max(0, report.frame - self._frames.start) / self._geometry().fps, 3)
        return PromptAnswer(report.prompt, report.frame, eta_s, report.replaced_by, report.unread)

    def report(self) -> ChannelReport:
        """The channel's state as one record."""
        engine, ready, chunk = self._engine, self._engine.ready, self._chunks.last
        return ChannelReport(
            id=self.id,
            prompt=self._prompts.newest,
            seed=self._first.seed,
            preset=engine.settings.preset,
            width=ready.width if ready else None,
            height=ready.height if ready else None,
            fps=ready.fps if ready else None,
            state=("live" if self.receivers else "idle") if engine.running else engine.status.value,
            error=engine.error,
            frame=self._on_air.index if self._on_air else None,
            buffered_s=self._buffered_s,
            viewers=self.viewers,
            repeats=self._pacer.repeats if self._pacer else 0,
            realtime_factor=self._chunks.realtime_factor,
            steps=chunk.steps if chunk else self._first.steps or (ready.steps if ready else None),
            progress=engine.progress,
            chunk=self._chunks.report(),
            prompts=self._prompts.report(),
        )

    def report_json(self) -> str:
        """The report as JSON: made once after a change for all listeners, and anew when it is older than REPORT_S."""
        now_s = self._clock()
        if now_s - self._reported_s >= REPORT_S:
            self._report_json, self._reported_s = json.dumps(dataclasses.asdict(self.report())), now_s
        return self._report_json

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
        tick = pacer.tick(now_s, len(self._frames))
        self._metrics.lateness_s.observe(tick.late_s)
        self._metrics.underruns.inc(pacer.underruns - underruns)
        self._metrics.slips.inc(pacer.slips - slips)
        if tick.action is Action.SHOW:
            index, i420, freed = self._frames.take()
            self._on_air = Picture(index, i420)
            self._engine.shown(Shown(self.id, index + 1, freed))
            self._metrics.frames.inc()
        else:
            self._metrics.repeats.inc()
        assert self._on_air is not None, "the clock runs only when there is a picture"
        await self._encode([hub for hub in self._hubs.values() if hub.sinks], self._on_air, tick.pts)
        self._publish(self._prompts.show(self._on_air.index))

    async def _encode(self, hubs: list[Hub], picture: Picture, pts: int) -> None:
        await asyncio.gather(*(hub.encode(picture, pts) for hub in hubs))

    def _send_prompt(self) -> None:
        request = self._prompts.next()
        if request is not None:
            self._engine.send(SetPrompt(request.number, self.id, request.prompt, request.mode))

    def _publish(self, events: Sequence[Event]) -> None:
        for event in events:
            self.events.publish(event)

    def _on_frames(self, message: FramesReady) -> None:
        view = self._engine.frames(message)
        self._frames.put(FrameBatch(message.index, message.chunk, view), message.slot)
        self._next_chunk = message.chunk + 1
        assert self._pacer is not None, "an engine that sends frames was ready"
        self._pacer.arrive(self._clock())
        self._update_clock()

    def _on_chunk(self, chunk: ChunkDone) -> None:
        self._chunks.add(chunk)
        self._metrics.chunk_s.observe(chunk.compute_s)
        self._metrics.realtime_factor.set(self._chunks.realtime_factor or 0)

    def _geometry(self) -> Geometry:
        ready = self._engine.ready
        if ready is None:
            raise Unavailable("The channel has no video yet.")
        return Geometry(ready.width, ready.height, ready.fps)

    @property
    def _buffered_s(self) -> float:
        return round(len(self._frames) / self._pacer.fps, 3) if self._pacer else 0.0

    def _update_clock(self) -> None:
        """Runs the media clock while someone watches or records and there is something to see."""
        if self._pacer is None:
            return
        if self.receivers and (self._on_air is not None or len(self._frames)):
            self._pacer.resume(self._clock())
        else:
            self._pacer.pause()

    def _changed(self) -> None:
        self._metrics.viewers.set(self.viewers)
        self._metrics.buffered_s.set(self._buffered_s)
        self._wake.set()
        self._reported_s = float("-inf")
        self.events.publish(StateChanged())

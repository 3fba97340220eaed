"""One endless video on air: what the engine sends goes to the playout, and what people ask of it to the engine.

A `Channel` lives in the server's event loop. The engine's link hands it messages, viewers hand it sinks.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

from engine.wire.frames import FrameBatch
from engine.wire.messages import (
    ChannelMessage,
    ChannelOpened,
    ChannelRefused,
    ChunkDone,
    FramesDropped,
    FramesReady,
    JournalStopped,
    Paused,
    PromptReplaced,
    PromptSet,
    Refused,
    SetPrompt,
    Shown,
)
from engine.wire.settings import ChannelSettings
from streaming.channels.events import Broadcast, Event, StateChanged
from streaming.channels.opening import Opening
from streaming.channels.plan_book import PlanBook
from streaming.channels.playout import Playout
from streaming.channels.prompts import PromptBook, RequestRefused
from streaming.channels.report import ChangeAnswer, ChannelReport, ChunkStats, ReportText
from streaming.engines.link import EngineLink
from streaming.errors import Unavailable
from streaming.media.hub import Geometry, Hub, Picture, Sink
from streaming.media.metrics import ChannelMetrics
from streaming.media.rate import Rung


class Channel:
    """A video that goes on over crashes of the engine; `settings` are those that it begins with."""

    def __init__(
        self,
        name: str,
        settings: ChannelSettings,
        engine: EngineLink,
        metrics: ChannelMetrics,
        clock: Callable[[], float] = time.monotonic,
        admit: Callable[[Channel], None] = lambda channel: None,
        area: int = 0,
    ) -> None:
        """`admit` raises Unavailable where no engine can make one more video in real time; `area` is its own."""
        self.id, self.area = name, area
        self.events = Broadcast()
        self._first = settings
        self.engine, self._metrics = engine, metrics
        self._clock, self._admit = clock, admit
        self._playout = Playout(settings.start.frame, metrics, self, clock)
        self._next_chunk = settings.start.chunk
        self._opening = Opening(settings.start)
        self._ended = False
        self._chunks = ChunkStats()
        self._prompts = PromptBook.of(settings)
        self._no_journal: str | None = None  # why it is not written
        self.report_text = ReportText(self.report, clock)
        self.plan = PlanBook(name, lambda message: self.engine.ask(self, message), lambda: self._prompts, clock)
        self.engine_changed()

    def settings(self) -> ChannelSettings:
        """Settings for the next engine process: it goes on behind the frames that are already here."""
        if self._first.source is not None:
            return self._first  # nothing is known of it yet
        frames = self._playout.frames
        start = self._opening.start(frames.end, self._next_chunk, frames.start if len(frames) else None)
        newest = self._prompts.newest
        return dataclasses.replace(self._first, prompt=newest.prompt, seed=newest.seed, start=start)

    async def open(self) -> None:
        """Asks the engine for the video and waits for its answer.

        Raises RequestRefused with the reason when it cannot be made, Unavailable when the engine stops meanwhile.
        """
        answer = self._opening.ask()
        self.engine.open(self)
        await answer

    def receive(self, message: ChannelMessage) -> None:
        """Takes one message of the engine. Raises ValueError when it breaks the protocol."""
        match message:
            case ChannelOpened():
                self._on_open(message)
            case ChannelRefused():
                self._opening.settle(RequestRefused(message.reason))
            case FramesReady():
                self._on_frames(message)
            case ChunkDone():
                self._on_chunk(message)
            case FramesDropped():
                self._free(self._playout.frames.drop(message.frame))
            case PromptSet():
                self._publish(self._prompts.accept(message))
            case PromptReplaced():
                self._publish(self._prompts.replace(message))
            case Refused():
                self._prompts.refuse(message)
                self.plan.refuse(message)
            case JournalStopped():
                self._no_journal = message.reason
            case _:
                self.plan.receive(message)
        self._send_prompt()
        self._changed()

    def engine_changed(self) -> None:
        """The engine's status is another; with the first process that is ready the media clock is made."""
        if self.engine.ready is not None:
            self._playout.start(self._geometry())
        self._send_prompt()
        self._changed()

    def interrupted(self, released: bool = False, killed: bool = False) -> None:
        """The engine process ended, `killed` from outside, or `released` it. Buffered frames still go on air."""
        self._playout.frames.forget_slots(copied=released)
        self._opening.interrupt(killed)
        self._prompts.interrupt("The engine stopped before it took the prompt; try again.", again=released)
        self.plan.interrupt("The engine stopped before it answered; try again.")

    @property
    def paused(self) -> bool:
        """Whether the media clock stands."""
        return not self._playout.running

    @property
    def load(self) -> float | None:
        """Seconds of computing for a second of video; None before the first chunk."""
        factor = self._chunks.realtime_factor
        return 1 / factor if factor else None

    def rate_bps(self, rung: Rung = Rung.HIGH) -> int:
        """Bit rate of the encoded video. Raises Unavailable before the first engine is ready."""
        return self._geometry().rate_bps(rung)

    @property
    def on_air(self) -> Picture | None:
        """The frame on air, or the last one that was; None before the first."""
        return self._playout.on_air

    def check(self) -> None:
        """Raises Unavailable when nobody can join now."""
        self._geometry()
        if self._ended:
            raise Unavailable("The channel has ended.")
        self._opening.check()
        if self.paused and not self._playout.held:
            self._admit(self)

    def join(self, sink: Sink, codec: str, marked: bool, viewer: bool = True, rung: Rung = Rung.HIGH) -> Hub:
        """Sends to `sink` from now on, a key frame first; without `viewer` it does not count as one.

        A sink that joined before changes over. Raises Unavailable before the first engine is ready, and after the
        channel's end.
        """
        self._geometry()
        if self._ended:
            raise Unavailable("The channel has ended.")
        hub = self._playout.join(sink, codec, marked, viewer, rung)
        self._changed()
        return hub

    def leave(self, sink: Sink) -> None:
        """Stops sending to `sink`; idempotent."""
        self._playout.leave(sink)
        self._changed()

    def end(self) -> None:
        """The channel is no more: listeners are sent away, who waits for an answer gets Unavailable. Idempotent."""
        self._ended = True
        self.events.end()
        self._opening.settle(Unavailable("The channel has ended."))
        self._prompts.interrupt("The channel has ended.")
        self.plan.end()

    async def change(self, prompt: str | None, mode: str, seed: int | None = None) -> ChangeAnswer:
        """Changes prompt or seed, where given, and answers with the first frame under them, unless the next took it.

        Raises Unavailable when the engine is not running or stops meanwhile, RequestRefused when it refuses.
        """
        self.engine.check()
        self._opening.check()
        future = self._prompts.ask(prompt, mode, seed)
        self._send_prompt()
        report = await future
        if report.frame is None or report.replaced_by is not None:
            return report.answer(None, None)
        eta_s = max(0, report.frame - self._playout.frames.start) / self._geometry().fps
        return report.answer(report.frame, round(eta_s, 3))

    def pause(self, paused: bool | None) -> ChangeAnswer:
        """Stops the video at the frame on air for all who receive it, or lets it go on; None leaves it as it is.

        Raises Unavailable where the machine cannot make one more video.
        """
        if paused is not None and paused != self._playout.held:
            if not paused and self._playout.receivers:
                self._admit(self)
            self._playout.hold(paused)
            self._changed()
        picture = self._playout.on_air
        return self._prompts.newest.answer(picture.index if picture else None, 0.0)

    def report(self) -> ChannelReport:
        """The channel's state as one record."""
        engine, ready, chunk, air = self.engine, self.engine.ready, self._chunks.last, self._playout
        return ChannelReport(
            id=self.id,
            prompt=self._prompts.newest.prompt,
            seed=self._prompts.newest.seed,
            preset=engine.settings.preset,
            width=ready.width if ready else None,
            height=ready.height if ready else None,
            fps=ready.fps if ready else None,
            state=air.state if engine.running else engine.status.value,
            error=engine.error,
            frame=air.on_air.index if air.on_air else None,
            buffered_s=air.buffered_s,
            viewers=air.viewers,
            repeats=air.pacer.repeats if air.pacer else 0,
            realtime_factor=self._chunks.realtime_factor,
            steps=chunk.steps if chunk else self._first.steps or (ready.steps if ready else None),
            progress=engine.progress,
            chunk=self._chunks.report(),
            no_journal=self._no_journal,
            prompts=self._prompts.report(),
        )

    async def run(self) -> None:
        """Puts frames on air until cancelled."""
        await self._playout.run()

    def shown(self, frame: int, freed: tuple[int, ...]) -> None:
        """A frame goes on air for the first time; these slots of the ring are free."""
        self.engine.tell(self, Shown(self.id, frame + 1, freed))

    def aired(self, frame: int) -> None:
        """A frame was sent, for the first time or again."""
        self._publish(self._prompts.show(frame))

    def clock_changed(self) -> None:
        """The media clock stands, or goes on."""
        self.engine.tell(self, Paused(self.id, self.paused))

    def _send_prompt(self) -> None:
        request = self._prompts.next() if self.engine.makes(self) else None
        if request is not None:
            assert request.prompt is not None, "what is sent has a prompt"
            self.engine.ask(self, SetPrompt(request.number, self.id, request.prompt, request.mode, request.seed))

    def _publish(self, events: Sequence[Event]) -> None:
        for event in events:
            self.events.publish(event)

    def _on_open(self, message: ChannelOpened) -> None:
        if message.settings is not None:
            self._first, start = message.settings, message.settings.start
            self._playout.begin(start.frame)
            self._next_chunk = start.chunk
            self._prompts = PromptBook.of(message.settings)
        self._publish(self._prompts.read(message, self._playout.frames.end))
        self._opening.settle()

    def _on_frames(self, message: FramesReady) -> None:
        batch = FrameBatch(message.index, message.chunk, self.engine.frames(message))
        self._free(self._playout.put(batch, message.slot))
        self._next_chunk = message.chunk + 1

    def _free(self, slots: tuple[int, ...]) -> None:
        """Gives slots back whose frames are never shown."""
        if slots:
            self.engine.tell(self, Shown(self.id, self._playout.frames.start, slots))

    def _on_chunk(self, chunk: ChunkDone) -> None:
        self._chunks.add(chunk)
        self._metrics.chunk_s.observe(chunk.compute_s)
        self._metrics.realtime_factor.set(self._chunks.realtime_factor or 0)

    def _geometry(self) -> Geometry:
        ready = self.engine.ready
        if ready is None:
            raise Unavailable("The channel has no video yet.")
        return Geometry(ready.width, ready.height, ready.fps)

    def _changed(self) -> None:
        self._metrics.viewers.set(self._playout.viewers)
        self._metrics.buffered_s.set(self._playout.buffered_s)
        self.report_text.change()
        self.events.publish(StateChanged())

"""Figures of the server: the report that `GET /channels/main` gives, and the Prometheus metrics. No I/O.

Names carry units; times are seconds unless a name says milliseconds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from engine.wire.messages import HopDone

HOPS_KEPT = 8  # over which the real-time factor is taken


@dataclass(slots=True)
class PromptReport:
    """A prompt of the channel and the first frame under it."""

    prompt: str
    frame: int
    shown: bool


@dataclass(frozen=True, slots=True)
class HopReport:
    """The last finished hop: its number and milliseconds by stage."""

    index: int
    ms: dict[str, float]


@dataclass(frozen=True, slots=True)
class ChannelReport:
    """State of a channel as people and pages see it. Sizes are None before the engine is ready."""

    id: str
    prompt: str
    seed: int
    preset: str
    width: int | None
    height: int | None
    fps: float | None
    state: str  # starting, live, idle, restarting or failed
    error: str | None  # why it is restarting or failed
    frame: int | None  # number of the frame on air
    buffered_s: float
    viewers: int
    repeats: int
    realtime_factor: float | None
    steps: int | None
    progress: str | None  # what the engine is doing while starting
    hop: HopReport | None
    prompts: list[PromptReport]


@dataclass(slots=True)
class HopStats:
    """Rolling figures of the last hops."""

    last: HopDone | None = None
    _factors: deque[float] = field(default_factory=lambda: deque(maxlen=HOPS_KEPT))

    def add(self, hop: HopDone) -> None:
        self.last = hop
        if hop.compute_s > 0:
            self._factors.append(hop.seconds_of_video / hop.compute_s)

    @property
    def realtime_factor(self) -> float | None:
        """Seconds of video per second of computing, median of the last hops; None before the first."""
        return round(median(self._factors), 3) if self._factors else None

    def report(self) -> HopReport | None:
        return HopReport(self.last.hop, self.last.stage_ms) if self.last else None


class Metrics:
    """Prometheus metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.frames = self._counter("frames_shown", "Frames put on air")
        self.repeats = self._counter("frames_repeated", "Frames repeated because the next one was late")
        self.underruns = self._counter("underruns", "Times the frame buffer ran dry")
        self.slips = self._counter("clock_slips", "Frame periods lost because the server's loop was late")
        self.restarts = self._counter("engine_restarts", "Restarts of the engine process after a crash")
        self.keyframes = self._counter("keyframes", "Key frames encoded")
        self.overflows = self._counter("viewer_overflows", "Viewer queues flushed because the viewer was slow")
        self.viewers_closed = Counter(
            "landiff_viewers_closed", "Viewers that left, by reason", ["reason"], registry=self.registry
        )
        self.viewers = self._gauge("viewers", "Viewers that receive video")
        self.buffered_s = self._gauge("buffered_seconds", "Seconds of video rendered and not yet shown")
        self.ready = self._gauge("engine_ready", "1 while the engine process is warm")
        self.realtime_factor = self._gauge("realtime_factor", "Seconds of video per second of computing")
        self.lateness_s = self._histogram("pacing_lateness_seconds", "How late frames went on air", 0.001)
        self.encode_s = self._histogram("encode_seconds", "Time to encode one frame", 0.001)
        self.hop_s = self._histogram("hop_seconds", "Computing time of one hop", 0.1)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"landiff_{name}", text, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"landiff_{name}", text, registry=self.registry)

    def _histogram(self, name: str, text: str, smallest_s: float) -> Histogram:
        buckets = [smallest_s * 2**step for step in range(10)]
        return Histogram(f"landiff_{name}", text, buckets=buckets, registry=self.registry)

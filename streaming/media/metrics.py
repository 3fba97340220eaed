"""Prometheus metrics of the server. Names carry units."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LAG_EVERY_S, LAG_SAMPLES = 0.05, 20


class Metrics:
    """Metrics of one server, in a registry of their own; those of a channel are in `channel(id)`."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.restarts = self._counter("engine_restarts", "Restarts of the engine process after a crash")
        self.ready = self._gauge("engine_ready", "1 while the engine process is warm")
        self.overflows = self._counter("viewer_overflows", "Viewer queues flushed because the viewer was slow")
        self.readers_cut_off = self._counter("readers_cut_off", "Readers of live.mp4 that were too slow")
        self.viewers_closed = self._counter("viewers_closed", "Viewers that left, by reason", "reason")
        self._frames = self._counter("frames_shown", "Frames put on air", "channel")
        self._repeats = self._counter("frames_repeated", "Frames repeated because the next one was late", "channel")
        self._underruns = self._counter("underruns", "Times the frame buffer ran dry", "channel")
        self._slips = self._counter("clock_slips", "Frame periods lost because the server's loop was late", "channel")
        self._keyframes = self._counter("keyframes", "Key frames encoded", "channel")
        self._viewers = self._gauge("viewers", "Viewers that receive video", "channel")
        self._buffered_s = self._gauge("buffered_seconds", "Seconds of video rendered and not yet shown", "channel")
        self._factor = self._gauge("realtime_factor", "Seconds of video per second of computing", "channel")
        self._lateness_s = self._histogram("pacing_lateness_seconds", "How late frames went on air", 0.001)
        self._encode_s = self._histogram("encode_seconds", "Time to encode one frame", 0.001)
        self._chunk_s = self._histogram("chunk_seconds", "Computing time of one chunk", 0.1)
        self.loop_lag_s = self._gauge("loop_lag_seconds", "How late the server's loop was at worst in the last second")
        self._of_channels = (
            *(self._frames, self._repeats, self._underruns, self._slips, self._keyframes, self._viewers),
            *(self._buffered_s, self._factor, self._lateness_s, self._encode_s, self._chunk_s),
        )

    def channel(self, name: str) -> ChannelMetrics:
        """The metrics with this channel's label."""
        return ChannelMetrics(self, name)

    def forget(self, name: str) -> None:
        """Drops the metrics of a channel that is no more."""
        for metric in self._of_channels:
            with suppress(KeyError):
                metric.remove(name)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"landiff_{name}", text, labels, registry=self._registry)

    async def watch_loop(self) -> None:
        """Measures for ever how late the event loop wakes, which delays every viewer's packets."""
        while True:
            worst_s = 0.0
            for _ in range(LAG_SAMPLES):
                before_s = time.monotonic()
                await asyncio.sleep(LAG_EVERY_S)
                worst_s = max(worst_s, time.monotonic() - before_s - LAG_EVERY_S)
            self.loop_lag_s.set(worst_s)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"landiff_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, smallest_s: float) -> Histogram:
        buckets = [smallest_s * 2**step for step in range(10)]
        return Histogram(f"landiff_{name}", text, ["channel"], buckets=buckets, registry=self._registry)


class ChannelMetrics:
    """The metrics of one channel."""

    def __init__(self, all_of: Metrics, channel: str) -> None:
        self.frames = all_of._frames.labels(channel)
        self.repeats = all_of._repeats.labels(channel)
        self.underruns = all_of._underruns.labels(channel)
        self.slips = all_of._slips.labels(channel)
        self.keyframes = all_of._keyframes.labels(channel)
        self.viewers = all_of._viewers.labels(channel)
        self.buffered_s = all_of._buffered_s.labels(channel)
        self.realtime_factor = all_of._factor.labels(channel)
        self.lateness_s = all_of._lateness_s.labels(channel)
        self.encode_s = all_of._encode_s.labels(channel)
        self.chunk_s = all_of._chunk_s.labels(channel)

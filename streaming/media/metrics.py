"""Prometheus metrics of the server. Names carry units."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from streaming.media.viewer_report import ViewerReport

LAG_EVERY_S, LAG_SAMPLES = 0.05, 20


VIEWER_GAUGES: dict[str, tuple[str, Callable[[ViewerReport], float | None]]] = {
    "loss_ratio": ("Share of packets that the viewer's last report calls lost", lambda one: one.loss),
    "remb_bits_per_second": ("The viewer's estimate of its bandwidth", lambda one: one.remb_bps),
    "round_trip_seconds": ("Round trip to the viewer", lambda one: one.round_trip_s),
    "high_rung": ("1 while the viewer gets the high bit rate, 0 at the low one", lambda one: one.rung == "high"),
}
VIEWER_COUNTERS: dict[str, tuple[str, Callable[[ViewerReport], int]]] = {
    "rung_changes": ("Changes between the two bit rates", lambda one: one.rung_changes),
    "retransmissions": ("Packets sent again", lambda one: one.retransmissions),
    "retransmissions_withheld": ("Packets asked for and not sent again", lambda one: one.withheld),
    "keyframes": ("Key frames sent to the viewer", lambda one: one.keyframes),
    "keyframe_requests": ("Key frames that the viewer asked for", lambda one: one.keyframe_requests),
}


class Metrics:
    """Metrics of one server, in a registry of their own; those of a channel are in `channel(id)`."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.restarts = self._counter("engine_restarts", "Restarts of the engine process after a crash")
        self.ready = self._gauge("engine_ready", "Engines whose process is warm")
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

    def watch_viewers(self, reports: Callable[[], Iterable[ViewerReport]]) -> None:
        """Tells of each viewer in the metrics. Its label is its place, so there are no more than places."""
        self._registry.register(_ViewerCollector(reports))

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


class _ViewerCollector(Collector):
    """Asks for the viewers when the metrics are asked for."""

    def __init__(self, reports: Callable[[], Iterable[ViewerReport]]) -> None:
        self._reports = reports

    def collect(self) -> Iterator[Metric]:
        reports = list(self._reports())
        for name, (text, value_of) in VIEWER_GAUGES.items():
            gauge = GaugeMetricFamily(f"landiff_viewer_{name}", text, labels=("channel", "viewer"))
            for one in reports:
                value = value_of(one)
                if value is not None:
                    gauge.add_metric((one.channel, str(one.number)), value)
            yield gauge
        for name, (text, count_of) in VIEWER_COUNTERS.items():
            counter = CounterMetricFamily(f"landiff_viewer_{name}", text, labels=("channel", "viewer"))
            for one in reports:
                counter.add_metric((one.channel, str(one.number)), count_of(one))
            yield counter

"""Figures of a watched video: arrivals and samples in, numbers out, without I/O.

Times are seconds of one monotonic clock unless a name says milliseconds. A frame is *fresh* when its number is higher
than every number before; a repeated frame is a standing picture, so it ends no gap.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from streaming.media.marker import CLOCK_WRAP_MS, Mark

STALL_PERIODS = 1.5  # a longer gap between fresh frames is a stall
GROWTH_SAMPLES = 5  # at either end, whose median counts

Figures = dict[str, Any]  # ready for JSON
Shown = Sequence[tuple[float, Mark]]  # fresh frames: arrival and mark


class BenchError(Exception):
    """The measurement cannot go on; the text says why, in one line."""


class Arrival(NamedTuple):
    """A decoded frame: its arrival, and its marker's content, None when it cannot be read."""

    at_s: float
    mark: Mark | None


class Change(NamedTuple):
    """An accepted prompt change: time of its request, first frame under the prompt."""

    sent_s: float
    frame: int


@dataclass(slots=True)
class Recording:
    """Notes while a viewer watches; times of samples and memory count from `begin_s`."""

    begin_s: float
    end_s: float
    same_clock: bool  # the server's clock marks are on the viewer's own clock
    arrivals: list[Arrival]  # in the order they came
    changes: list[Change] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    samples: list[tuple[float, dict[str, Any]]] = field(default_factory=list)  # the channel's reports
    chunks: dict[int, dict[str, float]] = field(default_factory=dict)  # milliseconds by stage
    memory: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # MB by process


def quantiles(values: Iterable[float], *shares: float) -> list[float | None]:
    """Linear between neighbours, to a thousandth; None without values."""
    listed = list(values)
    return [round(float(value), 3) for value in np.quantile(listed, shares)] if listed else [None] * len(shares)


def spread(values: Iterable[float]) -> Figures:
    """Count, median, 95th percentile and largest of the values; None where there are none."""
    listed = list(values)
    median, p95, most = quantiles(listed, 0.5, 0.95, 1.0)
    return {"count": len(listed), "median": median, "p95": p95, "most": most}


def fresh(arrivals: Iterable[Arrival]) -> list[tuple[float, Mark]]:
    """Arrivals that show a frame for the first time, with their marks."""
    shown: list[tuple[float, Mark]] = []
    for arrival in arrivals:
        if arrival.mark is not None and (not shown or arrival.mark.index > shown[-1][1].index):
            shown.append((arrival.at_s, arrival.mark))
    return shown


def smoothness(times_s: Sequence[float], fps: float, begin_s: float, end_s: float) -> Figures:
    """Intervals and stalls of fresh frames that came at `times_s`, rising, within a span.

    The gap before the first frame of the span counts from the frame before it; a video that stands still at the end
    is in a gap until `end_s`.
    """
    # The open ends are gaps too, but no intervals between two frames.
    edges = [min([begin_s, *times_s[:1]]), *times_s, max([end_s, *times_s[-1:]])]
    gaps = [(low, high) for low, high in pairwise(edges) if high > begin_s and low < end_s]
    stalls = [(low, high) for low, high in gaps if high - low > STALL_PERIODS / fps]
    stalled_s = sum(min(high, end_s) - max(low, begin_s) for low, high in stalls)
    inside = [time_s for time_s in times_s if begin_s <= time_s < end_s]
    p50, p95, p99 = quantiles(((high - low) * 1000 for low, high in pairwise(inside)), 0.5, 0.95, 0.99)
    return {
        "fps": round(len(inside) / (end_s - begin_s), 3),
        "interval_p50_ms": p50,
        "interval_p95_ms": p95,
        "interval_p99_ms": p99,
        "longest_gap_ms": round(max(high - low for low, high in gaps) * 1000, 3),
        "stalls": len(stalls),
        "stall_ratio": round(stalled_s / (end_s - begin_s), 6),
    }


def delay_ms(at_s: float, mark: Mark) -> float:
    """Milliseconds from a frame's clock mark, drawn just before encoding, to its arrival; one clock for both."""
    apart_ms = (at_s * 1000 - mark.clock_ms) % CLOCK_WRAP_MS
    return apart_ms - CLOCK_WRAP_MS if apart_ms > CLOCK_WRAP_MS / 2 else apart_ms


def delays_without_hold_ms(arrivals: Sequence[Arrival]) -> list[float]:
    """Delays for a viewer that decodes each frame at once; frames before one that was lost or unread are left out.

    aiortc decodes a frame when the first packet of the next one comes, so the next frame's clock is taken instead.
    """
    return [
        delay_ms(now.at_s, then.mark)
        for now, then in pairwise(arrivals)
        if now.mark is not None and then.mark is not None and 0 <= then.mark.index - now.mark.index <= 1
    ]


def prompt_to_pixel_s(changes: Iterable[Change], shown: Shown) -> list[float | None]:
    """Seconds from each request to the arrival of the first frame under its prompt; None when it never came."""
    return [
        next((at_s - sent_s for at_s, mark in shown if at_s >= sent_s and mark.index >= frame), None)
        for sent_s, frame in changes
    ]


def by_stage(chunks: Iterable[Mapping[str, float]]) -> dict[str, Figures]:
    """Spread of milliseconds for each stage and for `total`, over many chunks."""
    values: dict[str, list[float]] = {}
    for chunk in chunks:
        for stage, ms in [*chunk.items(), ("total", sum(chunk.values()))]:
            values.setdefault(stage, []).append(ms)
    return {stage: spread(many) for stage, many in values.items()}


def memory(series: Sequence[tuple[float, float]], from_s: float) -> Figures:
    """End, peak and growth of a process' memory, from samples of (time, MB).

    Growth is from `from_s` to the end, of medians of a few samples; None when there are too few to tell the ends apart.
    """
    late = [size_mb for at_s, size_mb in series if at_s >= from_s]
    growth = None
    if len(late) >= 2 * GROWTH_SAMPLES:
        growth = round(statistics.median(late[-GROWTH_SAMPLES:]) - statistics.median(late[:GROWTH_SAMPLES]), 3)
    most = max(size_mb for _, size_mb in series)
    return {"end": series[-1][1], "most": most, "growth": growth, "growth_from_s": from_s}


def figures(recording: Recording, settle_s: float, growth_from_s: float) -> Figures:
    """All figures of a recording. Raises BenchError when none of its frames has a marker."""
    shown = fresh(recording.arrivals)
    if not shown:
        raise BenchError(f"none of {len(recording.arrivals)} decoded frames has a readable marker")
    last = recording.samples[-1][1]
    even = smoothness([at_s for at_s, _ in shown], last["fps"], recording.begin_s + settle_s, recording.end_s)
    settled = (report["realtime_factor"] for at_s, report in recording.samples if at_s >= settle_s)
    factor, least = quantiles((value for value in settled if value is not None), 0.5, 0.0)
    delays = spread(delay_ms(at_s, mark) for at_s, mark in shown if recording.same_clock)
    without_hold = spread(delays_without_hold_ms(recording.arrivals) if recording.same_clock else [])
    waits = prompt_to_pixel_s(recording.changes, shown)
    unseen = [f"prompt change {place} was never seen" for place, wait in enumerate(waits, 1) if wait is None]
    return {
        **even,
        "realtime_factor": factor,
        "realtime_factor_least": least,
        "frames": len(shown),
        "frames_missing": shown[-1][1].index - shown[0][1].index + 1 - len(shown),
        "frames_unreadable": sum(arrival.mark is None for arrival in recording.arrivals),
        "repeats": last["repeats"] - recording.samples[0][1]["repeats"],
        "glass_to_glass_p50_ms": delays["median"],
        "glass_to_glass_p95_ms": delays["p95"],
        "glass_to_glass_without_hold_p95_ms": without_hold["p95"],
        "prompt_to_pixel_s": spread(wait for wait in waits if wait is not None),
        "chunk_ms": by_stage(recording.chunks.values()),
        "rss_mb": {name: memory(series, growth_from_s) for name, series in recording.memory.items()},
        "failed": recording.refused + unseen,
    }

"""Figures of a watched video: arrivals and samples in, numbers out. No I/O.

Times are seconds of one monotonic clock unless a name says milliseconds. A frame is *fresh* when its number is higher
than every number before; a repeated frame is a standing picture, so it ends no gap.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from streaming.media.marker import CLOCK_WRAP_MS, Mark

STALL_PERIODS = 1.5  # a longer gap between fresh frames is a stall
GROWTH_SAMPLES = 5  # at either end, whose median counts
MOST_POINTS = 120  # of a series that is written down


@dataclass(frozen=True, slots=True)
class Arrival:
    """A decoded frame: when it came, and what its marker says, None when it cannot be read."""

    at_s: float
    mark: Mark | None


@dataclass(frozen=True, slots=True)
class Change:
    """A prompt change that was accepted: when it was sent, how long its answer took, first frame under the prompt."""

    sent_s: float
    answer_s: float
    frame: int


@dataclass(frozen=True, slots=True)
class Spread:
    """Where many values lie; None when there are no values."""

    count: int
    median: float | None
    p95: float | None
    most: float | None


@dataclass(frozen=True, slots=True)
class Smoothness:
    """How evenly fresh frames came within a span of time."""

    fps: float
    interval_p50_ms: float | None
    interval_p95_ms: float | None
    interval_p99_ms: float | None
    longest_gap_ms: float
    stalls: int
    stall_ratio: float  # share of the span that lies in gaps of more than STALL_PERIODS


@dataclass(slots=True)
class Recording:
    """What is noted while a viewer watches; times of samples and memory count from `begin_s`."""

    begin_s: float
    end_s: float
    same_clock: bool  # the server's clock marks are on the viewer's own clock
    arrivals: list[Arrival]  # in the order they came
    changes: list[Change] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    samples: list[tuple[float, dict[str, Any]]] = field(default_factory=list)  # the channel's reports
    hops: dict[int, dict[str, float]] = field(default_factory=dict)  # milliseconds by stage
    memory: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # MB by process


def percentile(values: Sequence[float], share: float) -> float:
    """Linear between neighbours. Raises ValueError without values or for a share outside 0 to 1."""
    if not values or not 0 <= share <= 1:
        raise ValueError(f"percentile {share} of {len(values)} values; it takes values and a share from 0 to 1")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return low + (high - low) * (place - math.floor(place))


def spread(values: Iterable[float]) -> Spread:
    """Median, 95th percentile and largest of the values, to a thousandth."""
    kept = list(values)
    if not kept:
        return Spread(0, None, None, None)
    return Spread(len(kept), *(round(percentile(kept, share), 3) for share in (0.5, 0.95, 1)))


def fresh(arrivals: Iterable[Arrival]) -> list[tuple[float, Mark]]:
    """Arrivals that show a frame for the first time, with their marks."""
    shown: list[tuple[float, Mark]] = []
    for arrival in arrivals:
        if arrival.mark is not None and (not shown or arrival.mark.index > shown[-1][1].index):
            shown.append((arrival.at_s, arrival.mark))
    return shown


def smoothness(times_s: Sequence[float], fps: float, begin_s: float, end_s: float) -> Smoothness:
    """Intervals and stalls of fresh frames that came at `times_s`, rising, within a span.

    The gap before the first frame of the span counts from the frame before it; a video that stands still at the end
    is in a gap until `end_s`. Raises ValueError for an empty span or a rate that is not positive.
    """
    if not begin_s < end_s or fps <= 0:
        raise ValueError(f"a span from {begin_s} to {end_s} s at {fps} fps; it must be positive")
    # The open ends are gaps too, but no intervals between two frames.
    edges = [min([begin_s, *times_s[:1]]), *times_s, max([end_s, *times_s[-1:]])]
    gaps = [(low, high) for low, high in pairwise(edges) if high > begin_s and low < end_s]
    stalls = [(low, high) for low, high in gaps if high - low > STALL_PERIODS / fps]
    stalled_s = sum(min(high, end_s) - max(low, begin_s) for low, high in stalls)
    inside = [time_s for time_s in times_s if begin_s <= time_s < end_s]
    intervals_ms = [(high - low) * 1000 for low, high in pairwise(inside)]
    p50, p95, p99 = (round(percentile(intervals_ms, share), 3) if intervals_ms else None for share in (0.5, 0.95, 0.99))
    return Smoothness(
        fps=round(len(inside) / (end_s - begin_s), 3),
        interval_p50_ms=p50,
        interval_p95_ms=p95,
        interval_p99_ms=p99,
        longest_gap_ms=round(max(high - low for low, high in gaps) * 1000, 3),
        stalls=len(stalls),
        stall_ratio=round(stalled_s / (end_s - begin_s), 6),
    )


def delays_ms(shown: Sequence[tuple[float, Mark]]) -> list[float]:
    """Milliseconds from a frame's clock mark, drawn just before encoding, to its arrival; one clock for both."""
    return [_since_ms(at_s, mark) for at_s, mark in shown]


def delays_without_hold_ms(arrivals: Sequence[Arrival]) -> list[float]:
    """The same for a viewer that decodes each frame at once.

    aiortc decodes a frame when the first packet of the next one comes, so the next frame's clock is taken instead.
    Pairs with a frame lost or unread between them are left out.
    """
    return [
        _since_ms(now.at_s, then.mark)
        for now, then in pairwise(arrivals)
        if now.mark is not None and then.mark is not None and 0 <= then.mark.index - now.mark.index <= 1
    ]


def _since_ms(at_s: float, mark: Mark) -> float:
    apart_ms = (at_s * 1000 - mark.clock_ms) % CLOCK_WRAP_MS
    return apart_ms - CLOCK_WRAP_MS if apart_ms > CLOCK_WRAP_MS / 2 else apart_ms


def prompt_to_pixel_s(changes: Iterable[Change], shown: Sequence[tuple[float, Mark]]) -> list[float | None]:
    """Seconds from each request to the arrival of the first frame under its prompt; None when it never came."""
    return [
        next(
            (at_s - change.sent_s for at_s, mark in shown if at_s >= change.sent_s and mark.index >= change.frame),
            None,
        )
        for change in changes
    ]


def missing(shown: Sequence[tuple[float, Mark]]) -> int:
    """How many frame numbers between the first and the last were never seen."""
    return sum(later.index - earlier.index - 1 for (_, earlier), (_, later) in pairwise(shown))


def by_stage(hops: Iterable[Mapping[str, float]]) -> dict[str, Spread]:
    """Spread of milliseconds for each stage and for `total`, over many hops."""
    values: dict[str, list[float]] = {}
    for hop in hops:
        for stage, ms in [*hop.items(), ("total", sum(hop.values()))]:
            values.setdefault(stage, []).append(ms)
    return {stage: spread(many) for stage, many in values.items()}


def growth(series: Sequence[tuple[float, float]], from_s: float) -> float | None:
    """How much a value (time, value) rose from `from_s` to the end: medians of a few samples at both ends.

    None when there are too few samples after `from_s` to tell the ends apart.
    """
    late = [value for time_s, value in series if time_s >= from_s]
    if len(late) < 2 * GROWTH_SAMPLES:
        return None
    return round(statistics.median(late[-GROWTH_SAMPLES:]) - statistics.median(late[:GROWTH_SAMPLES]), 3)


def thin(series: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` points of a series, evenly chosen, both ends among them. Raises ValueError for most < 2."""
    if most < 2:
        raise ValueError(f"at most {most} points; the two ends must fit")
    if len(series) <= most:
        return list(series)
    return [series[round(place * (len(series) - 1) / (most - 1))] for place in range(most)]


def figures(recording: Recording, settle_s: float, growth_from_s: float) -> dict[str, Any]:
    """Everything that a recording says. Raises ValueError when none of its frames has a marker."""
    shown = fresh(recording.arrivals)
    if not shown:
        raise ValueError(f"none of {len(recording.arrivals)} decoded frames has a readable marker")
    last = recording.samples[-1][1]
    even = smoothness([at_s for at_s, _ in shown], last["fps"], recording.begin_s + settle_s, recording.end_s)
    settled = [report for at_s, report in recording.samples if at_s >= settle_s]
    factors = [report["realtime_factor"] for report in settled if report["realtime_factor"] is not None]
    delays = spread(delays_ms(shown) if recording.same_clock else [])
    without_hold = spread(delays_without_hold_ms(recording.arrivals) if recording.same_clock else [])
    waits = prompt_to_pixel_s(recording.changes, shown)
    unseen = [f"prompt change {place} was never seen" for place, wait in enumerate(waits, 1) if wait is None]
    return {
        **asdict(even),
        "realtime_factor": statistics.median(factors) if factors else None,
        "realtime_factor_least": min(factors, default=None),
        "frames": len(shown),
        "frames_missing": missing(shown),
        "frames_unreadable": sum(arrival.mark is None for arrival in recording.arrivals),
        "repeats": last["repeats"] - recording.samples[0][1]["repeats"],
        "buffered_s_least": min((report["buffered_s"] for report in settled), default=None),
        "glass_to_glass_p50_ms": delays.median,
        "glass_to_glass_p95_ms": delays.p95,
        "glass_to_glass_without_hold_p95_ms": without_hold.p95,
        "prompt_to_pixel_s": asdict(spread(wait for wait in waits if wait is not None)),
        "prompt_answer_s": asdict(spread(change.answer_s for change in recording.changes)),
        "hop_ms": {stage: asdict(ms) for stage, ms in by_stage(recording.hops.values()).items()},
        "rss_mb": {name: _memory(series, growth_from_s) for name, series in recording.memory.items()},
        "failed": recording.refused + unseen,
    }


def _memory(series: Sequence[tuple[float, float]], from_s: float) -> dict[str, Any]:
    return {
        "end": series[-1][1],
        "most": max(size_mb for _, size_mb in series),
        "growth": growth(series, from_s),
        "growth_from_s": from_s,
        "series": thin(series),
    }

"""When frames came, against when they were due: intervals, freezes, jitter, and the players that they would satisfy.

Pure: times in, numbers out. Times are seconds; `at_s` is on the viewer's clock, `media_s` on the sender's, which may
begin anywhere and run a little faster or slower. Percentiles are by nearest rank: the
smallest measured value that is not below the given share of all, so a figure always was measured.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

STALL_PERIODS = 1.5  # a longer gap between fresh frames is a stall
PREBUFFERS_S = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
TOLERANCE_S = 0.001  # of a due time: what clocks and rounding of timestamps make
FREEZE_FRAMES, FREEZE_TIMES, FREEZE_LEAST_S = 30, 3, 0.150  # of W3C's definition

Figures = dict[str, Any]  # ready for JSON


class Frame(NamedTuple):
    """A frame that is seen for the first time."""

    at_s: float  # when it came
    media_s: float  # its place in the video


def percentiles(values: Iterable[float], *shares: float) -> list[float | None]:
    """By nearest rank, to a thousandth; None without values."""
    listed = sorted(values)
    if not listed:
        return [None] * len(shares)
    # Rounded first: 0.95 of 20 is a little more than 19 in binary.
    return [round(listed[max(math.ceil(round(share * len(listed), 9)), 1) - 1], 3) for share in shares]


def spread(values: Iterable[float]) -> Figures:
    """Count, median, 95th percentile and largest of the values; None where there are none."""
    listed = list(values)
    median, p95, most = percentiles(listed, 0.5, 0.95, 1.0)
    return {"count": len(listed), "median": median, "p95": p95, "most": most}


def intervals(times_s: Sequence[float], fps: float, begin_s: float, end_s: float) -> Figures:
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
    p50, p95, p99 = percentiles(((high - low) * 1000 for low, high in pairwise(inside)), 0.5, 0.95, 0.99)
    return {
        "fps": round(len(inside) / (end_s - begin_s), 3),
        "interval_p50_ms": p50,
        "interval_p95_ms": p95,
        "interval_p99_ms": p99,
        "longest_gap_ms": round(max(high - low for low, high in gaps) * 1000, 3),
        "stalls": len(stalls),
        "stall_ratio": round(stalled_s / (end_s - begin_s), 6),
    }


def freezes(times_s: Sequence[float]) -> Figures:
    """`freezeCount` and `totalFreezesDuration` of W3C's webrtc-stats: an interval is a freeze when it is longer than
    both 3 d and d + 150 ms, where d is the mean of the 30 intervals before it."""
    recent: deque[float] = deque(maxlen=FREEZE_FRAMES)
    found = []
    for low, high in pairwise(times_s):
        gap_s = high - low
        if recent:
            mean_s = sum(recent) / len(recent)
            if gap_s > max(FREEZE_TIMES * mean_s, mean_s + FREEZE_LEAST_S):
                found.append(gap_s)
        recent.append(gap_s)
    return {"freezes": len(found), "freezes_s": round(sum(found), 3)}


def lateness_s(frames: Sequence[Frame]) -> list[float]:
    """How much later than the first frame each one came, against its timestamp; negative where earlier."""
    return [frame.at_s - frames[0].at_s - (frame.media_s - frames[0].media_s) for frame in frames]


def playback(frames: Sequence[Frame], period_s: float) -> list[Figures]:
    """What a player shows that waits for some prebuffer after the first frame; a row for each of PREBUFFERS_S.

    It stops for a frame that is not there when due, and goes on from there. `attained` is the share of frames that were
    there when due, `play_ratio` the share of time in which it played.
    """
    late = lateness_s(frames)
    length_s = frames[-1].media_s - frames[0].media_s + period_s if frames else 0.0
    rows = []
    for prebuffer_s in PREBUFFERS_S if frames else ():
        missed, stopped_s = 0, 0.0
        for one in late:
            behind_s = one - prebuffer_s - stopped_s
            if behind_s > TOLERANCE_S:
                missed += 1
                stopped_s += behind_s
        rows.append(
            {
                "prebuffer_s": prebuffer_s,
                "attained": round(1 - missed / len(late), 6),
                "play_ratio": round(length_s / (length_s + stopped_s), 6),
            }
        )
    return rows


def jitter_ms(frames: Sequence[Frame]) -> Figures:
    """How much later frames come than the quickest ones, without the skew of the two clocks.

    The skew is the slope of a line under all lateness: through the least of the first and of the last fifth.
    """
    if len(frames) < 2:
        return {"jitter_p50_ms": None, "jitter_p95_ms": None, "jitter_p99_ms": None, "skew_ppm": None}
    media_s, late = np.array([frame.media_s for frame in frames]), np.array(lateness_s(frames))
    fifth = max(len(frames) // 5, 1)
    first, last = int(np.argmin(late[:fifth])), len(late) - fifth + int(np.argmin(late[-fifth:]))
    slope = (late[last] - late[first]) / (media_s[last] - media_s[first]) if last > first else 0.0
    flat = late - slope * media_s
    p50, p95, p99 = percentiles(((flat - flat.min()) * 1000).tolist(), 0.5, 0.95, 0.99)
    return {"jitter_p50_ms": p50, "jitter_p95_ms": p95, "jitter_p99_ms": p99, "skew_ppm": round(slope * 1e6, 1)}


def period_of(frames: Sequence[Frame]) -> float:
    """Seconds of one frame: the median step of timestamps. Raises ValueError for less than two frames."""
    steps = [later.media_s - earlier.media_s for earlier, later in pairwise(frames)]
    if not steps:
        raise ValueError(f"{len(frames)} frames have no rate; at least 2 are needed")
    return float(np.median(steps))

"""What is wrong with the frames that a viewer got: numbers that are missing, doubled or wrong, and pictures that are
doubled. Pure.

A number may be as much higher than the one before as time went on between the two, no more. A server may send a
picture again in between, with a later timestamp and the same number, such as for a viewer who joins: time counts from
the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from streaming.bench.recording import Arrival
from streaming.bench.timeline import Figures

STANDING = 0.05  # levels of 255 between two frames that show the same
ROUNDING = 0.02  # of a period: what timestamps are off by


class Numbered(NamedTuple):
    """A frame's timestamp and number."""

    media_s: float
    number: int


def counts(arrivals: Sequence[Arrival], fps: float) -> Figures:
    """What is wrong with the frames themselves: missing, doubled, misnumbered, unreadable, of another size."""
    numbered = [Numbered(one.media_s, one.mark.index) for one in arrivals if one.mark is not None]
    missing, misnumbered = _numbers(numbered, fps) if numbered else (_missing_by_time(arrivals, fps), 0)
    return {
        "frames": len(arrivals),
        "frames_missing": missing,
        "frames_doubled": sum(_same_number(*pair) for pair in pairwise(arrivals)) if numbered else None,
        "pictures_doubled": sum(_same_picture(*pair) for pair in pairwise(arrivals)),
        "frames_misnumbered": misnumbered,
        "frames_unreadable": sum(one.mark is None for one in arrivals) if numbered else None,
        "sizes": [list(size) for size in dict.fromkeys(one.size for one in arrivals)],
    }


def _numbers(numbered: Sequence[Numbered], fps: float) -> tuple[int, int]:
    """How many numbers are missing, and how many are wrong. A frame whose number is wrong is not missing, too."""
    last, odd = numbered[0], None
    missing = misnumbered = odd_between = 0
    for one in numbered[1:]:
        if one.number == last.number:
            continue
        if _follows(last, one, fps):
            missing += max(one.number - last.number - 1 - odd_between, 0)
            last, odd, odd_between = one, None, 0
        elif odd is not None and (one.number == odd.number or _follows(odd, one, fps)):
            # It was no slip: from there on it is counted so.
            last, odd, odd_between = odd if one.number == odd.number else one, None, 0
        else:
            odd, misnumbered, odd_between = one, misnumbered + 1, odd_between + 1
    return missing, misnumbered


def _follows(earlier: Numbered, later: Numbered, fps: float) -> bool:
    periods = math.ceil((later.media_s - earlier.media_s) * fps - ROUNDING)
    return 0 < later.number - earlier.number <= max(periods, 1)


def _missing_by_time(arrivals: Sequence[Arrival], fps: float) -> int:
    gaps = (round((later.media_s - earlier.media_s) * fps) for earlier, later in pairwise(arrivals))
    return sum(gap - 1 for gap in gaps if gap > 1)


def _same_number(earlier: Arrival, later: Arrival) -> bool:
    return earlier.mark is not None and later.mark is not None and earlier.mark.index == later.mark.index


def _same_picture(earlier: Arrival, later: Arrival) -> bool:
    return earlier.size == later.size and bool(np.abs(earlier.sketch - later.sketch).max() < STANDING)

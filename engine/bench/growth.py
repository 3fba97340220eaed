"""What a video costs as it grows: hop 1,000 beside the same hop of a young video, and memory all along."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import gcd
from typing import Any

import psutil
import torch
from tqdm import tqdm

from engine.bench.hop_cost import CAPTION, LEAD_IN, SEED, advance
from engine.bench.rounds import TOTAL, Clock, Parts, Spread, quartiles, race
from engine.config import EngineConfig
from engine.live.generator import ChannelState, Generator

_CYCLES = 2  # of groups against hops, compared at each end
_SLACK = 0.02  # a median ratio this near to 1 is no difference, however quiet the machine
_KEPT = 500  # points of the series that the report keeps


@dataclass(frozen=True, slots=True)
class Point:
    """One hop of the long video."""

    hop: int
    seconds: float  # of planning, rendering and decoding it
    rss_mb: float  # of the process afterwards, 10^6 bytes
    device_mb: float  # of memory allocated on CUDA; 0 elsewhere


def cycle_hops(config: EngineConfig) -> int:
    """Hops after which groups begin at the same places in them again, so that they cost alike."""
    frames = config.planner.group_frames
    return frames // gcd(frames, config.new_latents)


def least_hops(config: EngineConfig) -> int:
    """The shortest video whose two ends can be compared."""
    return LEAD_IN + 2 * _CYCLES * cycle_hops(config)


def measure_growth(generator: Generator, hops: int, clock: Clock) -> dict[str, Any]:
    """Makes one video of so many hops, then lets it and a young one take turns at hops of the same place in a cycle.

    Raises:
        ValueError: too few hops to compare.
    """
    config = generator.model.config
    cycle, span = cycle_hops(config), _CYCLES * cycle_hops(config)
    if hops < least_hops(config):
        raise ValueError(f"{hops} hops asked for, {least_hops(config)} are the fewest whose ends can be compared")
    old = generator.open(CAPTION, SEED)
    points = []
    for number in tqdm(range(1, hops + 1), desc="a long video", unit="hop"):
        seconds = clock.time(lambda: advance(generator, old))
        points.append(Point(number, seconds, *_memory_mb()))
    young = generator.open(CAPTION, SEED)
    # As many hops as leave both at the same place in the cycle, and the young one past its first hops.
    lead_in = LEAD_IN + (hops - LEAD_IN) % cycle
    for _ in range(lead_in):
        advance(generator, young)
    turns = race(
        {"young": partial(_turn, generator, young, clock), "old": partial(_turn, generator, old, clock)},
        span,
        "hop against hop",
    )
    return _figures(points, lead_in, span) | _compared(turns["young"][TOTAL], turns["old"][TOTAL])


def _turn(generator: Generator, channel: ChannelState, clock: Clock) -> Parts:
    return {TOTAL: clock.time(lambda: advance(generator, channel))}


def _memory_mb() -> tuple[float, float]:
    on_device = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    return psutil.Process().memory_info().rss / 1e6, on_device / 1e6


def _figures(points: Sequence[Point], lead_in: int, span: int) -> dict[str, Any]:
    """The long video's own course: both ends, memory, and a series thin enough to keep."""
    ends = {"first": points[LEAD_IN : LEAD_IN + span], "last": points[-span:]}
    settled, last = points[LEAD_IN + span - 1], points[-1]
    stride = -(-len(points) // _KEPT)
    return {
        "hops": len(points),
        "young_hops": lead_in,
        **{f"{name}_hops_s": asdict(Spread.of(point.seconds for point in part)) for name, part in ends.items()},
        "rss_mb": {"settled": settled.rss_mb, "end": last.rss_mb, "growth": last.rss_mb - settled.rss_mb},
        "device_mb": {
            "settled": settled.device_mb,
            "end": last.device_mb,
            "growth": last.device_mb - settled.device_mb,
        },
        "series": [asdict(point) for point in points[::stride]],
    }


def _compared(young: Sequence[float], old: Sequence[float]) -> dict[str, Any]:
    """Each turn's ratio of the old video's hop to the young one's, which was made beside it."""
    ratios = [late / early for late, early in zip(old, young, strict=True)]
    ratio, (low, high) = statistics.median(ratios), quartiles(ratios)
    return {
        "young_hop_s": asdict(Spread.of(young)),
        "old_hop_s": asdict(Spread.of(old)),
        "ratio": ratio,
        "ratio_middle_half": [low, high],
        "equal": low <= 1.0 <= high or abs(ratio - 1.0) <= _SLACK,
    }

"""How many denoising steps a chunk takes, and where a cut can begin: values in, decisions out.

Quality yields before smoothness: a chunk takes as many steps as leave its first frames time to come before the buffer
is dry. All times are seconds unless a name says otherwise.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from statistics import fmean

KEPT = 16  # chunks and units of planning over which costs are taken
SLACK = 1.3  # times the measured cost
SPARE_S = 0.05  # beside it: for the unit that is being done, and for the way to the viewer


@dataclass(frozen=True, slots=True)
class Costs:
    """What was measured: seconds of each piece of a chunk. `stretch` is elapsed time to computing time, 1 or more."""

    plan_s: float  # the tokens of a whole chunk
    open_s: float  # all of rendering that is no step
    step_s: float  # a denoising step, of both windows where there are two
    slice_s: float  # the first frames
    stretch: float = 1.0
    slices_again: int = 0  # that are decoded again to go back

    def first_frames_s(self, steps: int) -> float:
        """From the beginning of a planned chunk to its first frames, on the safe side."""
        return SPARE_S + SLACK * self.stretch * (self.open_s + steps * self.step_s + self.slice_s)

    def cut_s(self, steps: int) -> float:
        """The same with a plan that is not there yet, and with going back."""
        return self.first_frames_s(steps) + SLACK * self.stretch * (self.plan_s + self.slices_again * self.slice_s)


def choose_steps(buffered_s: float, costs: Costs | None, floor: int, ceiling: int) -> int:
    """Steps of the next chunk, `floor` to `ceiling`: the most whose first frames come before the buffer is dry.

    `costs` is None before anything was measured.
    """
    if costs is None:
        return ceiling
    return next((steps for steps in range(ceiling, floor, -1) if costs.first_frames_s(steps) <= buffered_s), floor)


def cut_steps(floor: int, ceiling: int) -> range:
    """Numbers of steps that the chunk of a cut may take, the best first.

    Who cuts does not want to wait: it takes half the steps, where it may, and fewer where the buffer is short.
    """
    return range(max(floor, (ceiling + 1) // 2), floor - 1, -1)


@dataclass(frozen=True, slots=True)
class Cut:
    """Frames from `frame` on are made anew, the first chunk of them in so many steps."""

    frame: int
    steps: int


def choose_cut(
    shown: int, delivered: int, on_air_s: float, fps: float, costs: Costs | None, floor: int, ceiling: int
) -> Cut | None:
    """The soonest cut that costs no picture; None where the frames that are there end before it could be met.

    Args:
        shown, delivered: numbers of the next frame to show, and of the first one that is not there yet.
        on_air_s: how long the frame before `shown` has been on air.
    """
    if costs is None:
        return None
    for steps in cut_steps(floor, ceiling):
        # `shown` comes a period after the frame before it.
        ahead = math.ceil((costs.cut_s(steps) + on_air_s) * fps) - 1
        if shown + max(ahead, 1) <= delivered:
            return Cut(shown + max(ahead, 1), steps)
    return None


class CostMeter:
    """Collects costs from the units of chunks, whosever they are."""

    def __init__(self, chunk_tokens: int) -> None:
        """`chunk_tokens`: of the plan of a whole chunk."""
        self._chunk_tokens = chunk_tokens
        self._plans: deque[tuple[float, int]] = deque(maxlen=KEPT)
        self._chunks: deque[tuple[float, float, float]] = deque(maxlen=KEPT)

    def planned(self, seconds: float, tokens: int) -> None:
        """A unit of planning took so long and decided so many tokens, which differs from unit to unit."""
        self._plans.append((seconds, tokens))

    def rendered(self, open_s: float, step_s: float, slice_s: float) -> None:
        """The rendering of a chunk, as in `Costs`."""
        self._chunks.append((open_s, step_s, slice_s))

    def begin_with(self, costs: Costs) -> None:
        """What another process measured."""
        if not self._chunks:
            self._plans.append((costs.plan_s, self._chunk_tokens))
            self._chunks.append((costs.open_s, costs.step_s, costs.slice_s))

    def costs(self, stretch: float, slices_again: int = 0) -> Costs | None:
        """What a chunk costs where time stretches so, and a cut decodes so much again; None before the first one."""
        if not self._chunks:
            return None
        open_s, step_s, slice_s = map(_dear, zip(*self._chunks, strict=True))
        plan_s, tokens = map(sum, zip(*self._plans, strict=True))
        return Costs(self._chunk_tokens * plan_s / tokens, open_s, step_s, slice_s, stretch, slices_again)


def _dear(seconds: Collection[float]) -> float:
    """The mean of the dearer half: where costs vary, as beside other programs, less is promised."""
    return fmean(sorted(seconds)[len(seconds) // 2 :])

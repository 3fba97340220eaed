"""The media clock: arrival and clock times in, decisions and media timestamps out. No I/O, no await.

All times are seconds of one monotonic clock, passed in. A frame is due one period after the frame before it. A frame
that is not there when due makes the last one repeat, and the clock starts again when frames arrive: the video resumes
where it stopped, nothing is dropped and nothing bursts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

MEDIA_CLOCK_HZ = 90_000  # RTP clock rate of video


class Action(Enum):
    """The two answers to a due time."""

    SHOW = "show"
    REPEAT = "repeat"


@dataclass(frozen=True, slots=True)
class Tick:
    """One decision: put the next frame, or the last one again, on air with this timestamp."""

    action: Action
    pts: int  # in units of 1 / MEDIA_CLOCK_HZ, rising strictly from tick to tick
    late_s: float  # how long after its due time the decision was asked for


class Pacer:
    """The media clock of one channel. Paused until the first `resume`."""

    def __init__(self, fps: float) -> None:
        if not 0 < fps <= 240:
            raise ValueError(f"fps is {fps}; it must be above 0 and at most 240")
        self.fps = fps
        self._period_s = 1 / fps
        self._due_s: float | None = None
        self._origin_s: float | None = None
        self._last_pts = -1
        self._starved = False
        self.repeats = 0  # frames repeated because the next one was late
        self.underruns = 0  # times that the buffer ran dry
        self.slips = 0  # periods lost because the caller came too late

    @property
    def due_s(self) -> float | None:
        """Time of the next call of `tick`; None while paused."""
        return self._due_s

    def resume(self, now_s: float) -> None:
        """Starts the clock when it is paused: the next frame is due at once."""
        if self._due_s is None:
            self._due_s = now_s
            self._starved = False

    def pause(self) -> None:
        """Stops the clock. Timestamps go on rising over a pause by its real length."""
        self._due_s = None

    def arrive(self, now_s: float) -> None:
        """Frames arrived. After an underrun the clock starts again: the next frame is due now."""
        if self._starved and self._due_s is not None:
            self._due_s = now_s
            self._starved = False

    def tick(self, now_s: float, buffered: int) -> Tick:
        """Decides what goes on air at the due time, given how many frames are buffered.

        Raises ValueError when paused or called before the due time.
        """
        if self._due_s is None or now_s < self._due_s:
            raise ValueError(f"tick at {now_s}, but the next one is due at {self._due_s}")
        late_s = now_s - self._due_s
        missed = math.floor(late_s / self._period_s)
        if missed:
            self.slips += missed
            self._due_s = now_s
        pts = self.stamp(self._due_s)
        self._due_s += self._period_s
        if buffered > 0:
            self._starved = False
            return Tick(Action.SHOW, pts, late_s)
        self.repeats += 1
        if not self._starved:
            self.underruns += 1
            self._starved = True
        return Tick(Action.REPEAT, pts, late_s)

    def stamp(self, time_s: float) -> int:
        """A timestamp for something sent at this time, above all that were given out before."""
        if self._origin_s is None:
            self._origin_s = time_s
        self._last_pts = max(self._last_pts + 1, round((time_s - self._origin_s) * MEDIA_CLOCK_HZ))
        return self._last_pts

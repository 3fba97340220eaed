"""How many threads compute: one a core on an idle machine, fewer beside a busy process.

OpenMP's threads wait for each other at the end of every operator, so that one that shares its core holds all up, and
those that wait take the rest of the time from it by spinning. `mini` on two cores (AMD EPYC without bfloat16
instructions): a chunk takes 1.15 s with two threads and 1.52 s with one; beside one busy process, 4.2 s and 1.63 s. To
sleep instead of spinning makes two threads 1.6 s and 2.1 s. The last bits of a video depend on the number of threads.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from statistics import median

import torch

ROUNDS = 5  # of the work that is timed with each number of threads, whose median counts: the system may hold one up
SLOW_S = 1.0  # work that takes longer is timed once, and the number of threads stays
GAIN = 0.9  # of the time: what another number must stay below to be worth a change
UNITS = 6  # units of work in a row, whose median is their cost
JUMP = 1.6  # times the lowest cost: the number is chosen again
RETRY_S = 10.0  # between two looks whether all cores are free again, where there is time for one
# And where the work never ends: a look costs as much as some steps, so that the next one waits twice as long.
FIRST_RETRY_S, LAST_RETRY_S = 5.0, 60.0

log = logging.getLogger(__name__)


@contextmanager
def computing_with(number: int) -> Iterator[None]:
    """Within the block torch computes with so many threads."""
    before = torch.get_num_threads()
    if number != before:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        if number != before:
            torch.set_num_threads(before)


class ThreadChoice:
    """Chooses torch's number of threads by timing some work: at the start, when cost jumps, and now and then."""

    def __init__(self, work: Callable[[], object], most: int, clock: Callable[[], float] = time.perf_counter) -> None:
        """`work` is timed with up to `most` threads; with a `most` of 1 nothing is ever changed."""
        self._work, self._most, self._clock = work, most, clock
        self._chosen_s = clock()
        self._retry_s = FIRST_RETRY_S  # from then to the next look while there is work
        self._units: deque[float] = deque(maxlen=UNITS)  # seconds of the last ones, with this number of threads
        self._lowest_s = float("inf")  # cost of so many of them

    def choose(self) -> None:
        """Times the work with every number that may be the best, and sets it."""
        if self._most == 1:
            return
        now = torch.get_num_threads()
        times = {now: self._time(now)}
        if times[now] <= SLOW_S:
            # Beside one busy process all but one are best, beside many a few.
            for number in {self._most, self._most - 1, self._most // 2, 1} - {now}:
                times[number] = self._time(number)
        # What costs more with the best number too is the new usual: the machine became slower.
        self._lowest_s = float("inf")
        best = min(times, key=times.__getitem__)
        number = best if times[best] < GAIN * times[now] else now
        torch.set_num_threads(number)
        if number != now:
            told = ", ".join(f"{1000 * times[one]:.0f} ms with {one}" for one in sorted(times))
            log.info("computing with %d threads from now on, was %d: a step takes %s", number, now, told)
        self._units.clear()
        self._retry_s = min(2 * self._retry_s, LAST_RETRY_S) if number == now else FIRST_RETRY_S
        self._chosen_s = self._clock()

    def spent(self, seconds: float) -> None:
        """A unit of work like the one that is timed took so long: chooses again if that is a jump, or long ago."""
        self._units.append(seconds)
        if len(self._units) < UNITS:
            return
        # Not the mean: choosing costs as much as some steps, and one unit that the system held up is no reason for it.
        cost_s = median(self._units)
        if cost_s > JUMP * self._lowest_s or self._may_be_more(self._retry_s):
            self.choose()
        else:
            self._lowest_s = min(self._lowest_s, cost_s)

    def retry(self) -> bool:
        """Chooses again if there are fewer threads than cores and it is time; to be called when there is no work."""
        due = self._may_be_more(RETRY_S)
        if due:
            self.choose()
        return due

    def _may_be_more(self, after_s: float) -> bool:
        """Whether there are fewer threads than cores, and were when it was chosen so long ago."""
        return self._most > 1 and torch.get_num_threads() < self._most and self._clock() - self._chosen_s >= after_s

    def _time(self, number: int) -> float:
        """Seconds that the work takes with so many threads."""
        torch.set_num_threads(number)
        ends_s = [self._clock()]
        while len(ends_s) <= ROUNDS and ends_s[-1] - ends_s[0] < SLOW_S:
            self._work()
            ends_s.append(self._clock())
        return median(end_s - begin_s for begin_s, end_s in pairwise(ends_s))


FIXED = ThreadChoice(lambda: None, 1)  # leaves the number as it is

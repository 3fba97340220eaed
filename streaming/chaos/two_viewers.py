"""Two viewers of the channel `main`: one reads the numbers in the pixels, the other sees pictures without them.

Both get the same timestamps, but for the origin of each, which is found by what comes at the same time. An I420 frame
is [3H/2, W] uint8.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import deque
from contextlib import suppress

from streaming.bench.client import BenchViewer, Http, Pixels
from streaming.bench.recording import Arrival, BenchError
from streaming.media.pacer import MEDIA_CLOCK_HZ

CODEC = "vp8"
KEPT = 1024  # frames of each viewer
ALIKE = 64  # pairs of frames that tell the origins


class TwoViewers:
    """Watches within the block. Raises BenchError where one cannot join, or its video ends."""

    def __init__(self, http: Http) -> None:
        self.new: deque[tuple[float, int]] = deque(maxlen=KEPT)  # when each number was seen first
        self._marks: deque[tuple[float, int, int]] = deque(maxlen=KEPT)  # arrival, timestamp, number
        self._pictures: deque[tuple[float, int, Pixels]] = deque(maxlen=KEPT)
        self._viewers = [
            BenchViewer(http, f"/whep/main?marker=1&codec={CODEC}", CODEC, self._number),
            BenchViewer(http, f"/whep/main?codec={CODEC}", CODEC, self._picture),
        ]
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> TwoViewers:
        try:
            for viewer in self._viewers:
                await viewer.join()
                self._tasks.append(asyncio.create_task(viewer.watch()))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for viewer in self._viewers:
            with suppress(BenchError):
                await viewer.aclose()

    @property
    def newest(self) -> int:
        """Number of the newest frame that was seen; -1 before the first."""
        return self.new[-1][1] if self.new else -1

    async def until(self, number: int, limit_s: float) -> None:
        """Waits for a frame with that number or a higher one. Raises BenchError where it does not come."""
        give_up_s = time.monotonic() + limit_s
        while self.newest < number:
            for task in self._tasks:
                if task.done():
                    await task
            if time.monotonic() > give_up_s:
                raise BenchError(f"frame {number} did not come within {limit_s:.0f} s; the last one was {self.newest}")
            await asyncio.sleep(0.05)

    def gap_s(self, since_s: float) -> float:
        """The longest time between two new frames of which the later one came since then."""
        times = [at_s for at_s, _ in self.new]
        return max((b - a for a, b in zip(times, times[1:], strict=False) if b >= since_s), default=0.0)

    def pictures(self) -> dict[int, Pixels]:
        """Pictures by number, each as it was when it was seen first; those that were lost on the way are not there."""
        if not self._marks or not self._pictures:
            return {}
        numbers = {stamp: number for _, stamp, number in self._marks}
        apart = self._apart()
        pictures: dict[int, Pixels] = {}
        for _, stamp, i420 in self._pictures:
            if (number := numbers.get(stamp + apart)) is not None:
                pictures.setdefault(number, i420)
        return pictures

    def _apart(self) -> int:
        """From the one viewer's timestamps to the other's."""
        pairs = []
        for at_s, stamp, _ in list(self._pictures)[-ALIKE:]:
            _, nearest = min((abs(other_s - at_s), other) for other_s, other, _ in self._marks)
            pairs.append(nearest - stamp)
        return statistics.mode(pairs)

    def _number(self, arrival: Arrival, i420: Pixels) -> None:
        if arrival.mark is None:
            return
        self._marks.append((arrival.at_s, _stamp(arrival), arrival.mark.index))
        if arrival.mark.index > self.newest:
            self.new.append((arrival.at_s, arrival.mark.index))

    def _picture(self, arrival: Arrival, i420: Pixels) -> None:
        self._pictures.append((arrival.at_s, _stamp(arrival), i420))


def _stamp(arrival: Arrival) -> int:
    return round(arrival.media_s * MEDIA_CLOCK_HZ)

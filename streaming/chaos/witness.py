"""A viewer that checks the number of every frame that it sees, over all that happens to the server.

Frames have numbers in their pixels. One that comes again is a repeat. One that is lost between server and viewer, as on
a machine that is too busy to receive, is counted as lost on the way, few in a row; the server's own count of frames
says that it was on air (`streaming.chaos.stage`). The picture may become another one only where the channel's report
says that a prompt begins.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from streaming.bench.client import BenchViewer, Http, RequestError
from streaming.bench.recording import Arrival, BenchError
from streaming.chaos.report import Flaw

QUERY = "?marker=1&codec=vp8"
REJOIN_S = 0.25  # between two tries to join
SILENT_S = 5.0  # without a frame: the viewer joins again, as a page does
MOST_IN_A_ROW = 40  # frames that may be lost on the way
MOST_GAP_S = 90.0  # between two new frames: a busy machine takes half of it to load the model
AGAIN = 64  # frames that another server may show again, or leave out: what was made and not shown
SETTLED_FRAMES = 48  # from a prompt's first frame on, in which the next two chunks work it out
CHANGES_EVERY_S = 0.25
LEAST_JUMP, JUMP = 12.0, 6.0  # levels of 255, and times the usual step, between two frames of different videos


@dataclass(slots=True)
class Witness:
    """What one viewer saw of a channel."""

    http: Http
    channel: str = "main"
    frames: int = 0  # seen for the first time
    repeats: int = 0
    lost: int = 0  # on the way
    joins: int = 0
    longest_gap_s: float = 0.0  # between two new frames
    between_servers: int = 0  # frames that nobody saw: the server that had them was killed
    findings: list[Flaw] = field(default_factory=list)  # wrong or missing frames
    last: int | None = None  # number of the newest frame
    another_server: bool = False  # since that frame
    changes: set[int] = field(default_factory=set)  # first frames of prompts
    _seen_s: float = 0.0
    _new_s: float | None = None
    _sketch: np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None = None
    _steps: list[float] = field(default_factory=list)  # differences of the last frames, levels
    _jumps: dict[int, float] = field(default_factory=dict)  # levels, by the number of the frame behind the step

    async def run(self) -> None:
        """Watches until cancelled; joins again whenever nothing comes."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_pictures())
            group.create_task(self._follow_changes())

    @property
    def flaws(self) -> list[Flaw]:
        """All that was wrong until now, once the changes until now are known."""
        asked_for = {number for begin in self.changes for number in range(begin, begin + SETTLED_FRAMES)}
        return self.findings + [
            Flaw("wrong", f"frame {number} is of another video: {step:.0f} levels")
            for number, step in self._jumps.items()
            if number not in asked_for
        ]

    async def _follow_changes(self) -> None:
        while True:
            with suppress(RequestError):
                report = await self.http.json("GET", f"/channels/{self.channel}")
                self.changes |= {one["frame"] for one in report["prompts"] if one["frame"] is not None}
            await asyncio.sleep(CHANGES_EVERY_S)

    async def _follow_pictures(self) -> None:
        while True:
            viewer = BenchViewer(self.http, f"/whep/{self.channel}{QUERY}", "vp8", self.see)
            try:
                await viewer.join()
                self.joins += 1
                await self._watch(viewer)
            except BenchError:
                await asyncio.sleep(REJOIN_S)
            finally:
                with suppress(BenchError):
                    await viewer.aclose()

    async def _watch(self, viewer: BenchViewer) -> None:
        watching = asyncio.create_task(viewer.watch())
        try:
            self._seen_s = time.monotonic()
            while not watching.done() and time.monotonic() - self._seen_s < SILENT_S:
                await asyncio.wait([watching], timeout=REJOIN_S)
        finally:
            watching.cancel()
            await asyncio.wait([watching])
        if not watching.cancelled() and watching.exception() is not None:
            raise BenchError("the connection ended")

    def see(self, arrival: Arrival, i420: npt.NDArray[np.uint8] | None = None) -> None:
        """Checks a frame, by what was read of its picture."""
        self._seen_s = arrival.at_s
        if arrival.mark is None:
            return
        number, last = arrival.mark.index, self.last
        if number == last:
            self.repeats += 1
            return
        if last is not None:
            self._check(number, last)
        self._look(arrival, follows=last is not None and number == last + 1)
        if self._new_s is not None:
            gap_s = arrival.at_s - self._new_s
            self.longest_gap_s = max(self.longest_gap_s, gap_s)
            if gap_s > MOST_GAP_S:
                self.findings.append(Flaw("missing", f"no new frame for {gap_s:.0f} s before frame {number}"))
        self._new_s, self.last, self.another_server = arrival.at_s, number, False
        self.frames += 1

    def _check(self, number: int, last: int) -> None:
        """Whether a number may follow another."""
        missing = number - last - 1
        if self.another_server:
            if abs(missing) > AGAIN:
                self.findings.append(Flaw("wrong", f"frame {number} of another server follows frame {last}"))
            self.between_servers += max(missing, 0)
        elif missing < 0:
            self.findings.append(Flaw("wrong", f"frame {number} follows frame {last}"))
        elif missing > MOST_IN_A_ROW:
            self.findings.append(Flaw("missing", f"frames {last + 1} to {number - 1}"))
        else:
            self.lost += missing

    def _look(self, arrival: Arrival, follows: bool) -> None:
        """Whether the picture goes on: the step from the frame before is none to another video."""
        before, self._sketch = self._sketch, arrival.sketch
        if before is None or not follows:
            self._steps.clear()
            return
        step = float(np.sqrt(np.mean((arrival.sketch - before) ** 2)))
        usual = sorted(self._steps)[len(self._steps) // 2] if len(self._steps) > 8 else step
        if step > max(LEAST_JUMP, JUMP * usual):
            assert arrival.mark is not None, "it was checked"
            self._jumps[arrival.mark.index] = step
        self._steps = [*self._steps[-31:], step]

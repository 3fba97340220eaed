"""How fast the machine computes while it is measured, and figures of computing at its full speed.

Cores of a virtual machine are shared with others: the same additions take 1.4 or 2.5 ms for minutes with nothing else
running, and all that computes takes longer with them. A small process times additions all the while; a span's *share*
of full speed is the least time that they took in the whole run, to their mean time in that span.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from streaming.bench.compare import value
from streaming.bench.server_process import ROOT
from streaming.bench.timeline import Figures

ADDITIONS = 4_000  # about a tenth of a millisecond
RUNS = 5  # of which the quickest is a sample: behind a sleep the first finds a core that slept too
EVERY_S = 0.1
Spans = Mapping[str, tuple[float, float]]

# Figures that change with the machine's speed, and in what span they are measured.
TIMES = (
    ("ready_s", "starting"),
    ("cold_start_s", "starting"),
    ("chunk_ms.total.median", "watched"),
    ("encode_ms", "watched"),
    ("cpu_percent.server", "watched"),
    ("cpu_percent.engine", "watched"),
    ("cpu_percent.bench", "watched"),
)


class Pace:
    """Times of additions, [(monotonic seconds, milliseconds)], as they come."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []

    def share(self, begin_s: float, end_s: float) -> float | None:
        """Of full speed, at most 1, within a span; None where nothing was timed in it."""
        within = [ms for at_s, ms in self.samples if begin_s <= at_s < end_s]
        return min(ms for _, ms in self.samples) / statistics.mean(within) if within else None


@asynccontextmanager
async def timed() -> AsyncIterator[Pace]:
    """Times additions in a process of its own while the block runs: it would delay the viewer in this one."""
    words = sys.executable, "-m", "streaming.bench.pace"
    # In a session of its own, or a Ctrl-C that ends this one would show its traceback too.
    process = await asyncio.create_subprocess_exec(
        *words, stdout=asyncio.subprocess.PIPE, cwd=ROOT, start_new_session=True
    )
    assert process.stdout is not None
    pace = Pace()

    async def note(lines: asyncio.StreamReader) -> None:
        async for line in lines:
            at_s, ms = map(float, line.split())
            pace.samples.append((at_s, ms))

    noting = asyncio.create_task(note(process.stdout))
    try:
        yield pace
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await noting


def at_full_speed(report: Figures, pace: Pace, spans: Spans) -> Figures:
    """Figures of computing as a machine at its full speed would have them, and the share of it in each span.

    They have the places that they have in the report; what it lacks, or what has no span, is left out.
    """
    shares = {name: share for name, span in spans.items() if (share := pace.share(*span)) is not None}
    found: Figures = {"share": {name: round(share, 3) for name, share in shares.items()}}
    for path, span in TIMES:
        measured = value(report, path)
        if measured is not None and span in shares:
            *groups, last = path.split(".")
            within = found
            for group in groups:
                within = within.setdefault(group, {})
            within[last] = round(measured * shares[span], 3)
    factor = value(report, "realtime_factor")
    if factor is not None and "watched" in shares:
        found["realtime_factor"] = round(factor / shares["watched"], 3)
    names = "cpu_percent_quiet", "cpu_percent_full", "viewers"
    quiet, full, viewers = (value(report, f"wave.{name}") for name in names)
    if quiet is not None and full is not None and viewers and shares.keys() >= {"watched", "crowded"}:
        each = (full * shares["crowded"] - quiet * shares["watched"]) / viewers
        found["wave"] = {"cpu_percent_a_viewer": round(each, 4)}
    return found


def _main() -> None:
    """Writes a sample a line until nobody reads them."""
    with suppress(BrokenPipeError):
        while True:
            took_ms = 1000 * min(_additions_s() for _ in range(RUNS))
            os.write(sys.stdout.fileno(), f"{time.monotonic()} {took_ms:.4f}\n".encode())
            time.sleep(EVERY_S)


def _additions_s() -> float:
    began_s, total = time.thread_time(), 0
    for number in range(ADDITIONS):
        total += number
    return time.thread_time() - began_s


if __name__ == "__main__":
    _main()

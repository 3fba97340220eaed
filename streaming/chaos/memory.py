"""Memory and open files of server and engine, with faults or without: behind the first minutes they must not grow."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streaming.chaos.report import Flaw

EVERY_S = 1.0  # a sample
SETTLED_S = 300.0  # since the run began; what is kept of viewers, channels and codecs has its size by then
LEAST_MINUTES = 5  # of one process, for a slope
ERRORS = 3.0  # standard errors: a slope within them is none
LEAST_MB = 3.0  # in all: an allocator gives that much back late


@dataclass(frozen=True, slots=True)
class Sample:
    """Of a process, `at_s` after the run's begin."""

    at_s: float
    pid: int
    memory_mb: float  # resident and not shared with others, in 10^6 bytes
    files: float  # open descriptors


@dataclass(slots=True)
class Growth:
    """How a server, or an engine, grew: the one that lived longest behind SETTLED_S, by the least of each minute."""

    name: str
    samples: list[Sample] = field(default_factory=list)

    async def follow(self, look: Callable[[], Sample | None]) -> None:
        """Takes samples until cancelled; None is of a server that is gone."""
        while True:
            if (sample := look()) is not None:
                self.samples.append(sample)
            await asyncio.sleep(EVERY_S)

    def figures(self) -> dict[str, Any]:
        """Memory by minute, its slope with the standard error, MB a minute, and open files at rest, in the first half
        and the second; empty where none lived for LEAST_MINUTES."""
        minutes = self._minutes()
        if len(minutes) < LEAST_MINUTES:
            return {}
        memory, files = ([least[place] for least in minutes] for place in (0, 1))
        (slope, _), spread = np.polyfit(np.arange(len(memory)), memory, 1, cov=True)
        half = len(files) // 2
        return {
            "minutes": len(minutes),
            "memory_mb": [round(size, 2) for size in memory],
            "memory_mb_a_minute": round(float(slope), 4),
            "standard_error": round(math.sqrt(float(spread[0, 0])), 4),
            "files_before": min(files[:half]),
            "files_after": min(files[half:]),
        }

    def findings(self) -> list[Flaw]:
        """What grew."""
        found = self.figures()
        return [Flaw("leak", f"{self.name}: {words}") for words in _grown(found)] if found else []

    def _minutes(self) -> Sequence[tuple[float, float]]:
        """The least memory and number of files of each whole minute."""
        settled = [sample for sample in self.samples if sample.at_s >= SETTLED_S]
        if not settled:
            return []
        ((pid, _),) = Counter(sample.pid for sample in settled).most_common(1)
        of_one = [sample for sample in settled if sample.pid == pid]
        begin_s = of_one[0].at_s
        minutes: dict[int, list[Sample]] = {}
        for sample in of_one:
            minutes.setdefault(int((sample.at_s - begin_s) // 60), []).append(sample)
        # The last one is not whole.
        del minutes[max(minutes)]
        return [(min(one.memory_mb for one in many), min(one.files for one in many)) for many in minutes.values()]


def _grown(found: Mapping[str, Any]) -> list[str]:
    slope, error = found["memory_mb_a_minute"], found["standard_error"]
    words = []
    if slope > ERRORS * error and slope * found["minutes"] > LEAST_MB:
        words.append(f"memory rises by {slope:.3f} MB a minute, with a standard error of {error:.3f}")
    if found["files_after"] > found["files_before"]:
        words.append(f"{found['files_after']:.0f} files are open at rest, where {found['files_before']:.0f} were")
    return words

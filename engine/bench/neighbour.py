"""Chunks on an idle machine and beside one busy process, with an engine's priority and choice of threads."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from engine.bench.contenders import CAPTION, MS, SEED, summary
from engine.live.generator import Generator
from engine.live.offline import next_chunk
from engine.live.process import choose_threads

TURNS = 3
CHUNKS = 4  # of each turn; the first beside the process is the one by which the engine notices it
WARM_UPS = 2


def neighbour(generator: Generator) -> dict[str, Any]:
    """Milliseconds of a chunk idle, of the chunks in which a busy process appears, and of those after them.

    `times_idle` is the ratio of each turn's medians, `threads` the numbers chosen.
    """
    state, most = generator.open(CAPTION, SEED), torch.get_num_threads()
    threads = choose_threads(generator, most, at_once=True)

    def chunk() -> float:
        began_s = unit_s = time.perf_counter()
        for unit in next_chunk(generator, state):
            now_s = time.perf_counter()
            if unit.stage == "render":
                threads.spent(now_s - unit_s)
            unit_s = time.perf_counter()
        return (unit_s - began_s) * MS

    for _ in range(WARM_UPS):
        chunk()
    idle, noticed, busy, ratios, chosen = [], [], [], [], [torch.get_num_threads()]
    for _ in range(TURNS):
        alone = [chunk() for _ in range(CHUNKS)]
        with _busy_process():
            noticed.append(chunk())
            beside = [chunk() for _ in range(CHUNKS)]
            chosen.append(torch.get_num_threads())
        threads.choose()
        idle += alone
        busy += beside
        ratios.append(float(np.median(beside) / np.median(alone)))
    torch.set_num_threads(most)
    figures = {"idle_ms": idle, "noticed_ms": noticed, "busy_ms": busy, "times_idle": ratios}
    return {name: summary(np.array(values)) for name, values in figures.items()} | {"threads": chosen}


@contextmanager
def _busy_process() -> Iterator[None]:
    """A process that computes without end, with no priority of ours."""
    code = "import os\nos.setpriority(os.PRIO_PROCESS, 0, max(0, os.getpriority(os.PRIO_PROCESS, 0)))\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            yield
        finally:
            process.kill()

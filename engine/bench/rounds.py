"""Fair timing: what is compared takes turns in one process, so that the machine's moods fall on all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from tqdm import tqdm

WARM_UPS = 2  # rounds that are not counted
TOTAL = "total"
_COPY_BYTES = {"cpu": 2**28, "cuda": 2**30}  # far beyond any cache
_MATRIX = {"cpu": 2048, "cuda": 8192}  # rows of a square matrix
_ROOF_REPEATS = 9

Parts = dict[str, float]  # seconds by the name of a part; `TOTAL` is what is compared
Contender = Callable[[], Parts]  # one turn


@dataclass(frozen=True, slots=True)
class Spread:
    """Times of one thing, in seconds."""

    median_s: float
    middle_half_s: float  # width of the middle half
    least_s: float
    rounds: int

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Spread:
        """At least one number is needed."""
        ordered = sorted(seconds)
        low, high = quartiles(ordered)
        return cls(statistics.median(ordered), high - low, ordered[0], len(ordered))


def quartiles(values: Iterable[float]) -> tuple[float, float]:
    """The borders of the middle half; of a single number, itself."""
    listed = list(values)
    if len(listed) == 1:
        return listed[0], listed[0]
    first, _, third = statistics.quantiles(listed, n=4, method="inclusive")
    return first, third


class Clock:
    """Wall time of a device's finished work."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now_s(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def time(self, work: Callable[[], object]) -> float:
        """Seconds that one call takes."""
        begin_s = self.now_s()
        work()
        return self.now_s() - begin_s


def race(contenders: Mapping[str, Contender], rounds: int, title: str) -> dict[str, dict[str, list[float]]]:
    """Lets the contenders take turns, each first in as many rounds as the others.

    Returns:
        For every contender the seconds of each of its parts, one number a round.
    """
    if rounds < 1:
        raise ValueError(f"{rounds} rounds asked for, at least 1 is needed")
    names = list(contenders)
    results: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for number in tqdm(range(-WARM_UPS, rounds), desc=title, unit="round"):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            parts = contenders[name]()
            if number >= 0:
                for part, seconds in parts.items():
                    results[name].setdefault(part, []).append(seconds)
    return results


@contextmanager
def watched(module: nn.Module, clock: Clock) -> Iterator[list[float]]:
    """Collects the seconds of each call of a module; none on CUDA, where waiting for each would cost more than it."""
    seconds: list[float] = []
    if clock.device.type == "cuda":
        yield seconds
        return
    begins: list[float] = []
    before = module.register_forward_pre_hook(lambda *_: begins.append(clock.now_s()))
    after = module.register_forward_hook(lambda *_: seconds.append(clock.now_s() - begins.pop()))
    try:
        yield seconds
    finally:
        before.remove()
        after.remove()


def copy_gb_s(device: torch.device, size_bytes: int | None = None) -> float:
    """What a plain copy reaches, bytes read and written, in GB/s."""
    size_bytes = size_bytes or _COPY_BYTES[device.type]
    source = torch.ones(size_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size_bytes / _median_s(lambda: target.copy_(source), device) / 1e9


def matrix_gflop_s(device: torch.device, dtype: torch.dtype, rows: int | None = None) -> float:
    """What a large matrix product reaches, in GFLOP/s."""
    rows = rows or _MATRIX[device.type]
    left, right = (torch.randn(rows, rows, device=device).to(dtype) for _ in range(2))
    return 2 * rows**3 / _median_s(lambda: left @ right, device) / 1e9


def _median_s(work: Callable[[], object], device: torch.device) -> float:
    clock = Clock(device)
    for _ in range(WARM_UPS):
        work()
    return statistics.median(clock.time(work) for _ in range(_ROOF_REPEATS))

"""Tuning of block sizes, with a timer that only pretends."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tolerances import DEVICE, normal

from kernels import rmsnorm, tune
from kernels.tools import cases, memo, tiles

BY_NAME = {case.name: case for case in cases.CASES}


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv(memo.FOLDER, str(tmp_path))
    tiles.measured.cache_clear()
    yield
    tiles.measured.cache_clear()


class Clock:
    """Says of each tile in turn how long it took: the usual one first, then the candidates in order."""

    def __init__(self, usual: float, quick: dict[tiles.Tile, float]) -> None:
        self.times = [usual, *(quick.get(tile, 100.0) for tile in tune.CANDIDATES)]
        self.calls = 0

    def __call__(self, function: Callable[[], Any]) -> float:
        function()
        self.calls += 1
        return self.times[self.calls - 1]


def test_the_fastest_is_kept_and_used() -> None:
    """The quickest candidate is proved right, written to disk, and taken by the next start of the kernel."""
    quickest, good = tune.CANDIDATES[3], tune.CANDIDATES[1]
    case = BY_NAME["rms_norm"]
    clock = Clock(50.0, {good: 40.0, quickest: 30.0})
    found = tune.tune_case(case, case.small, DEVICE, torch.float32, clock)
    assert found == {"rms/128": quickest}
    assert clock.calls == 1 + len(tune.CANDIDATES)
    before = tiles.row_tile("rms", 100, DEVICE)
    tune.keep(DEVICE, found)
    after = tiles.row_tile("rms", 100, DEVICE)
    assert (after.rows, after.warps) == (quickest.elements // 128, quickest.warps) != (before.rows, before.warps)
    assert memo.recall(tiles.SUBJECT, DEVICE) == {"rms/128": dataclasses.asdict(quickest)}
    # Another kernel and another width still have their usual ones.
    assert tiles.row_tile("rms", 300, DEVICE).rows == tiles.TILE_ELEMENTS // 512
    assert tiles.row_tile("head_norm", 100, DEVICE) == before
    x, weight = normal(63, 100), normal(100, seed=1)
    result = rmsnorm.rms_norm(x, weight, 1e-5, backend="triton")
    torch.testing.assert_close(result, rmsnorm.rms_norm(x, weight, 1e-5, backend="reference"))


def test_what_hardly_gains_stays_as_usual() -> None:
    """A candidate a hundredth faster is noise: nothing is kept."""
    case = BY_NAME["rms_norm"]
    clock = Clock(50.0, {tune.CANDIDATES[0]: 49.5})
    assert tune.tune_case(case, case.small, DEVICE, torch.float32, clock) == {}


def test_a_kernel_without_a_choice_is_timed_once() -> None:
    """Where block sizes are fixed by the kernel's own needs no candidates are tried."""
    case = BY_NAME["draw_code_top_k"]
    calls = []

    def clock(function: Callable[[], Any]) -> float:
        calls.append(function())
        return 1.0

    assert tune.tune_case(case, case.small, DEVICE, torch.float32, clock) == {}
    assert len(calls) == 2


def test_a_tile_that_does_not_fit_is_passed_over() -> None:
    """Too little shared memory or too many registers rule a candidate out, not the kernel."""
    case = BY_NAME["rms_norm"]
    fits = tune.CANDIDATES[-1]

    def clock(function: Callable[[], Any]) -> float:
        function()
        if tiles.tile("rms", 100, DEVICE, fits) != fits:
            raise ValueError("out of resource: shared memory")
        return next(times)

    times = iter([50.0, 20.0])
    assert tune.tune_case(case, case.small, DEVICE, torch.float32, clock)["rms/128"] == fits


def test_the_fastest_must_be_right() -> None:
    """A fast candidate whose results are wrong is an error, and nothing is kept."""
    right = BY_NAME["rms_norm"]

    def wrong(*operands: Any, backend: str) -> torch.Tensor:
        tiles.tile("rms", 100, DEVICE, tune.CANDIDATES[0])
        return right.plain(*operands) * 2

    broken = dataclasses.replace(right, run=wrong)
    clock = Clock(50.0, {tune.CANDIDATES[0]: 1.0})

    with pytest.raises(ArithmeticError, match="rms_norm"):
        tune.tune_case(broken, right.small, DEVICE, torch.float32, clock)


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.name)
def test_every_kernel_is_right_at_an_unusual_tile(case: cases.Case) -> None:
    """Results do not depend on the tile."""
    from kernels import bench

    with tiles.trying(tiles.Tile(512, 2)):
        bench.check(case, case.small, DEVICE, torch.float32)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="there is a device to tune for here")
def test_without_a_device_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command fails and names what is missing."""
    monkeypatch.setattr(sys, "argv", ["kernels.tune"])
    assert tune.main() == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_a_broken_entry_is_passed_over() -> None:
    """Entries that are no tiles leave the usual one."""
    memo.remember(tiles.SUBJECT, DEVICE, {"rms/128": {"elements": "many"}, "rms/256": {"elements": 512, "warps": 2}})
    assert set(tiles.measured(DEVICE)) == {"rms/256"}

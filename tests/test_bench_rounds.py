"""Taking turns, and what a device can do."""

from itertools import count

import pytest
import torch
from torch import nn

from engine.bench.rounds import (
    TOTAL,
    WARM_UPS,
    Clock,
    Parts,
    Spread,
    copy_gb_s,
    matrix_gflop_s,
    quartiles,
    race,
    watched,
)

CPU = torch.device("cpu")


def test_contenders_take_turns_and_each_begins_as_often() -> None:
    """Warm-up rounds are not counted; the first of a round changes."""
    turns: list[str] = []
    numbers = count()

    def contender(name: str) -> Parts:
        turns.append(name)
        return {TOTAL: float(next(numbers)), "part": 1.0}

    results = race({name: lambda name=name: contender(name) for name in "ab"}, 4, "test")
    assert len(turns) == 2 * (WARM_UPS + 4)
    assert [turns[place : place + 2] for place in range(2 * WARM_UPS, len(turns), 2)] == [["a", "b"], ["b", "a"]] * 2
    assert {name: len(parts[TOTAL]) for name, parts in results.items()} == {"a": 4, "b": 4}
    assert sorted(results["a"][TOTAL] + results["b"][TOTAL]) == [float(number) for number in range(4, 12)]
    assert results["a"]["part"] == [1.0] * 4


def test_a_race_needs_a_round() -> None:
    """Nothing would be measured without one."""
    with pytest.raises(ValueError, match="0 rounds"):
        race({"a": lambda: {TOTAL: 1.0}}, 0, "test")


def test_spread_is_median_and_middle_half() -> None:
    """One outlier moves neither."""
    assert Spread.of([5.0, 1.0, 3.0, 2.0, 400.0]) == Spread(3.0, 3.0, 1.0, 5)
    assert Spread.of([2.5]) == Spread(2.5, 0.0, 2.5, 1)
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 4.0)


def test_a_watched_module_is_timed_while_it_is_watched() -> None:
    """Each call gives one time, also of a module within itself; afterwards none."""
    module, clock = nn.Linear(4, 4), Clock(CPU)
    with watched(module, clock) as seconds:
        module(module(torch.ones(1, 4)))
    module(torch.ones(1, 4))
    assert len(seconds) == 2
    assert all(second > 0 for second in seconds)
    assert not module._forward_hooks and not module._forward_pre_hooks


def test_rates_are_those_of_the_work_done() -> None:
    """A copy counts bytes read and written, a product two operations an element."""
    assert 0.01 < copy_gb_s(CPU, 2**20) < 10_000
    assert 0.01 < matrix_gflop_s(CPU, torch.float32, 64) < 100_000

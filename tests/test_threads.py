"""The number of threads that compute."""

from __future__ import annotations

import pytest
import torch

from engine.runtime.threads import FIRST_RETRY_S, JUMP, LAST_RETRY_S, RETRY_S, ROUNDS, UNITS, ThreadChoice


class Machine:
    """Work that takes as long as a machine of so many cores needs, by a clock of its own."""

    def __init__(self, most: int, step_s: float = 0.02) -> None:
        self.now_s = 0.0
        self.most, self.step_s = most, step_s
        self.busy = 0  # cores that other processes hold
        self.held_up = 0  # the number of the step that the system holds up
        self.steps = 0
        torch.set_num_threads(most)
        self.choice = ThreadChoice(self.work, most, lambda: self.now_s)

    def spend(self, seconds: float, units: int) -> None:
        """Units of so many seconds each."""
        for _ in range(units):
            self.choice.spent(seconds)

    def work(self) -> None:
        self.steps += 1
        threads = torch.get_num_threads()
        waits = 4.0 if threads > max(self.most - self.busy, 1) else 1.0
        self.now_s += self.step_s * waits * (0.2 + 0.8 * self.most / threads)
        if self.steps == self.held_up:
            self.now_s += 5 * self.step_s


@pytest.mark.parametrize(("most", "busy", "number"), [(2, 0, 2), (2, 1, 1), (8, 0, 8), (8, 1, 7), (8, 3, 4), (1, 1, 1)])
def test_the_fastest_number_is_chosen(most: int, busy: int, number: int) -> None:
    """One a core on an idle machine; all but one beside a busy process."""
    machine = Machine(most)
    machine.busy = busy
    machine.choice.choose()
    assert torch.get_num_threads() == number


@pytest.mark.parametrize("held_up", range(1, 2 * ROUNDS + 1))
def test_one_step_that_is_held_up_decides_nothing(held_up: int) -> None:
    """Whichever of those that are timed it is: idle cores all compute, and beside a busy process one does."""
    machine = Machine(2)
    machine.held_up = held_up
    machine.choice.choose()
    assert torch.get_num_threads() == 2 and machine.steps == 2 * ROUNDS
    machine.busy, machine.steps = 1, 0
    machine.choice.choose()
    assert torch.get_num_threads() == 1


def test_a_jump_of_cost_is_answered_and_free_cores_are_found() -> None:
    """Units that suddenly cost more bring a choice; later all cores are tried again, at most every RETRY_S."""
    machine = Machine(2)
    machine.choice.choose()
    machine.spend(0.02, UNITS)
    before = machine.steps
    machine.spend(0.02 * JUMP, UNITS)
    assert machine.steps == before and torch.get_num_threads() == 2
    machine.busy = 1
    machine.spend(0.08, UNITS)
    assert torch.get_num_threads() == 1
    assert not machine.choice.retry()
    machine.now_s += RETRY_S
    assert machine.choice.retry() and torch.get_num_threads() == 1
    machine.busy = 0
    assert not machine.choice.retry()
    machine.now_s += RETRY_S
    assert machine.choice.retry() and torch.get_num_threads() == 2
    machine.now_s += RETRY_S
    assert not machine.choice.retry()


def test_work_that_never_ends_gets_free_cores_too() -> None:
    """Where there is never time for `retry`, all cores are tried after FIRST_RETRY_S; with all of them nothing is."""
    machine = Machine(2)
    machine.busy = 1
    machine.choice.choose()
    machine.busy = 0
    machine.now_s += FIRST_RETRY_S - 1
    machine.spend(0.02, 2 * UNITS)
    assert torch.get_num_threads() == 1
    machine.now_s += 1
    machine.spend(0.02, 1)
    assert torch.get_num_threads() == 2
    before = machine.steps
    machine.now_s += 10 * LAST_RETRY_S
    machine.spend(0.02, 2 * UNITS)
    assert machine.steps == before


def test_cores_that_stay_busy_are_tried_more_and_more_seldom() -> None:
    """Each time after twice as long, up to LAST_RETRY_S; once they were free it begins anew."""
    machine = Machine(2)
    for _ in range(2):
        machine.busy = 1
        machine.choice.choose()
        for wait_s in (5.0, 10.0, 20.0, 40.0, 60.0, 60.0):
            before = machine.steps
            machine.now_s += wait_s - 1
            machine.spend(0.02, UNITS)
            assert machine.steps == before
            machine.now_s += 2
            machine.spend(0.02, 1)
            assert machine.steps > before and torch.get_num_threads() == 1
        machine.busy = 0
        machine.choice.choose()
        assert torch.get_num_threads() == 2


def test_a_few_slow_units_are_no_jump() -> None:
    """However slow they are: the system held them up."""
    machine = Machine(2)
    machine.spend(0.02, UNITS)
    for _ in range(5):
        machine.spend(2.0, UNITS // 2 - 1)
        machine.spend(0.02, UNITS)
    assert machine.steps == 0


def test_a_machine_that_became_slower_is_not_asked_for_ever() -> None:
    """Cost that stays high with the best number is the new usual at once; a jump from there is one again."""
    machine = Machine(2)
    machine.spend(0.02, UNITS)
    machine.spend(0.04, UNITS)
    before = machine.steps
    assert before > 0
    machine.spend(0.04, 3 * UNITS)
    assert machine.steps == before
    machine.spend(0.08, UNITS)
    assert machine.steps > before


def test_slow_work_is_not_repeated() -> None:
    """Work of minutes, such as a large model on a CPU, is timed once and changes nothing."""
    machine = Machine(4, step_s=60.0)
    machine.busy = 1
    machine.choice.choose()
    assert machine.steps == 1 and torch.get_num_threads() == 4

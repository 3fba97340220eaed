"""Solvers against the goldens' runs and against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.perceptual.schedule import DiffusionSchedule, FlowSchedule
from engine.perceptual.solver import (
    DiffusionSolver,
    FewStepSolver,
    FlowSolver,
    Solver,
    SolverState,
    guide,
    solver_of,
)
from kernels.guidance import guided_step
from tests import golden


@pytest.mark.parametrize("steps", [10, 25, 50])
def test_coefficients_equal_reference(steps: int) -> None:
    """The five multipliers of every step of a real run equal the reference's, infinities resolved."""
    expected = golden.load("fullscale_tables")[f"n{steps}/mult1_mult2_mult3_mult4_multnoise"]
    actual = DiffusionSolver(DiffusionSchedule(), steps).coefficients
    # The reference does not use the third and fourth number of the first step.
    actual[0, 2:4] = expected[0, 2:4] = 0
    assert bool(actual.isfinite().all())
    for column in range(5):
        assert golden.relative_error(actual[:, column], expected[:, column]) < golden.TOLERANCE


def test_missing_noise_is_refused() -> None:
    """A stochastic step without noise is the caller's mistake."""
    solver = DiffusionSolver(DiffusionSchedule(), 4)
    with pytest.raises(ValueError, match="step 1 of 4 needs noise"):
        solver.step(1, SolverState(torch.zeros(1)), torch.zeros(1))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_follows_the_straight_line(shift: float) -> None:
    """With a perfect estimate every x lies on the line from noise to clean, and the last is clean exactly."""
    schedule = FlowSchedule(shift=shift)
    solver = FlowSolver(schedule, 5)
    clean, noise = torch.randn(1, 3, 2, 4, 4), torch.randn(1, 3, 2, 4, 4)
    state = SolverState(noise)
    for index in range(5):
        time = torch.full((1,), solver.time(index))
        torch.testing.assert_close(state.x, schedule.mix(clean, noise, time))
        assert solver.draws(index) == 0
        state = solver.step(index, state, solver.clean(index, state.x, clean))
    assert torch.equal(state.x, clean)


def test_flow_converges_for_a_moving_estimate() -> None:
    """For a Gaussian target the exact estimate depends on x; more steps come closer to the exact flow."""
    spread = 0.5  # of the target; the exact flow multiplies noise by it

    def run(steps: int) -> Tensor:
        solver = FlowSolver(FlowSchedule(), steps)
        state = SolverState(torch.ones(1))
        for index in range(steps):
            t = solver.time(index)
            clean = state.x * t * spread**2 / ((t * spread) ** 2 + (1 - t) ** 2)
            state = solver.step(index, state, clean)
        return state.x

    coarse, fine = (abs(float(run(steps)) - spread) for steps in (8, 64))
    assert fine < coarse / 4 and fine < 0.02


def _gaussian_error(solver: Solver, alphas: list[float], sigmas: list[float]) -> float:
    """How far a run for a Gaussian target of half the noise's spread ends from the exact flow, which halves x."""
    state = SolverState(torch.ones(1, dtype=torch.float64))
    for index in range(solver.steps):
        alpha, sigma = alphas[index], sigmas[index]
        clean = state.x * alpha * 0.25 / ((alpha * 0.5) ** 2 + sigma**2)
        state = solver.step(index, state, clean)
    return abs(float(state.x) - 0.5)


@pytest.mark.parametrize(("order", "times_less"), [(1, 3.5), (2, 12.0)])
def test_order_shows_in_the_error(order: int, times_less: float) -> None:
    """More steps pay off more in the second order."""
    errors = []
    for steps in (24, 96):
        times = FlowSchedule().times(steps).tolist()
        solver = FlowSolver(FlowSchedule(order=order), steps)
        errors.append(_gaussian_error(solver, times, [1 - time for time in times]))
    assert errors[1] < errors[0] / times_less


@pytest.mark.parametrize("order", [1, 2])
def test_estimates_that_move_evenly_are_followed_exactly(order: int) -> None:
    """Where the estimate is a polynomial of the path's time below the order, every step lands on the exact path."""
    schedule, start = FlowSchedule(shift=2.0, order=order), 3.0
    powers = range(order)

    def exact(time: float) -> float:
        # x / (1 - t) = start + the integral of sum s^k over ds / (1 - s)^2, by a fine sum.
        places = (torch.arange(200000, dtype=torch.float64) + 0.5) / 200000 * time
        total = float(sum((places**power / (1 - places) ** 2).sum() for power in powers)) * time / 200000
        return (1 - time) * (start + total)

    solver = FlowSolver(schedule, 6)
    state = SolverState(torch.tensor([start], dtype=torch.float64))
    for index in range(5):
        known = sum(solver.time(index) ** power for power in powers)
        # The first steps have fewer estimates than the order: begin them on the exact path.
        if index < order:
            state = SolverState(torch.tensor([exact(solver.time(index))], dtype=torch.float64), state.clean)
        state = solver.step(index, state, torch.tensor([known], dtype=torch.float64))
        if index >= order - 1:
            assert float(state.x) == pytest.approx(exact(solver.time(index + 1)), rel=1e-5)


def test_few_steps_of_the_published_model_start_at_noise() -> None:
    """Below the limit the published schedule gets the deterministic solver, which starts at the last training step."""
    schedule = DiffusionSchedule()
    few, many = solver_of(schedule, 8), solver_of(schedule, 50)
    assert isinstance(few, FewStepSolver) and isinstance(many, DiffusionSolver)
    assert few.time(0) == 999 and [few.draws(index) for index in range(8)] == [0] * 8
    noise = torch.randn(3)
    assert torch.equal(few.noised(0, torch.ones(3), noise), noise)
    assert few.guidance(0) == 1.0 and 1.0 < few.guidance(6) < few.guidance(7) < 7.0
    # At a time of the run x holds as much signal as the network was trained with at that time.
    alpha, place = schedule.snap(few.noised(3, torch.ones(1), torch.zeros(1)))
    assert alpha == few.noised(3, torch.ones(1), torch.zeros(1)) and int(place) == few.time(3)


@pytest.mark.parametrize("seed", [0, 1])
def test_few_steps_reach_a_fixed_target(seed: int) -> None:
    """With a perfect network the last step gives the target, from wherever the run stands."""
    solver, target = (
        FewStepSolver(DiffusionSchedule(), 5),
        torch.randn(4, generator=torch.Generator().manual_seed(seed)),
    )
    state = SolverState(torch.randn(4))
    for index in range(5):
        alpha, sigma = (
            solver.noised(index, torch.ones(1), torch.zeros(1)),
            solver.noised(index, torch.zeros(1), torch.ones(1)),
        )
        velocity = (alpha * state.x - target) / sigma
        state = solver.step(index, state, solver.clean(index, state.x, velocity))
    torch.testing.assert_close(state.x, target)


@pytest.mark.parametrize(
    "solver",
    [
        FlowSolver(FlowSchedule(), 4),
        FlowSolver(FlowSchedule(shift=0.6, order=2), 4),
        FewStepSolver(DiffusionSchedule(), 5),
        DiffusionSolver(DiffusionSchedule(), 6),
    ],
    ids=["flow", "flow of second order", "few", "published"],
)
def test_one_kernel_is_a_step(solver: Solver) -> None:
    """`guided_step` with the solver's table does what estimate, guidance and step do one after another."""
    fused = plain = SolverState(torch.randn(1, 3, 4))
    looked_back = False
    for index in range(solver.steps):
        outputs, noise = torch.randn(2, 1, 3, 4), torch.randn(1, 3, 4) if solver.draws(index) else None
        clean = guide(*(solver.clean(index, plain.x, output) for output in outputs), solver.guidance(index))
        alone = solver.step(index, SolverState(plain.x), clean, noise)
        plain = solver.step(index, plain, clean, noise)
        looked_back |= not torch.equal(alone.x, plain.x)
        fused = SolverState(*guided_step(fused.x, outputs, solver.table[index], fused.clean, noise))
        torch.testing.assert_close(fused.x, plain.x, rtol=1e-4, atol=1e-4)
    assert looked_back == solver.looks_back


def test_a_third_order_is_refused() -> None:
    """Steps look back at one estimate."""
    with pytest.raises(ValueError, match="order 3 is neither 1 nor 2"):
        FlowSchedule(order=3)

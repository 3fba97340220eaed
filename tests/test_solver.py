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
    MultistepSolver,
    Solver,
    SolverState,
    clean_of_velocity,
    guide,
    sample_reference,
    solver_of,
)
from engine.published.case_models import renderer
from kernels.guidance import guided_step
from tests import golden

RUNS = [("sampler_a", run) for run in ("plain6", "prefix6", "sdedit5")]
RUNS += [("sampler_b", run) for run in ("plain8", "prefix7")]


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


@pytest.mark.parametrize(("name", "run"), RUNS)
def test_reference_runs(name: str, run: str) -> None:
    """Every x, every guided estimate and the result of a run equal the reference's, random draws included."""
    case = golden.load(name)
    facts = case.facts["runs"][run]
    model, solver = renderer(case), DiffusionSolver(DiffusionSchedule(), facts["num_steps"])
    text = torch.cat([torch.zeros_like(case["context"]), case["context"]])
    errors = []

    def estimate(index: int, x: Tensor) -> Tensor:
        errors.append(golden.relative_error(x, case[f"{run}/x_before_step"][index]))
        output = model.predict(torch.cat([x, x]), torch.full((2,), solver.time(index)), text, condition)
        without, with_text = solver.clean(index, torch.cat([x, x]), output).chunk(2)
        guided = guide(without, with_text, solver.guidance(index))
        errors.append(golden.relative_error(guided, case[f"{run}/denoised_after_cfg"][index]))
        return guided

    frames = facts["fixed_frames"]
    prefix = case[f"{run}/prefix"] if frames else None
    with torch.inference_mode():
        condition = model.condition(case["semantic_feature_before_upsample"])
        generator = torch.Generator().manual_seed(facts["torch_manual_seed_before_loop"])
        result = sample_reference(solver, case["init_noise"], estimate, prefix, facts["sdedit"], generator)
    errors.append(golden.relative_error(result, case[f"{run}/result"]))
    assert [solver.guidance(i) for i in range(solver.steps)] == pytest.approx(facts["guidance_scale_per_step"])
    assert max(errors) < golden.TOLERANCE
    assert len(errors) == 2 * facts["num_steps"] + 1


@pytest.mark.parametrize("name", ["sampler_a", "sampler_b"])
def test_denoiser_equals_reference(name: str) -> None:
    """An alpha is snapped to the training table before velocity becomes clean latents, as the reference does."""
    case = golden.load(name)
    model = renderer(case)
    alpha, _ = DiffusionSchedule().snap(case["denoiser/alpha_cumprod_sqrt"])
    assert golden.relative_error(alpha, case["denoiser/quantised_alpha"]) < 1e-6
    # The case was made at this network time, which its file does not say.
    time = torch.tensor([499.0])
    with torch.inference_mode():
        condition = model.condition(case["semantic_feature_before_upsample"])
        velocity = model.predict(case["denoiser/x"], time, case["context"], condition)
    clean = clean_of_velocity(case["denoiser/x"], velocity, alpha[0])
    assert golden.relative_error(clean, case["denoiser/out"]) < golden.TOLERANCE


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


def _gaussian_error(solver: MultistepSolver, alphas: list[float], sigmas: list[float]) -> float:
    """How far a run for a Gaussian target of half the noise's spread ends from the exact flow, which halves x."""
    state = SolverState(torch.ones(1, dtype=torch.float64))
    for index in range(solver.steps):
        alpha, sigma = alphas[index], sigmas[index]
        clean = state.x * alpha * 0.25 / ((alpha * 0.5) ** 2 + sigma**2)
        state = solver.step(index, state, clean)
    return abs(float(state.x) - 0.5)


@pytest.mark.parametrize(("order", "times_less"), [(1, 3.5), (2, 12.0), (3, 15.0)])
def test_order_shows_in_the_error(order: int, times_less: float) -> None:
    """More steps pay off the more the higher the order; the third starts with two steps of lower ones."""
    errors = []
    for steps in (24, 96):
        times = FlowSchedule().times(steps).tolist()
        solver = FlowSolver(FlowSchedule(order=order), steps)
        errors.append(_gaussian_error(solver, times, [1 - time for time in times]))
    assert errors[1] < errors[0] / times_less


@pytest.mark.parametrize("order", [1, 2, 3])
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
            state = SolverState(
                torch.tensor([exact(solver.time(index))], dtype=torch.float64), state.clean, state.earlier
            )
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
def test_table_is_the_run(solver: Solver) -> None:
    """One kernel with the solver's table does what estimate, guidance and step do one after another."""
    table = solver.table()
    assert table is not None
    fused = plain = SolverState(torch.randn(1, 3, 4))
    for index in range(solver.steps):
        outputs, noise = torch.randn(2, 1, 3, 4), torch.randn(1, 3, 4)
        clean = guide(*(solver.clean(index, plain.x, output) for output in outputs), solver.guidance(index))
        plain = solver.step(index, plain, clean, noise)
        fused = SolverState(*guided_step(fused.x, outputs, table, torch.tensor([index]), fused.clean, noise))
        torch.testing.assert_close(fused.x, plain.x, rtol=1e-4, atol=1e-4)


def test_third_order_has_no_table() -> None:
    """The kernel knows one earlier estimate; a solver that needs two says that it has no table."""
    assert FlowSolver(FlowSchedule(order=3), 4).table() is None
    with pytest.raises(ValueError, match="order 4 is not in 1..3"):
        FlowSchedule(order=4)

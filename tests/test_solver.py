"""Solvers against the goldens' runs and against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.perceptual.schedule import DiffusionSchedule, FlowSchedule
from engine.perceptual.solver import (
    DiffusionSolver,
    FlowSolver,
    SolverState,
    clean_of_velocity,
    guide,
    sample_reference,
)
from tests import golden
from tests.perceptual_cases import renderer

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

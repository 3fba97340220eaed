"""Guidance and solver update against their reference."""

import math

import pytest
import torch
from tolerances import DEVICE, DTYPES, assert_close, fused, normal, widened

from kernels import guidance

SHAPES = [(1,), (63, 100), (1, 3, 431)]


def row(**coefficients: float) -> torch.Tensor:
    return torch.tensor([coefficients.get(name, 0.0) for name in guidance.COEFFICIENTS]).to(DEVICE)


@pytest.mark.parametrize("solver", ["one step", "two steps", "noise", "both"])
@pytest.mark.parametrize("rows", [1, 2], ids=["plain", "guided"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_guided_step(shape: tuple[int, ...], dtype: torch.dtype, rows: int, solver: str) -> None:
    """guided_step equals its reference with and without guidance, an earlier x0 and noise; results stay float32."""
    x, previous, noise = (normal(*shape, seed=seed) for seed in range(3))
    arguments = (
        *(x, normal(rows, *shape, dtype=dtype, seed=3), normal(8, seed=4)),
        *(previous if solver in ("two steps", "both") else None, noise if solver in ("noise", "both") else None),
    )
    results, expected = fused(guidance.guided_step, *arguments), guidance.guided_step_reference(*widened(*arguments))
    for result, truth in zip(results, expected, strict=True):
        assert_close(result, truth, torch.float32)


def test_operands_of_weight_zero_are_not_read() -> None:
    """Memory that holds no earlier x0 and no noise yet, NaN here, does not reach the result."""
    x, missing = normal(100), torch.full((100,), torch.nan, device=DEVICE)
    coefficients = row(out=1, scale=1, coef_x=0.5, coef_x0=-0.5, mix=1)
    arguments = (x, normal(1, 100, seed=1), coefficients, missing, missing)
    following, _ = fused(guidance.guided_step, *arguments)
    assert_close(following, 0.5 * x + 0.5 * arguments[1][0], torch.float32)
    assert_close(guidance.guided_step_reference(*arguments)[0], following, torch.float32)


def test_guidance_moves_from_the_unprompted_row() -> None:
    """Scale 0 gives row 0, scale 1 row 1, scale 3 beyond it."""
    outputs = torch.stack([torch.zeros(63), torch.ones(63)]).to(DEVICE)
    for scale in (0.0, 1.0, 3.0):
        coefficients = row(out=1, scale=scale, coef_x0=-1, mix=1)
        _, denoised = fused(guidance.guided_step, normal(63), outputs, coefficients, None, None)
        assert torch.equal(denoised, torch.full((63,), scale, device=DEVICE))


def test_refuses_wrong_operands() -> None:
    """Latents in half precision, other coefficients and other guidance rows are named before anything runs."""
    x, coefficients = normal(8), normal(8, seed=1)
    with pytest.raises(ValueError, match="x must be torch.float32"):
        guidance.guided_step(x.half(), x[None], coefficients, None, None)
    with pytest.raises(ValueError, match=r"coefficients must have shape \(8,\)"):
        guidance.guided_step(x, x[None], coefficients[:7], None, None)
    with pytest.raises(ValueError, match="outputs must have shape"):
        guidance.guided_step(x, normal(3, 8), coefficients, None, None)
    with pytest.raises(ValueError, match="noise must have shape"):
        guidance.guided_step(x, x[None], coefficients, None, normal(7))


def test_reference_is_the_published_multistep_solver() -> None:
    """A step of DPM++(2M) SDE with guidance, written as the formulas stand."""
    x, before, noise, outputs = normal(7), normal(7, seed=1), normal(7, seed=2), normal(2, 7, seed=3)
    a, a_next, a_quantised, scale, ratio = 0.4, 0.6, 0.41, 5.0, 1.3
    step = math.log(math.sqrt(a_next**2 / (1 - a_next**2))) - math.log(math.sqrt(a**2 / (1 - a**2)))
    skip, out = a_quantised, -math.sqrt(1 - a_quantised**2)
    coef_x = math.sqrt((1 - a_next**2) / (1 - a**2)) * math.exp(-step)
    coef_x0, mix = math.expm1(-2 * step) * a_next, 1 + 1 / (2 * ratio)
    coef_noise = math.sqrt(1 - a_next**2) * math.sqrt(1 - math.exp(-2 * step))
    coefficients = torch.tensor([skip, out, scale, coef_x, coef_x0, mix, mix - 1, coef_noise], device=DEVICE)
    next_x, denoised = guidance.guided_step_reference(x, outputs, coefficients, before, noise)
    without, with_text = (out * output + skip * x for output in outputs)
    truth = without + scale * (with_text - without)
    assert_close(denoised, truth, torch.float32)
    expected = coef_x * x - coef_x0 * (mix * truth - (mix - 1) * before) + coef_noise * noise
    assert_close(next_x, expected, torch.float32)

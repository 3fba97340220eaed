"""Guidance and solver update against their reference."""

import pytest
import torch
from tolerances import DEVICE, DTYPES, assert_close, fused, normal, widened

from kernels import guidance, reference

SHAPES = [(1,), (63, 100), (1, 3, 431)]


def table(**columns: float) -> torch.Tensor:
    row = torch.tensor([columns.get(name, 0.0) for name in guidance.COLUMNS])
    return torch.stack([torch.full((8,), torch.nan), row]).to(DEVICE)


LAST = torch.ones(1, dtype=torch.int64, device=DEVICE)


@pytest.mark.parametrize("solver", ["one step", "two steps", "noise", "both"])
@pytest.mark.parametrize("rows", [1, 2], ids=["plain", "guided"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_guided_step(shape: tuple[int, ...], dtype: torch.dtype, rows: int, solver: str) -> None:
    """guided_step equals its reference with and without guidance, an earlier x0 and noise; results stay float32."""
    x, previous, noise = (normal(*shape, seed=seed) for seed in range(3))
    arguments = (
        *(x, normal(rows, *shape, dtype=dtype, seed=3), normal(5, 8, seed=4), LAST * 3),
        *(previous if solver in ("two steps", "both") else None, noise if solver in ("noise", "both") else None),
    )
    results, expected = fused(guidance.guided_step, *arguments), reference.guided_step(*widened(*arguments))
    for result, truth in zip(results, expected, strict=True):
        assert_close(result, truth, torch.float32)


def test_operands_of_weight_zero_are_not_read() -> None:
    """Memory that holds no earlier x0 and no noise yet, NaN here, does not reach the result."""
    x, missing = normal(100), torch.full((100,), torch.nan, device=DEVICE)
    coefficients = table(out=1, scale=1, keep=0.5, pull=-0.5, mix=1)
    arguments = (x, normal(1, 100, seed=1), coefficients, LAST, missing, missing)
    following, _ = fused(guidance.guided_step, *arguments)
    assert_close(following, 0.5 * x + 0.5 * arguments[1][0], torch.float32)
    assert_close(reference.guided_step(*arguments)[0], following, torch.float32)


def test_guidance_moves_from_the_unprompted_row() -> None:
    """Scale 0 gives row 0, scale 1 row 1, scale 3 beyond it."""
    outputs = torch.stack([torch.zeros(63), torch.ones(63)]).to(DEVICE)
    for scale in (0.0, 1.0, 3.0):
        coefficients = table(out=1, scale=scale, pull=-1, mix=1)
        _, denoised = fused(guidance.guided_step, normal(63), outputs, coefficients, LAST, None, None)
        assert torch.equal(denoised, torch.full((63,), scale, device=DEVICE))


def test_refuses_wrong_operands() -> None:
    """Latents in half precision, wrong tables and wrong guidance rows are named before anything runs."""
    x, coefficients = normal(8), normal(2, 8)
    with pytest.raises(ValueError, match="x must be torch.float32"):
        guidance.guided_step(x.half(), x[None], coefficients, LAST, None, None)
    with pytest.raises(ValueError, match=r"coefficients must have shape \(2, 8\)"):
        guidance.guided_step(x, x[None], coefficients[:, :7], LAST, None, None)
    with pytest.raises(ValueError, match="outputs must have shape"):
        guidance.guided_step(x, normal(3, 8), coefficients, LAST, None, None)
    with pytest.raises(ValueError, match="noise must have shape"):
        guidance.guided_step(x, x[None], coefficients, LAST, None, normal(7))

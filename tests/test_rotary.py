"""Rotary embedding by tables against its reference."""

import pytest
import torch
from tolerances import DEVICE, DTYPES, assert_close, fused, normal, widened

from kernels import reference, rotary

SHAPES = [(1, 1, 1, 2), (2, 3, 63, 20), (1, 1, 431, 12), (1, 5, 100, 128), (3, 4, 1, 64)]


def table(entries: int, pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
    angles = normal(entries, pairs, seed=9) * 100
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rotate(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    """rotate turns interleaved pairs of a strided view, token n by row n of the tables."""
    batch, heads, tokens, width = shape
    x = normal(batch, tokens + 1, heads, width, dtype=dtype)[:, 1:].transpose(1, 2)
    arguments = (x, *table(tokens, width // 2))
    assert_close(fused(rotary.rotate, *arguments), reference.rotate(*widened(*arguments)), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rotate_at_positions(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    """rotate finds each token's row of a longer table by its position, in any order."""
    batch, heads, tokens, width = shape
    positions = torch.randint(0, 500, (tokens,), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    arguments = (normal(batch, heads, tokens, width, dtype=dtype), *table(500, width // 2), positions)
    assert_close(fused(rotary.rotate, *arguments), reference.rotate(*widened(*arguments)), dtype)


def test_a_position_outside_the_table_is_nan() -> None:
    """Tokens that no table row belongs to become NaN, the others stay right."""
    positions = torch.tensor([0, 63, -1, 62], device=DEVICE)
    result = fused(rotary.rotate, normal(1, 2, 4, 8), *table(63, 4), positions)
    assert result.isnan().all(-1)[0].tolist() == [[False, True, True, False]] * 2
    assert not result[:, :, [0, 3]].isnan().any()


def test_refuses_wrong_operands() -> None:
    """Odd widths, short tables and positions of another dtype are named before anything runs."""
    x, (cos, sin) = normal(1, 2, 12, 8), table(12, 4)
    with pytest.raises(ValueError, match="even last dimension"):
        rotary.rotate(normal(1, 2, 12, 7), cos, sin)
    with pytest.raises(ValueError, match=r"sin must have shape \(12, 4\)"):
        rotary.rotate(x, cos, sin[:11])
    with pytest.raises(ValueError, match="positions must be torch.int64"):
        rotary.rotate(x, cos, sin, torch.arange(12).int())

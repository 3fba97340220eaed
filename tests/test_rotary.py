"""Rotary embedding by tables against its reference."""

import pytest
import torch
from tolerances import DTYPES, assert_close, fused, normal, widened

from kernels import rotary

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
    assert_close(fused(rotary.rotate, *arguments), rotary.rotate_reference(*widened(*arguments)), dtype)


def test_queries_and_keys_are_turned_together() -> None:
    """A packed pair gives what its parts give alone."""
    pair = normal(2, 5, 3, 4, 8).permute(3, 0, 2, 1, 4)[:2]
    turned = fused(rotary.rotate, pair, *table(5, 4))
    for part, result in zip(pair, turned, strict=True):
        assert torch.equal(result, fused(rotary.rotate, part, *table(5, 4)))


def test_reference() -> None:
    """A pair as a complex number, times a number of length one."""
    x, (cos, sin) = normal(1, 2, 6, 8), table(6, 4)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.complex(cos, sin)
    assert_close(rotary.rotate_reference(x, cos, sin), torch.view_as_real(turned).flatten(-2), torch.float32)


def test_rows_may_have_tables_of_their_own() -> None:
    """Where rows stand at different positions torch turns each by its own table."""
    x, (cos, sin) = normal(2, 3, 4, 8), (part.view(2, 1, 4, 4) for part in table(8, 4))
    result = rotary.rotate(x, cos, sin)
    assert torch.equal(result[1:], rotary.rotate(x[1:], cos[1, 0], sin[1, 0]))


def test_refuses_wrong_operands() -> None:
    """Odd widths and tables of another length or dtype are named before anything runs."""
    x, (cos, sin) = normal(1, 2, 12, 8), table(12, 4)
    with pytest.raises(ValueError, match="even last dimension"):
        rotary.rotate(normal(1, 2, 12, 7), cos, sin)
    with pytest.raises(ValueError, match=r"sin must have shape \(12, 4\)"):
        rotary.rotate(x, cos, sin[:11])
    with pytest.raises(ValueError, match="cos must be torch.float32"):
        rotary.rotate(x, cos.half(), sin)

"""LayerNorm over heads against its reference."""

import pytest
import torch
from tolerances import DTYPES, assert_close, fused, normal, widened

from kernels import headnorm

CASES = {"one token": (1, 1, 1, 64), "odd": (2, 3, 63, 20), "long": (1, 2, 431, 16)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", CASES.values(), ids=CASES.keys())
def test_head_norm(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    """head_norm reads views of a packed projection and norms queries and keys by their own weights."""
    batch, heads, tokens, width = shape
    q, k, _ = normal(batch, tokens, 3, heads, width, dtype=dtype).permute(2, 0, 3, 1, 4)
    arguments = (q, k, *(normal(width, seed=seed) for seed in range(1, 5)), 1e-6)
    results, expected = fused(headnorm.head_norm, *arguments), headnorm.head_norm_reference(*widened(*arguments))
    for result, truth in zip(results, expected, strict=True):
        assert result.is_contiguous()
        assert_close(result, truth, dtype)


def test_refuses_wrong_operands() -> None:
    """Unequal heads and wrong vectors are named before anything runs."""
    q, vector = normal(1, 2, 3, 8), normal(8)
    with pytest.raises(ValueError, match=r"k must have shape \(1, 2, 3, 8\)"):
        headnorm.head_norm(q, q[:, :1], vector, vector, vector, vector, 1e-6)
    with pytest.raises(ValueError, match="k_bias must have shape"):
        headnorm.head_norm(q, q, vector, vector, vector, vector[:4], 1e-6)

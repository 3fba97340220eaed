"""RMSNorm, alone and after a residual add, against its reference."""

import pytest
import torch
from tolerances import DTYPES, assert_close, fused, normal, widened

from kernels import rmsnorm

SHAPES = [(1, 100), (63, 1), (63, 100), (2, 3, 431), (7, 63), (100,)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """rms_norm equals its reference for any number of leading dimensions."""
    arguments = (normal(*shape, dtype=dtype), normal(shape[-1], seed=1), 1e-5)
    assert_close(fused(rmsnorm.rms_norm, *arguments), rmsnorm.rms_norm_reference(*widened(*arguments)), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_add_rms_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """add_rms_norm returns the sum as the stream keeps it and the norm of exactly that, not of the wider sum."""
    x, update = (normal(*shape, dtype=dtype, seed=seed) for seed in (0, 1))
    weight = normal(shape[-1], seed=2)
    normed, total = fused(rmsnorm.add_rms_norm, x, update, weight, 1e-5)
    assert_close(total, x.float() + update.float(), dtype)
    assert torch.equal(normed, fused(rmsnorm.rms_norm, total, weight, 1e-5))


def test_types_of_stream_update_and_result_may_differ() -> None:
    """A wide stream takes a narrow update and is normed to a narrow result, each rounded once."""
    x, update, weight = normal(5, 100), normal(5, 100, dtype=torch.bfloat16, seed=1), normal(100, seed=2)
    normed, total = fused(rmsnorm.add_rms_norm, x, update, weight, 1e-5, torch.bfloat16)
    expected = rmsnorm.add_rms_norm_reference(*widened(x, update), weight, 1e-5)
    assert_close(total, expected[1], torch.float32)
    assert_close(normed, expected[0], torch.bfloat16)
    assert_close(fused(rmsnorm.rms_norm, total, weight, 1e-5, torch.bfloat16), expected[0], torch.bfloat16)


def test_refuses_wrong_operands() -> None:
    """Wrong shapes, other dtypes and empty operands are named before anything runs."""
    x, weight = normal(5, 8), normal(8)
    with pytest.raises(ValueError, match=r"weight must have shape \(8,\)"):
        rmsnorm.rms_norm(x, weight[:4], 1e-5)
    with pytest.raises(ValueError, match="update must be torch.float32"):
        rmsnorm.add_rms_norm(x, x.double(), weight, 1e-5)
    with pytest.raises(ValueError, match="x must have elements"):
        rmsnorm.rms_norm(x[:0], weight, 1e-5)


def test_operands_need_not_be_dense() -> None:
    """Streams with gaps in memory are normed like dense ones."""
    x, update, weight = normal(8, 5).T, normal(5, 16)[:, ::2], normal(8)
    results = fused(rmsnorm.add_rms_norm, x, update, weight, 1e-5)
    expected = fused(rmsnorm.add_rms_norm, x.contiguous(), update.contiguous(), weight, 1e-5)
    assert all(torch.equal(result, truth) for result, truth in zip(results, expected, strict=True))

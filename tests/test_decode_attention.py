"""Attention over the static cache against its reference."""

import pytest
import torch
from tolerances import DEVICE, DTYPES, assert_close, fused, normal, widened

from kernels import decode_attention, reference

CASES = {
    "one row": (1, 1, 1, 16, 1),
    "short": (2, 3, 431, 24, 1),
    "odd": (2, 3, 431, 24, 300),
    "full": (1, 2, 100, 128, 100),
    "part border": (1, 2, 512, 64, 64),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", CASES.values(), ids=CASES.keys())
def test_decode_attention(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    """decode_attention equals its reference, and rows past the length may hold NaN."""
    batch, heads, capacity, width, length = shape
    q = normal(batch, heads, width, dtype=dtype) * 3
    keys, values = (normal(batch, capacity, heads, width, dtype=dtype, seed=seed).transpose(1, 2) for seed in (1, 2))
    keys[:, :, length:], values[:, :, length:] = torch.nan, torch.nan
    arguments = (q, keys, values, torch.tensor([length], device=DEVICE))
    result = fused(decode_attention.decode_attention, *arguments)
    assert_close(result, reference.decode_attention(*widened(*arguments)), dtype)


def test_rows_may_differ_in_length() -> None:
    """With a length for each row every row sees its own positions only."""
    q, keys, values = normal(3, 2, 16), normal(3, 2, 50, 16, seed=1), normal(3, 2, 50, 16, seed=2)
    lengths = torch.tensor([1, 50, 33], device=DEVICE)
    for row, length in enumerate(lengths.tolist()):
        keys[row, :, length:], values[row, :, length:] = torch.nan, torch.nan
    result = fused(decode_attention.decode_attention, q, keys, values, lengths)
    assert_close(result, reference.decode_attention(q, keys, values, lengths), torch.float32)
    alone = fused(decode_attention.decode_attention, q[2:], keys[2:], values[2:], lengths[2:])
    assert torch.equal(result[2:], alone)


def test_large_scores_do_not_overflow() -> None:
    """Scores of a thousand, rising over the cache, give the value at the highest."""
    keys = torch.linspace(0, 1000, 300, device=DEVICE)[None, None, :, None].expand(1, 1, 300, 16).contiguous()
    values = normal(1, 1, 300, 16)
    q = torch.ones(1, 1, 16, device=DEVICE)
    result = fused(decode_attention.decode_attention, q, keys, values, torch.tensor([300], device=DEVICE))
    assert_close(result, reference.decode_attention(q, keys, values, torch.tensor([300], device=DEVICE)), torch.float32)


def test_refuses_wrong_operands() -> None:
    """Caches of other heads, lengths of another dtype and strided rows are named before anything runs."""
    q, keys, length = normal(1, 2, 8), normal(1, 2, 9, 8), torch.tensor([3], device=DEVICE)
    with pytest.raises(ValueError, match=r"keys must have shape \(1, 2, 9, 8\)"):
        decode_attention.decode_attention(q, keys[:, :1], keys[:, :1], length)
    with pytest.raises(ValueError, match=r"length must have shape \(1,\), not \(2,\)"):
        decode_attention.decode_attention(q, keys, keys, length.expand(2))
    with pytest.raises(ValueError, match="length must be torch.int64"):
        decode_attention.decode_attention(q, keys, keys, length.int())
    with pytest.raises(ValueError, match="values must be dense in its last dimension"):
        decode_attention.decode_attention(q, keys, normal(1, 2, 8, 9).transpose(2, 3), length)

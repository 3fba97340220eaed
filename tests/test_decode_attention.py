"""Attention over the static cache against its reference."""

import pytest
import torch
import torch.nn.functional as F
from tolerances import DEVICE, DTYPES, assert_close, fused, normal, widened

from kernels.decode_attention import FilledLength, decode_attention, decode_attention_reference

CASES = {
    "one row": (1, 1, 1, 1, 16, 1),
    "short": (2, 3, 1, 431, 24, 1),
    "odd": (2, 3, 1, 431, 24, 300),
    "full": (1, 2, 1, 100, 128, 100),
    "part border": (1, 2, 1, 512, 64, 64),
    "a few queries from the start on": (2, 3, 7, 431, 24, 1),
    "queries over a part border": (1, 2, 16, 512, 64, 57),
    "queries to the end": (1, 2, 31, 130, 40, 100),
    "more than a program takes": (1, 1, 70, 90, 16, 20),
}


def filled(capacity: int, *lengths: int, queries: int = 1) -> FilledLength:
    return FilledLength(torch.tensor(lengths, device=DEVICE), capacity, queries)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", CASES.values(), ids=CASES.keys())
def test_decode_attention(shape: tuple[int, int, int, int, int, int], dtype: torch.dtype) -> None:
    """decode_attention equals its reference, and rows past the last query's may hold NaN."""
    batch, heads, queries, capacity, width, length = shape
    q = normal(batch, heads, queries, width, dtype=dtype) * 3
    keys, values = (normal(batch, capacity, heads, width, dtype=dtype, seed=seed).transpose(1, 2) for seed in (1, 2))
    length_of = filled(capacity, length, queries=queries)
    expected = decode_attention_reference(*widened(q, keys, values), length_of)
    seen = length + queries - 1
    keys[:, :, seen:], values[:, :, seen:] = torch.nan, torch.nan
    assert_close(fused(decode_attention, q, keys, values, length_of), expected, dtype)


def test_reference() -> None:
    """torch's own attention over the filled part of the cache."""
    q, keys, values = normal(2, 3, 1, 16), normal(2, 3, 20, 16, seed=1), normal(2, 3, 20, 16, seed=2)
    expected = F.scaled_dot_product_attention(q, keys[:, :, :13], values[:, :, :13])
    assert_close(decode_attention_reference(q, keys, values, filled(20, 13)), expected, torch.float32)
    q = normal(2, 3, 13, 16, seed=3)
    expected = F.scaled_dot_product_attention(q, keys[:, :, :13], values[:, :, :13], is_causal=True)
    assert_close(decode_attention_reference(q, keys, values, filled(20, 1, queries=13)), expected, torch.float32)


def test_rows_may_differ_in_length() -> None:
    """With a length for each row every row sees its own positions only."""
    q, keys, values = normal(3, 2, 4, 16), normal(3, 2, 50, 16, seed=1), normal(3, 2, 50, 16, seed=2)
    lengths = [1, 47, 33]
    expected = decode_attention_reference(q, keys, values, filled(50, *lengths, queries=4))
    for row, length in enumerate(lengths):
        keys[row, :, length + 3 :], values[row, :, length + 3 :] = torch.nan, torch.nan
    result = fused(decode_attention, q, keys, values, filled(50, *lengths, queries=4))
    assert_close(result, expected, torch.float32)
    alone = fused(decode_attention, q[2:], keys[2:], values[2:], filled(50, 33, queries=4))
    assert torch.equal(result[2:], alone)


def test_large_scores_do_not_overflow() -> None:
    """Scores of a thousand, rising over the cache, give the value at the highest."""
    keys = torch.linspace(0, 1000, 300, device=DEVICE)[None, None, :, None].expand(1, 1, 300, 16).contiguous()
    values = normal(1, 1, 300, 16)
    arguments = (torch.ones(1, 1, 1, 16, device=DEVICE), keys, values, filled(300, 300))
    assert_close(fused(decode_attention, *arguments), decode_attention_reference(*arguments), torch.float32)


def test_refuses_wrong_operands() -> None:
    """Caches of other heads and lengths of another dtype are named before anything runs."""
    q, keys = normal(1, 2, 1, 8), normal(1, 2, 9, 8)
    with pytest.raises(ValueError, match=r"keys must have shape \(1, 2, 9, 8\)"):
        decode_attention(q, keys[:, :1], keys[:, :1], filled(9, 3))
    with pytest.raises(ValueError, match=r"length must have shape \(1,\), not \(2,\)"):
        decode_attention(q, keys, keys, filled(9, 3, 3))
    with pytest.raises(ValueError, match="length must be torch.int64"):
        decode_attention(q, keys, keys, FilledLength(torch.tensor([3], dtype=torch.int32, device=DEVICE), 9))

"""Attention of a few new tokens over the planner's static cache, each of which sees those before it (REFERENCE 2.5).

So few queries a head cannot fill a device, so the cache is cut into parts, each program attends to one with all of
them, and a second kernel joins the parts. Keys are read once for all queries.
Shapes: `B` batch, `H` heads, `N` queries, `L` cache length, `D` head width, `S` parts.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.tools.launch import INTERPRETED, Backend, Bound, constexpr, dispatch, jit, operand, start, tl
from kernels.tools.tiles import (
    Tile,
    dense_rows,
    expect_dtype,
    expect_floats,
    expect_rank,
    expect_shape,
    expect_together,
    power_of_two,
)

PROGRAMS = 512  # aimed at: about four for each processor of a large device
TILE = Tile(4096, 4)  # elements of keys and as many of values in a program's hands
MOST_QUERIES = 64  # in a program's hands; more are split
LEAST_QUERIES = 16  # of a matrix product


class FilledLength:
    """The filled positions of a cache as an attention mask: a length for the kernel, a bool mask for torch."""

    def __init__(self, length: Tensor, capacity: int, queries: int = 1) -> None:
        """`length`: int64 [1] or one for each row [B], on the device: positions that the first query sees, in 1..L;
        each further one sees one more. `capacity`: L; `queries`: N."""
        self.length, self.queries, self._capacity = length, queries, capacity

    @functools.cached_property
    def mask(self) -> Tensor:
        """[1 or B, 1, N, L], True = filled; made once, for all layers."""
        ends = self.length[:, None] + torch.arange(self.queries, device=self.length.device)
        return torch.arange(self._capacity, device=self.length.device) < ends[:, None, :, None]

    @functools.cached_property
    def bias(self) -> Tensor:
        """The mask as what is added to scores, bfloat16: 0, or -inf where it is False."""
        return torch.zeros_like(self.mask, dtype=torch.bfloat16).masked_fill_(~self.mask, float("-inf"))


@jit
def attend_part_kernel(
    q: operand,
    keys: operand,
    values: operand,
    length: operand,
    length_batch: operand,
    mixed: operand,
    peaks: operand,
    masses: operand,
    heads: operand,
    queries: operand,
    width: operand,
    part_rows: operand,
    parts: operand,
    q_batch: operand,
    q_head: operand,
    q_row: operand,
    k_batch: operand,
    k_head: operand,
    k_row: operand,
    v_batch: operand,
    v_head: operand,
    v_row: operand,
    scale: operand,
    WIDE: constexpr,
    QUERIES: constexpr,
    ROWS: constexpr,
    BLOCK: constexpr,
) -> None:
    pair, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    batch, head = pair // heads, pair % heads
    column = tl.arange(0, BLOCK)
    query = tl.program_id(2) * QUERIES + tl.arange(0, QUERIES)
    inside, asked = column < width, query < queries
    q_place = q + batch * q_batch + head * q_head + query[:, None].to(tl.int64) * q_row + column[None, :]
    own = tl.load(q_place, mask=asked[:, None] & inside[None, :], other=0.0)
    if WIDE:
        own = own.to(tl.float32)
    first = part * part_rows
    # Of each query, and of the last one.
    ends = tl.load(length + batch * length_batch) + query
    end = tl.minimum(tl.load(length + batch * length_batch) + queries - 1, first + part_rows)
    peak = tl.full((QUERIES,), -float("inf"), tl.float32)
    mass = tl.zeros((QUERIES,), tl.float32)
    total = tl.zeros((QUERIES, BLOCK), tl.float32)
    for begin in range(first, end, ROWS):
        row = begin + tl.arange(0, ROWS).to(tl.int64)
        mask = (row[:, None] < end) & inside[None, :]
        key_place = keys + batch * k_batch + head * k_head + row[:, None] * k_row + column[None, :]
        value_place = values + batch * v_batch + head * v_head + row[:, None] * v_row + column[None, :]
        part_keys = tl.load(key_place, mask=mask, other=0.0).to(own.dtype)
        score = tl.dot(own, tl.trans(part_keys), input_precision="ieee") * scale
        seen = (row[None, :] < ends[:, None]) & (row[None, :] < end)
        score = tl.where(seen, score, -float("inf"))
        higher = tl.maximum(peak, tl.max(score, axis=1))
        # A query may see nothing of a part.
        base = tl.where(higher == -float("inf"), 0.0, higher)
        weight = tl.exp(score - base[:, None])
        fade = tl.exp(peak - base)
        mass = mass * fade + tl.sum(weight, axis=1)
        part_values = tl.load(value_place, mask=mask, other=0.0).to(own.dtype)
        added = tl.dot(weight.to(own.dtype), part_values, input_precision="ieee")
        total = total * fade[:, None] + added
        peak = higher
    slot = (pair * parts + part) * queries + query
    tl.store(peaks + slot, peak, mask=asked)
    tl.store(masses + slot, mass, mask=asked)
    tl.store(mixed + slot[:, None] * width + column[None, :], total, mask=asked[:, None] & inside[None, :])


@jit
def join_parts_kernel(
    mixed: operand,
    peaks: operand,
    masses: operand,
    out: operand,
    parts: operand,
    queries: operand,
    width: operand,
    PARTS: constexpr,
    BLOCK: constexpr,
) -> None:
    pair, query = tl.program_id(0).to(tl.int64), tl.program_id(1)
    part = tl.arange(0, PARTS)
    column = tl.arange(0, BLOCK)
    used = part < parts
    slot = (pair * parts + part) * queries + query
    peak = tl.load(peaks + slot, mask=used, other=-float("inf"))
    weight = tl.exp(peak - tl.max(peak, axis=0))
    mass = tl.sum(weight * tl.load(masses + slot, mask=used, other=0.0), axis=0)
    mask = used[:, None] & (column[None, :] < width)
    parts_mixed = tl.load(mixed + slot[:, None] * width + column[None, :], mask=mask, other=0.0)
    total = tl.sum(weight[:, None] * parts_mixed, axis=0)
    place = out + (pair * queries + query) * width + column
    tl.store(place, (total / mass).to(out.dtype.element_ty), mask=column < width)


def decode_attention(
    q: Tensor, keys: Tensor, values: Tensor, filled: FilledLength, backend: Backend = "auto"
) -> Tensor:
    """Softmax attention, scale 1/sqrt(D), of new tokens over the filled positions of the cache, which they are part of.

    Args:
        q: [B, H, N, D] float.
        keys, values: [B, H, L, D] float; what lies behind the filled positions is finite (the kernel does not read it).
        filled: of N queries; its length is on the device, so that the host need not know it.

    Returns:
        [B, H, N, D], the dtype of `q`; new memory.

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    expect_rank("q", q, 4)
    expect_rank("keys", keys, 4)
    expect_shape("q", q, (*q.shape[:2], filled.queries, q.shape[3]))
    expect_shape("keys", keys, (*q.shape[:2], keys.shape[2], q.shape[3]))
    expect_shape("values", values, keys.shape)
    length = filled.length
    expect_shape("length", length, (q.shape[0] if length.numel() > 1 else 1,))
    expect_dtype("length", length, (torch.int64,))
    expect_floats(q=q, keys=keys, values=values)
    expect_together(q=q, length=length)
    return dispatch(backend, _decode_attention, decode_attention_reference, q, keys, values, filled)


def decode_attention_reference(q: Tensor, keys: Tensor, values: Tensor, filled: FilledLength) -> Tensor:
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=filled.mask)


def _decode_attention(q: Tensor, keys: Tensor, values: Tensor, filled: FilledLength) -> Tensor:
    q, keys, values, length = dense_rows(q), dense_rows(keys), dense_rows(values), filled.length
    batch, heads, queries, width = q.shape
    pairs, capacity = batch * heads, keys.shape[2]
    block = max(power_of_two(width), 16)
    rows = max(TILE.elements // block, 16)
    at_once = min(max(power_of_two(queries), LEAST_QUERIES), MOST_QUERIES)
    wanted = max(-(-PROGRAMS // pairs), 1)
    part_rows = -(-capacity // (wanted * rows)) * rows
    parts = -(-capacity // part_rows)
    mixed = torch.empty(pairs, parts, queries, width, dtype=torch.float32, device=q.device)
    peaks, masses = (torch.empty(pairs, parts, queries, dtype=torch.float32, device=q.device) for _ in range(2))
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    start(
        attend_part_kernel,
        (pairs, parts, -(-queries // at_once)),
        *(q, keys, values, length, int(length.numel() > 1), mixed, peaks, masses, heads, queries, width),
        *(part_rows, parts, *q.stride()[:3], *keys.stride()[:3], *values.stride()[:3], width**-0.5),
        warps=TILE.warps,
        # The interpreter does not multiply narrow numbers.
        WIDE=INTERPRETED and q.device.type == "cpu",
        QUERIES=at_once,
        ROWS=rows,
        BLOCK=block,
    )
    start(
        join_parts_kernel,
        (pairs, queries),
        *(mixed, peaks, masses, out, parts, queries, width),
        warps=TILE.warps,
        PARTS=power_of_two(parts),
        BLOCK=block,
    )
    return out


def decode_attention_bound(q: Tensor, keys: Tensor, values: Tensor, filled: FilledLength) -> Bound:
    """The whole cache read once, as when it is full; four operations for each of its keys' elements and query."""
    return Bound(2 * q.nbytes + keys.nbytes + values.nbytes, 4 * keys.numel() * q.shape[2])

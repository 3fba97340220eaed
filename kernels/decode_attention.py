"""Attention of one new token over the planner's static cache (REFERENCE 2.5).

One query a head cannot fill a device, so the cache is cut into parts, each program attends to one, and a second kernel
joins the parts. Shapes: `B` batch, `H` heads, `L` cache length, `D` head width, `S` parts.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.tools.launch import Backend, Bound, constexpr, dispatch, jit, operand, start, tl
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


class FilledLength:
    """The filled positions of a cache as an attention mask: a length for the kernel, a bool mask for torch."""

    def __init__(self, length: Tensor, capacity: int) -> None:
        """`length`: int64 [1] or one for each row [B], in 1..L, on the device; `capacity`: L."""
        self.length, self._capacity = length, capacity

    @functools.cached_property
    def mask(self) -> Tensor:
        """[1 or B, 1, 1, L], True = filled; made once, for all layers."""
        return torch.arange(self._capacity, device=self.length.device) < self.length[:, None, None, None]


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
    width: operand,
    part_rows: operand,
    parts: operand,
    q_batch: operand,
    q_head: operand,
    k_batch: operand,
    k_head: operand,
    k_row: operand,
    v_batch: operand,
    v_head: operand,
    v_row: operand,
    scale: operand,
    ROWS: constexpr,
    BLOCK: constexpr,
) -> None:
    pair, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    batch, head = pair // heads, pair % heads
    column = tl.arange(0, BLOCK)
    inside = column < width
    query = tl.load(q + batch * q_batch + head * q_head + column, mask=inside, other=0.0).to(tl.float32) * scale
    first = part * part_rows
    end = tl.minimum(tl.load(length + batch * length_batch), first + part_rows)
    peak = -float("inf")
    mass = 0.0
    total = tl.zeros((BLOCK,), tl.float32)
    for begin in range(first, end, ROWS):
        row = begin + tl.arange(0, ROWS).to(tl.int64)
        mask = (row[:, None] < end) & inside[None, :]
        key_place = keys + batch * k_batch + head * k_head + row[:, None] * k_row + column[None, :]
        value_place = values + batch * v_batch + head * v_head + row[:, None] * v_row + column[None, :]
        score = tl.sum(query[None, :] * tl.load(key_place, mask=mask, other=0.0).to(tl.float32), axis=1)
        score = tl.where(row < end, score, -float("inf"))
        higher = tl.maximum(peak, tl.max(score, axis=0))
        weight = tl.exp(score - higher)
        fade = tl.exp(peak - higher)
        mass = mass * fade + tl.sum(weight, axis=0)
        part_values = tl.load(value_place, mask=mask, other=0.0).to(tl.float32)
        total = total * fade + tl.sum(weight[:, None] * part_values, axis=0)
        peak = higher
    slot = pair * parts + part
    tl.store(peaks + slot, peak)
    tl.store(masses + slot, mass)
    tl.store(mixed + slot * width + column, total, mask=inside)


@jit
def join_parts_kernel(
    mixed: operand,
    peaks: operand,
    masses: operand,
    out: operand,
    parts: operand,
    width: operand,
    PARTS: constexpr,
    BLOCK: constexpr,
) -> None:
    pair = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    column = tl.arange(0, BLOCK)
    used = part < parts
    peak = tl.load(peaks + pair * parts + part, mask=used, other=-float("inf"))
    weight = tl.exp(peak - tl.max(peak, axis=0))
    mass = tl.sum(weight * tl.load(masses + pair * parts + part, mask=used, other=0.0), axis=0)
    mask = used[:, None] & (column[None, :] < width)
    place = mixed + (pair * parts + part[:, None]) * width + column[None, :]
    total = tl.sum(weight[:, None] * tl.load(place, mask=mask, other=0.0), axis=0)
    tl.store(out + pair * width + column, (total / mass).to(out.dtype.element_ty), mask=column < width)


def decode_attention(
    q: Tensor, keys: Tensor, values: Tensor, filled: FilledLength, backend: Backend = "auto"
) -> Tensor:
    """Softmax attention, scale 1/sqrt(D), of one query a head over the filled positions of the cache.

    Args:
        q: [B, H, 1, D] float.
        keys, values: [B, H, L, D] float; what lies behind the filled positions is finite (the kernel does not read it).
        filled: its length is on the device, so that the host need not know it.

    Returns:
        [B, H, 1, D], the dtype of `q`; new memory.

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    expect_rank("q", q, 4)
    expect_rank("keys", keys, 4)
    expect_shape("q", q, (*q.shape[:2], 1, q.shape[3]))
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
    batch, heads, _, width = q.shape
    pairs, capacity = batch * heads, keys.shape[2]
    block = max(power_of_two(width), 16)
    rows = max(TILE.elements // block, 16)
    wanted = max(-(-PROGRAMS // pairs), 1)
    part_rows = -(-capacity // (wanted * rows)) * rows
    parts = -(-capacity // part_rows)
    mixed = torch.empty(pairs, parts, width, dtype=torch.float32, device=q.device)
    peaks, masses = (torch.empty(pairs, parts, dtype=torch.float32, device=q.device) for _ in range(2))
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    start(
        attend_part_kernel,
        (pairs, parts),
        *(q, keys, values, length, int(length.numel() > 1), mixed, peaks, masses, heads, width, part_rows, parts),
        *(q.stride(0), q.stride(1), *keys.stride()[:3], *values.stride()[:3], width**-0.5),
        warps=TILE.warps,
        ROWS=rows,
        BLOCK=block,
    )
    start(
        join_parts_kernel,
        (pairs,),
        *(mixed, peaks, masses, out, parts, width),
        warps=TILE.warps,
        PARTS=power_of_two(parts),
        BLOCK=block,
    )
    return out


def decode_attention_bound(q: Tensor, keys: Tensor, values: Tensor, filled: FilledLength) -> Bound:
    """The whole cache read once, as when it is full; four operations for each of its keys' elements."""
    return Bound(2 * q.nbytes + keys.nbytes + values.nbytes, 4 * keys.numel())

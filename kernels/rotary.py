"""Rotary embedding of interleaved pairs (x0, x1), (x2, x3), ... from tables of angles (FACTS 1.5, 2.5).

One kernel serves lines and grids: they differ in the table alone. Computing angles in the kernel would cost more
arithmetic than a row's memory traffic hides. Shapes: `B` batch, `H` heads, `N` tokens, `P` pairs, `M` table rows.
"""

import torch
from torch import Tensor

from kernels import reference
from kernels.tools.launch import Backend, Bound, constexpr, dispatch, jit, operand, start, tl
from kernels.tools.tiles import expect_dtype, expect_rank, expect_shape, expect_together, power_of_two, row_tile

HEADS = 4  # heads a program turns with one read of its angles


@jit
def rotate_kernel(
    x: operand,
    cos: operand,
    sin: operand,
    positions: operand,
    out: operand,
    tokens: operand,
    heads: operand,
    pairs: operand,
    entries: operand,
    x_batch: operand,
    x_head: operand,
    x_token: operand,
    ROWS: constexpr,
    PAIRS: constexpr,
    HEADS: constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    batch = tl.program_id(2).to(tl.int64)
    pair = tl.arange(0, PAIRS)[None, :]
    entry = token
    if positions is not None:
        entry = tl.load(positions + token, mask=token < tokens, other=0)
    known = (token < tokens) & (pair < pairs) & (entry >= 0) & (entry < entries)
    # A position outside the table cannot be reported from here; it must not pass for a rotation.
    cosine = tl.load(cos + entry * pairs + pair, mask=known, other=float("nan"))
    sine = tl.load(sin + entry * pairs + pair, mask=known, other=float("nan"))
    # Whole rows are loaded and split in registers: two strided loads would halve the bandwidth.
    column = tl.arange(0, 2 * PAIRS)[None, :]
    for turn in tl.static_range(HEADS):
        head = tl.program_id(1).to(tl.int64) * HEADS + turn
        # Not joined as a third comparison: the interpreter of Triton 3.9 refuses a mask joined with a scalar's.
        limit = tl.where(head < heads, 2 * pairs, 0)
        mask = (token < tokens) & (column < limit)
        source = x + batch * x_batch + head * x_head + token * x_token + column
        values = tl.load(source, mask=mask, other=0.0).to(tl.float32)
        even, odd = tl.split(tl.reshape(values, (ROWS, PAIRS, 2)))
        turned = tl.join(even * cosine - odd * sine, even * sine + odd * cosine)
        result = tl.reshape(turned, (ROWS, 2 * PAIRS)).to(out.dtype.element_ty)
        tl.store(out + ((batch * heads + head) * tokens + token) * (2 * pairs) + column, result, mask=mask)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None, backend: Backend = "auto") -> Tensor:
    """Turns each pair of each token by the angle that the tables hold for it.

    Args:
        x: [B, H, N, 2P] float, any strides but the last.
        cos, sin: [M, P] float32, dense.
        positions: [N] int64, the table row of each token, on the device; None where token n has row n, with M = N.
            Outside 0..M-1 the kernel writes NaN rows, since it cannot raise.

    Returns:
        [B, H, N, 2P], dense, the dtype of `x`; new memory.

    Raises:
        ValueError: a shape, dtype, layout or device does not fit.
    """
    expect_rank("x", x, 4)
    expect_dtype("x", x)
    if x.shape[-1] % 2:
        raise ValueError(f"x must have an even last dimension, not {x.shape[-1]}")
    operands = {"x": x, "cos": cos, "sin": sin}
    if positions is not None:
        expect_shape("positions", positions, x.shape[2:3])
        expect_dtype("positions", positions, (torch.int64,))
        operands["positions"] = positions
    entries = x.shape[2] if positions is None else cos.shape[0]
    for name, table in (("cos", cos), ("sin", sin)):
        expect_shape(name, table, (entries, x.shape[-1] // 2))
        expect_dtype(name, table, (torch.float32,))
        if not table.is_contiguous():
            raise ValueError(f"{name} must be dense, not of strides {table.stride()}")
    expect_together(**operands)
    return dispatch(backend, _rotate, reference.rotate, x, cos, sin, positions)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None) -> Tensor:
    batch, heads, tokens, width = x.shape
    tile = row_tile("rotate", width, x.device)
    rows = min(tile.rows, power_of_two(tokens))
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    start(
        rotate_kernel,
        (-(-tokens // rows), -(-heads // HEADS), batch),
        *(x, cos, sin, positions, out, tokens, heads, width // 2, cos.shape[0], x.stride(0), x.stride(1), x.stride(2)),
        warps=tile.warps,
        ROWS=rows,
        PAIRS=tile.block // 2,
        HEADS=HEADS,
    )
    return out


def rotate_bound(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Bound:
    """x read and written once, the tables' used rows read once; three operations an element."""
    rows = 2 * x.shape[2] * cos.shape[1] * cos.element_size()
    return Bound(2 * x.nbytes + rows + (0 if positions is None else positions.nbytes), 3 * x.numel())

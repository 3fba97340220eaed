"""Rotary embedding of interleaved pairs (x0, x1), (x2, x3), ... from tables of angles (REFERENCE 1.5, 2.5).

One kernel serves lines and grids: they differ in the table alone. Computing angles in the kernel would cost more
arithmetic than a row's memory traffic hides. Shapes: `B` batch, `H` heads, `N` tokens, `P` pairs.
"""

import torch
from torch import Tensor

from kernels.tools.launch import Backend, Bound, constexpr, dispatch, jit, operand, start, tl
from kernels.tools.tiles import dense_rows, expect_dtype, expect_floats, expect_shape, power_of_two, row_tile

HEADS = 4  # heads a program turns with one read of its angles


@jit
def rotate_kernel(
    x: operand,
    cos: operand,
    sin: operand,
    out: operand,
    tokens: operand,
    heads: operand,
    pairs: operand,
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
    known = (token < tokens) & (pair < pairs)
    cosine = tl.load(cos + token * pairs + pair, mask=known, other=0.0)
    sine = tl.load(sin + token * pairs + pair, mask=known, other=0.0)
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


def rotate(x: Tensor, cos: Tensor, sin: Tensor, backend: Backend = "auto") -> Tensor:
    """Turns each pair of each token by the angle that the tables hold for it.

    Args:
        x: [..., H, N, 2P] float.
        cos, sin: [N, P] float32; or [B, 1, N, P] where batch rows differ, for which there is no kernel.

    Returns:
        [..., H, N, 2P], the dtype of `x`; new memory.

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    expect_dtype("cos", cos, (torch.float32,))
    expect_dtype("sin", sin, (torch.float32,))
    expect_floats(x=x, cos=cos, sin=sin)
    if x.shape[-1] % 2:
        raise ValueError(f"x must have an even last dimension, not {x.shape[-1]}")
    for name, table in (("cos", cos), ("sin", sin)):
        expect_shape(name, table, (*table.shape[:-2], x.shape[-2], x.shape[-1] // 2))
    return dispatch("reference" if cos.ndim > 2 else backend, _rotate, rotate_reference, x, cos, sin)


def rotate_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    # As complex numbers, which on a CPU takes a quarter of the time.
    rows = x.to(torch.float32, memory_format=torch.contiguous_format).contiguous()  # of float32 `to` makes no other
    pairs = torch.view_as_complex(rows.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2).to(x.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    x, cos, sin = dense_rows(x), cos.contiguous(), sin.contiguous()
    tokens, width = x.shape[-2:]
    tile = row_tile(width)
    rows = min(tile.rows, power_of_two(tokens))
    # Queries and keys of a packed projection lie apart: one start each.
    for part, turned in zip(x, out, strict=True) if x.ndim == 5 else ((x, out),):
        batch, heads = part.shape[:2]
        start(
            rotate_kernel,
            (-(-tokens // rows), -(-heads // HEADS), batch),
            *(part, cos, sin, turned, tokens, heads, width // 2, *part.stride()[:3]),
            warps=tile.warps,
            ROWS=rows,
            PAIRS=tile.block // 2,
            HEADS=HEADS,
        )
    return out


def rotate_bound(x: Tensor, cos: Tensor, sin: Tensor) -> Bound:
    """x read and written once, the tables read once; three operations an element."""
    return Bound(2 * x.nbytes + cos.nbytes + sin.nbytes, 3 * x.numel())

"""RMSNorm of the planner, alone or together with the residual add before it (REFERENCE 2.5).

Shapes: `D` width; leading dimensions are rows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.tools.launch import Backend, Bound, constexpr, dispatch, jit, operand, start, tl
from kernels.tools.tiles import expect_floats, expect_shape, row_tile


@jit
def rms_kernel(
    x: operand,
    update: operand,
    weight: operand,
    total: operand,
    out: operand,
    rows: operand,
    width: operand,
    eps: operand,
    ROWS: constexpr,
    BLOCK: constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < width)
    place = row * width + column
    values = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    if update is not None:
        values += tl.load(update + place, mask=mask, other=0.0).to(tl.float32)
        # The stream is kept rounded, and what is normed is what is kept.
        rounded = values.to(total.dtype.element_ty)
        tl.store(total + place, rounded, mask=mask)
        values = rounded.to(tl.float32)
    square = tl.sum(values * values, axis=1)[:, None] / width
    gain = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    result = values * tl.rsqrt(square + eps) * gain
    tl.store(out + place, result.to(out.dtype.element_ty), mask=mask)


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None = None, backend: Backend = "auto"
) -> Tensor:
    """RMSNorm, scaled in float32 and cast last.

    Args:
        x: [..., D] float.
        weight: [D] float.
        dtype: of the result, that of `x` if None.

    Returns:
        [..., D]; new memory.

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    expect_shape("weight", weight, x.shape[-1:])
    expect_floats(x=x, weight=weight)
    return dispatch(backend, _rms_norm, rms_norm_reference, x, weight, eps, dtype)


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None = None) -> Tensor:
    return F.rms_norm(x.float(), weight.shape, weight.float(), eps).to(dtype or x.dtype)


def _rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x, dtype=dtype)
    _start(x, None, weight, None, out, eps)
    return out


def rms_norm_bound(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None = None) -> Bound:
    """x read and the result written once; four operations an element."""
    return Bound(x.nbytes + x.numel() * (dtype or x.dtype).itemsize + weight.nbytes, 4 * x.numel())


def add_rms_norm(
    x: Tensor, update: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None = None, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """RMSNorm of a residual stream after an update.

    Args:
        x, update: [..., D] float.
        weight: [D] float.
        dtype: of the norm, that of `x` if None.

    Returns:
        (normed, total): the norm of total, and total = x + update as the stream keeps it, in the dtype of `x`; each
        [..., D], new memory.

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    expect_shape("weight", weight, x.shape[-1:])
    expect_shape("update", update, x.shape)
    expect_floats(x=x, update=update, weight=weight)
    return dispatch(backend, _add_rms_norm, add_rms_norm_reference, x, update, weight, eps, dtype)


def add_rms_norm_reference(
    x: Tensor, update: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    total = x + update
    return rms_norm_reference(total, weight, eps, dtype), total


def _add_rms_norm(
    x: Tensor, update: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    x, update = x.contiguous(), update.contiguous()
    out, total = torch.empty_like(x, dtype=dtype), torch.empty_like(x)
    _start(x, update, weight, total, out, eps)
    return out, total


def add_rms_norm_bound(
    x: Tensor, update: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None = None
) -> Bound:
    """Two streams read, two written; five operations an element."""
    written = x.nbytes + x.numel() * (dtype or x.dtype).itemsize
    return Bound(x.nbytes + update.nbytes + written + weight.nbytes, 5 * x.numel())


def _start(x: Tensor, update: Tensor | None, weight: Tensor, total: Tensor | None, out: Tensor, eps: float) -> None:
    width = x.shape[-1]
    rows = x.numel() // width
    tile = row_tile(width)
    start(
        rms_kernel,
        (tile.programs(rows),),
        *(x, update, weight, total, out, rows, width, eps),
        warps=tile.warps,
        ROWS=tile.rows,
        BLOCK=tile.block,
    )

"""Adaptive LayerNorm and gated residual of a joint sequence: text rows first, image rows after (FACTS 3.2, 3.3).

Modulations come as [B, 2, D]: row 0 for image tokens, row 1 for text tokens, any strides but the last, so that a view
of the layer's 12 D modulation vector needs no copy. Shapes: `B` batch, `N` tokens, `D` width.
"""

import torch
from torch import Tensor

from kernels import reference
from kernels.tools.launch import Backend, Bound, constexpr, dispatch, jit, operand, start, tl
from kernels.tools.tiles import expect_dtype, expect_rank, expect_shape, expect_together, row_tile


@jit
def modulate_kernel(
    x: operand,
    weight: operand,
    bias: operand,
    shift: operand,
    scale: operand,
    out: operand,
    rows: operand,
    tokens: operand,
    text_rows: operand,
    width: operand,
    x_batch: operand,
    x_token: operand,
    shift_batch: operand,
    shift_kind: operand,
    scale_batch: operand,
    scale_kind: operand,
    eps: operand,
    ROWS: constexpr,
    BLOCK: constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < width)
    batch, token = row // tokens, row % tokens
    kind = (token < text_rows).to(tl.int64)
    values = tl.load(x + batch * x_batch + token * x_token + column, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(values, axis=1)[:, None] / width
    centred = tl.where(mask, values - mean, 0.0)
    variance = tl.sum(centred * centred, axis=1)[:, None] / width
    gain = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    offset = tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)
    normed = centred * tl.rsqrt(variance + eps) * gain + offset
    factor = tl.load(scale + batch * scale_batch + kind * scale_kind + column, mask=mask, other=0.0).to(tl.float32)
    moved = tl.load(shift + batch * shift_batch + kind * shift_kind + column, mask=mask, other=0.0).to(tl.float32)
    result = normed * (1.0 + factor) + moved
    tl.store(out + row * width + column, result.to(out.dtype.element_ty), mask=mask)


@jit
def residual_kernel(
    x: operand,
    update: operand,
    gate: operand,
    control: operand,
    out: operand,
    rows: operand,
    tokens: operand,
    text_rows: operand,
    width: operand,
    gate_batch: operand,
    gate_kind: operand,
    ROWS: constexpr,
    BLOCK: constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < width)
    batch = row // tokens
    kind = (row % tokens < text_rows).to(tl.int64)
    place = row * width + column
    opening = tl.load(gate + batch * gate_batch + kind * gate_kind + column, mask=mask, other=0.0).to(tl.float32)
    total = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    total += opening * tl.load(update + place, mask=mask, other=0.0).to(tl.float32)
    if control is not None:
        total += tl.load(control + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=mask)


def layernorm_modulate(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor,
    scale: Tensor,
    text_rows: int,
    eps: float,
    dtype: torch.dtype | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """LayerNorm, then y (1 + scale) + shift with one pair for image rows, one for text rows, in one pass.

    Args:
        x: [B, N, D] float.
        weight, bias: [D] float.
        shift, scale: [B, 2, D] float, image row then text row.
        text_rows: the first so many tokens of each sequence are text.
        dtype: of the result, that of `x` if None; the type of a matrix product that follows saves a pass to cast.

    Returns:
        [B, N, D], dense; new memory.

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    expect_rank("x", x, 3)
    batch, tokens, width = x.shape
    for name, tensor in (("weight", weight), ("bias", bias)):
        expect_shape(name, tensor, (width,))
    for name, tensor in (("shift", shift), ("scale", scale)):
        expect_shape(name, tensor, (batch, 2, width))
    _expect_text_rows(text_rows, tokens)
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias), ("shift", shift), ("scale", scale)):
        expect_dtype(name, tensor)
    expect_together(x=x, weight=weight, bias=bias, shift=shift, scale=scale)
    return dispatch(
        backend, _layernorm_modulate, reference.layernorm_modulate, x, weight, bias, shift, scale, text_rows, eps, dtype
    )


def _layernorm_modulate(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor,
    scale: Tensor,
    text_rows: int,
    eps: float,
    dtype: torch.dtype | None,
) -> Tensor:
    batch, tokens, width = x.shape
    tile = row_tile("modulate", width, x.device)
    out = torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)
    start(
        modulate_kernel,
        (tile.programs(batch * tokens),),
        *(x, weight, bias, shift, scale, out, batch * tokens, tokens, text_rows, width, x.stride(0), x.stride(1)),
        *(shift.stride(0), shift.stride(1), scale.stride(0), scale.stride(1), eps),
        warps=tile.warps,
        ROWS=tile.rows,
        BLOCK=tile.block,
    )
    return out


def layernorm_modulate_bound(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor,
    scale: Tensor,
    text_rows: int,
    eps: float,
    dtype: torch.dtype | None = None,
) -> Bound:
    """x read and the result written once, each modulation read once; ten operations an element."""
    written = x.numel() * (dtype or x.dtype).itemsize
    return Bound(x.nbytes + written + weight.nbytes + bias.nbytes + shift.nbytes + scale.nbytes, 10 * x.numel())


def gated_residual(
    x: Tensor, update: Tensor, gate: Tensor, text_rows: int, control: Tensor | None = None, backend: Backend = "auto"
) -> Tensor:
    """x + gate update, plus the control branch's residual if there is one.

    Args:
        x, update, control: [B, N, D] float, dense.
        gate: [B, 2, D] float, image row then text row.
        text_rows: the first so many tokens of each sequence are text.

    Returns:
        [B, N, D], the dtype of `x`; new memory.

    Raises:
        ValueError: a shape, dtype, layout or device does not fit.
    """
    expect_rank("x", x, 3)
    batch, tokens, width = x.shape
    expect_shape("gate", gate, (batch, 2, width))
    _expect_text_rows(text_rows, tokens)
    streams = {"x": x, "update": update} | ({} if control is None else {"control": control})
    for name, tensor in streams.items():
        expect_shape(name, tensor, x.shape)
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be dense, not of strides {tensor.stride()}")
    for name, tensor in (streams | {"gate": gate}).items():
        expect_dtype(name, tensor)
    expect_together(**streams, gate=gate)
    return dispatch(backend, _gated_residual, reference.gated_residual, x, update, gate, text_rows, control)


def _gated_residual(x: Tensor, update: Tensor, gate: Tensor, text_rows: int, control: Tensor | None) -> Tensor:
    batch, tokens, width = x.shape
    tile = row_tile("residual", width, x.device)
    out = torch.empty_like(x)
    start(
        residual_kernel,
        (tile.programs(batch * tokens),),
        *(x, update, gate, control, out, batch * tokens, tokens, text_rows, width, gate.stride(0), gate.stride(1)),
        warps=tile.warps,
        ROWS=tile.rows,
        BLOCK=tile.block,
    )
    return out


def gated_residual_bound(
    x: Tensor, update: Tensor, gate: Tensor, text_rows: int, control: Tensor | None = None
) -> Bound:
    """Each stream read once, the sum written once; two or three operations an element."""
    added = (update,) if control is None else (update, control)
    traffic = 2 * x.nbytes + sum(stream.nbytes for stream in added) + gate.nbytes
    return Bound(traffic, (1 + len(added)) * x.numel())


def _expect_text_rows(text_rows: int, tokens: int) -> None:
    if not 0 <= text_rows <= tokens:
        raise ValueError(f"text_rows must be in 0..{tokens}, the number of tokens, not {text_rows}")

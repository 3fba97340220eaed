"""Adaptive LayerNorm and gated residual of a sequence of text tokens, then image tokens (REFERENCE 3.2, 3.3).

Shift, scale and gate come as [B, 2, D]: row 0 for image tokens, row 1 for text tokens; [B, 1, D] where there are only
image tokens. Shapes: `B` batch, `N` tokens, `D` width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.tools.launch import Backend, Bound, constexpr, dispatch, jit, operand, start, tl
from kernels.tools.tiles import dense_rows, expect_floats, expect_rank, expect_shape, row_tile


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
    text_tokens: operand,
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
    kind = (token < text_tokens).to(tl.int64)
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
    text_tokens: operand,
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
    kind = (row % tokens < text_tokens).to(tl.int64)
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
    text_tokens: int,
    eps: float,
    dtype: torch.dtype | None = None,
    folded: Callable[[], tuple[Tensor, Tensor]] | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """LayerNorm, then y (1 + scale) + shift with one pair for image tokens, one for text tokens, in one pass.

    Args:
        x: [B, N, D] float.
        weight, bias: [D] float.
        shift, scale: [B, 2, D] float.
        text_tokens: the first so many tokens of each sequence are text.
        dtype: of the result, that of `x` if None; the type of a matrix product that follows saves a pass to cast.
        folded: recalls what `fold_modulation` gives for these operands, which torch computes with where B is 1.

    Returns:
        [B, N, D]; new memory.

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    expect_rank("x", x, 3)
    batch, tokens, width = x.shape
    for name, tensor in (("weight", weight), ("bias", bias)):
        expect_shape(name, tensor, (width,))
    _expect_text_tokens(text_tokens, tokens)
    for name, tensor in (("shift", shift), ("scale", scale)):
        expect_shape(name, tensor, (batch, _rows(text_tokens, shift), width))
    expect_floats(x=x, weight=weight, bias=bias, shift=shift, scale=scale)
    operands, rest = (x, weight, bias, shift, scale), (text_tokens, eps, dtype, folded)
    return dispatch(backend, _layernorm_modulate, layernorm_modulate_reference, *operands, *rest)


def layernorm_modulate_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor,
    scale: Tensor,
    text_tokens: int,
    eps: float,
    dtype: torch.dtype | None = None,
    folded: Callable[[], tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    if len(x) == 1:
        weights, biases = fold_modulation(weight, bias, shift, scale) if folded is None else folded()
        parts = [
            F.layer_norm(part, weight.shape, weights[row], biases[row], eps) for row, part in _split(x, text_tokens)
        ]
    else:
        normed = F.layer_norm(x, weight.shape, weight, bias, eps)
        parts = [
            part * (1 + scale[:, row : row + 1]) + shift[:, row : row + 1] for row, part in _split(normed, text_tokens)
        ]
    return _join(parts).to(dtype or x.dtype)


def fold_modulation(weight: Tensor, bias: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and biases [2, D] that norm, scale and shift of a batch of one have together, which spares two passes."""
    factor = 1 + scale[0].float()
    return weight * factor, bias * factor + shift[0]


def _split(x: Tensor, text_tokens: int) -> list[tuple[int, Tensor]]:
    """The text tokens and the image tokens of [B, N, D], as far as there are any, each after its row of modulations."""
    if text_tokens in (0, x.shape[1]):
        return [(int(text_tokens > 0), x)]
    text, image = x.tensor_split([text_tokens], dim=1)
    return [(1, text), (0, image)]


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _layernorm_modulate(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor,
    scale: Tensor,
    text_tokens: int,
    eps: float,
    dtype: torch.dtype | None,
    folded: Callable[[], tuple[Tensor, Tensor]] | None,
) -> Tensor:
    batch, tokens, width = x.shape
    tile = row_tile(width)
    x, shift, scale = dense_rows(x), dense_rows(shift), dense_rows(scale)
    out = torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)
    start(
        modulate_kernel,
        (tile.programs(batch * tokens),),
        *(x, weight, bias, shift, scale, out, batch * tokens, tokens, text_tokens, width, x.stride(0), x.stride(1)),
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
    text_tokens: int,
    eps: float,
    dtype: torch.dtype | None = None,
    folded: object = None,
) -> Bound:
    """x read and the result written once, each modulation read once; ten operations an element."""
    written = x.numel() * (dtype or x.dtype).itemsize
    return Bound(x.nbytes + written + weight.nbytes + bias.nbytes + shift.nbytes + scale.nbytes, 10 * x.numel())


def gated_residual(
    x: Tensor,
    update: Tensor,
    gate: Tensor,
    text_tokens: int,
    control: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """x + gate update, plus the control branch's residual if there is one.

    Args:
        x, update, control: [B, N, D] float.
        gate: [B, 2, D] float.
        text_tokens: the first so many tokens of each sequence are text.

    Returns:
        [B, N, D], the dtype of `x`; new memory.

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    expect_rank("x", x, 3)
    batch, tokens, width = x.shape
    _expect_text_tokens(text_tokens, tokens)
    expect_shape("gate", gate, (batch, _rows(text_tokens, gate), width))
    streams = {"x": x, "update": update} | ({} if control is None else {"control": control})
    for name, tensor in streams.items():
        expect_shape(name, tensor, x.shape)
    expect_floats(**streams, gate=gate)
    return dispatch(backend, _gated_residual, gated_residual_reference, x, update, gate, text_tokens, control)


def gated_residual_reference(
    x: Tensor, update: Tensor, gate: Tensor, text_tokens: int, control: Tensor | None = None
) -> Tensor:
    pieces = zip(_split(x, text_tokens), _split(update, text_tokens), strict=True)
    total = _join([torch.addcmul(part, gate[:, row : row + 1], added) for (row, part), (_, added) in pieces])
    return total if control is None else total + control


def _gated_residual(x: Tensor, update: Tensor, gate: Tensor, text_tokens: int, control: Tensor | None) -> Tensor:
    batch, tokens, width = x.shape
    tile = row_tile(width)
    x, update, gate = x.contiguous(), update.contiguous(), dense_rows(gate)
    control = None if control is None else control.contiguous()
    out = torch.empty_like(x)
    start(
        residual_kernel,
        (tile.programs(batch * tokens),),
        *(x, update, gate, control, out, batch * tokens, tokens, text_tokens, width, gate.stride(0), gate.stride(1)),
        warps=tile.warps,
        ROWS=tile.rows,
        BLOCK=tile.block,
    )
    return out


def gated_residual_bound(
    x: Tensor, update: Tensor, gate: Tensor, text_tokens: int, control: Tensor | None = None
) -> Bound:
    """Each stream read once, the sum written once; two or three operations an element."""
    added = (update,) if control is None else (update, control)
    traffic = 2 * x.nbytes + sum(stream.nbytes for stream in added) + gate.nbytes
    return Bound(traffic, (1 + len(added)) * x.numel())


def _expect_text_tokens(text_tokens: int, tokens: int) -> None:
    if not 0 <= text_tokens <= tokens:
        raise ValueError(f"text_tokens must be in 0..{tokens}, the number of tokens, not {text_tokens}")


def _rows(text_tokens: int, modulation: Tensor) -> int:
    """Rows that a modulation must have: without text tokens one is enough."""
    return 1 if text_tokens == 0 and modulation.shape[1] == 1 else 2

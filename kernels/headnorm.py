"""LayerNorm over each head of the renderer's queries and keys (REFERENCE 3.2).

Shapes: `B` batch, `H` heads, `N` tokens, `D` head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.tools.launch import Backend, Bound, constexpr, dispatch, jit, operand, start, tl
from kernels.tools.tiles import dense_rows, expect_floats, expect_rank, expect_shape, row_tile


@jit
def norm_rows(
    x: operand,
    weight: operand,
    bias: operand,
    out: operand,
    row: operand,
    rows: operand,
    heads: operand,
    tokens: operand,
    width: operand,
    x_batch: operand,
    x_head: operand,
    x_token: operand,
    eps: operand,
    BLOCK: constexpr,
) -> None:
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < width)
    batch, head, token = row // (heads * tokens), row // tokens % heads, row % tokens
    place = batch * x_batch + head * x_head + token * x_token + column
    values = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(values, axis=1)[:, None] / width
    centred = tl.where(mask, values - mean, 0.0)
    variance = tl.sum(centred * centred, axis=1)[:, None] / width
    gain = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    offset = tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)
    result = centred * tl.rsqrt(variance + eps) * gain + offset
    tl.store(out + row * width + column, result.to(out.dtype.element_ty), mask=mask)


@jit
def head_norm_kernel(
    q: operand,
    k: operand,
    q_weight: operand,
    q_bias: operand,
    k_weight: operand,
    k_bias: operand,
    q_out: operand,
    k_out: operand,
    rows: operand,
    heads: operand,
    tokens: operand,
    width: operand,
    q_batch: operand,
    q_head: operand,
    q_token: operand,
    k_batch: operand,
    k_head: operand,
    k_token: operand,
    eps: operand,
    ROWS: constexpr,
    BLOCK: constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    if tl.program_id(1) == 0:
        norm_rows(
            q, q_weight, q_bias, q_out, row, rows, heads, tokens, width, q_batch, q_head, q_token, eps, BLOCK=BLOCK
        )
    else:
        norm_rows(
            k, k_weight, k_bias, k_out, row, rows, heads, tokens, width, k_batch, k_head, k_token, eps, BLOCK=BLOCK
        )


def head_norm(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    eps: float,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """LayerNorm over each head of queries and keys, both in one start.

    Args:
        q, k: [B, H, N, D] float.
        q_weight, q_bias, k_weight, k_bias: [D] float.

    Returns:
        (q, k), each [B, H, N, D], dtypes as given; new memory.

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    expect_rank("q", q, 4)
    expect_shape("k", k, q.shape)
    vectors = {"q_weight": q_weight, "q_bias": q_bias, "k_weight": k_weight, "k_bias": k_bias}
    for name, vector in vectors.items():
        expect_shape(name, vector, q.shape[-1:])
    expect_floats(q=q, k=k, **vectors)
    return dispatch(backend, _head_norm, head_norm_reference, q, k, q_weight, q_bias, k_weight, k_bias, eps)


def head_norm_reference(
    q: Tensor, k: Tensor, q_weight: Tensor, q_bias: Tensor, k_weight: Tensor, k_bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    # Under autocast the norms may answer in float32.
    normed_q = F.layer_norm(q, q_weight.shape, q_weight, q_bias, eps).to(q.dtype)
    normed_k = F.layer_norm(k, k_weight.shape, k_weight, k_bias, eps).to(k.dtype)
    return normed_q, normed_k


def _head_norm(
    q: Tensor, k: Tensor, q_weight: Tensor, q_bias: Tensor, k_weight: Tensor, k_bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    # Rows of any stride, so that views of a packed projection need no copy.
    q, k = dense_rows(q), dense_rows(k)
    batch, heads, tokens, width = q.shape
    rows = batch * heads * tokens
    tile = row_tile(width)
    q_out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    k_out = torch.empty(k.shape, dtype=k.dtype, device=k.device)
    start(
        head_norm_kernel,
        (tile.programs(rows), 2),
        *(q, k, q_weight, q_bias, k_weight, k_bias, q_out, k_out, rows, heads, tokens, width),
        *(*q.stride()[:3], *k.stride()[:3], eps),
        warps=tile.warps,
        ROWS=tile.rows,
        BLOCK=tile.block,
    )
    return q_out, k_out


def head_norm_bound(
    q: Tensor, k: Tensor, q_weight: Tensor, q_bias: Tensor, k_weight: Tensor, k_bias: Tensor, eps: float
) -> Bound:
    """Queries and keys read and written once; eight operations an element."""
    vectors = q_weight.nbytes + q_bias.nbytes + k_weight.nbytes + k_bias.nbytes
    return Bound(2 * (q.nbytes + k.nbytes) + vectors, 8 * (q.numel() + k.numel()))

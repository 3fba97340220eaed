"""Nearest code of the semantic tokenizer's codebook, and codes back to features (REFERENCE 1.7).

Shapes: `N` tokens, `K` codes, `d` width of a code, `D` width of a feature.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.tools.launch import Backend, Bound, Uncovered, constexpr, dispatch, jit, operand, start, tl
from kernels.tools.tiles import (
    dense_rows,
    expect_dtype,
    expect_floats,
    expect_rank,
    expect_shape,
    expect_together,
    power_of_two,
)

ROWS = 16  # the smallest tile of tl.dot: a group has few tokens, and more programs hide more latency
CODES = 64
COLUMNS = 64
WARPS = 4
SMALLEST_TILE = 16  # tl.dot takes no shorter side
WIDEST_CODE = 128  # a tile holds whole codes


@jit
def nearest_kernel(
    x: operand,
    codebook: operand,
    out: operand,
    rows: operand,
    codes: operand,
    width: operand,
    x_row: operand,
    COSINE: constexpr,
    ROWS: constexpr,
    CODES: constexpr,
    BLOCK: constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row[:, None] < rows) & (column[None, :] < width)
    values = tl.load(x + row[:, None] * x_row + column[None, :], mask=inside, other=0.0).to(tl.float32)
    length = tl.sum(values * values, axis=1)
    best = tl.full((ROWS,), float("inf"), tl.float32)
    nearest = tl.zeros((ROWS,), tl.int32)
    for first in range(0, codes, CODES):
        code = first + tl.arange(0, CODES)
        known = (column[:, None] < width) & (code[None, :] < codes)
        source = codebook + code[None, :].to(tl.int64) * width + column[:, None]
        entries = tl.load(source, mask=known, other=0.0).to(tl.float32)
        product = tl.dot(values, entries, input_precision="ieee")
        if COSINE:
            # Codes have length one, and the row's own length does not change the order.
            score = -product
        else:
            # The root rounds near-ties together, as the published numerics do: the lower index then wins.
            square = tl.sum(entries * entries, axis=0)
            score = tl.sqrt_rn(tl.maximum(length[:, None] + square[None, :] - 2.0 * product, 0.0))
        score = tl.where(code[None, :] < codes, score, float("inf"))
        low = tl.min(score, axis=1)
        place = tl.argmin(score, axis=1)
        nearest = tl.where(low < best, first + place, nearest)
        best = tl.minimum(low, best)
    tl.store(out + row, nearest.to(tl.int64), mask=row < rows)


@jit
def lookup_kernel(
    weight: operand,
    bias: operand,
    codebook: operand,
    indices: operand,
    out: operand,
    rows: operand,
    codes: operand,
    width: operand,
    features: operand,
    ROWS: constexpr,
    COLUMNS: constexpr,
    BLOCK: constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    feature = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    column = tl.arange(0, BLOCK)
    code = tl.load(indices + row, mask=row < rows, other=0)
    valid = (code >= 0) & (code < codes)
    known = valid[:, None] & (column[None, :] < width)
    entries = tl.load(codebook + code[:, None] * width + column[None, :], mask=known, other=0.0).to(tl.float32)
    used = (column[:, None] < width) & (feature[None, :] < features)
    matrix = tl.load(weight + feature[None, :] * width + column[:, None], mask=used, other=0.0).to(tl.float32)
    result = tl.dot(entries, matrix, input_precision="ieee")
    result += tl.load(bias + feature, mask=feature < features, other=0.0).to(tl.float32)[None, :]
    # An index outside the codebook cannot be reported from here; it must not pass for a feature.
    result = tl.where(valid[:, None], result, float("nan"))
    mask = (row[:, None] < rows) & (feature[None, :] < features)
    tl.store(out + row[:, None] * features + feature[None, :], result.to(out.dtype.element_ty), mask=mask)


def nearest_code(x: Tensor, codebook: Tensor, cosine: bool, backend: Backend = "auto") -> Tensor:
    """Index of the nearest row of the codebook, the lowest of equals.

    Args:
        x: [N, d] float.
        codebook: [K, d] float.
        cosine: nearest by angle instead of by Euclidean distance; codes are then of length one.

    Returns:
        [N] int64; new memory.

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    expect_rank("x", x, 2)
    expect_rank("codebook", codebook, 2)
    expect_shape("x", x, (x.shape[0], codebook.shape[1]))
    expect_floats(x=x, codebook=codebook)
    return dispatch(backend, _nearest_code, nearest_code_reference, x, codebook, cosine)


def nearest_code_reference(x: Tensor, codebook: Tensor, cosine: bool) -> Tensor:
    product = x @ codebook.T
    if cosine:
        return product.argmax(dim=-1)
    squared = x.pow(2).sum(-1)[:, None] + codebook.pow(2).sum(-1)[None, :] - 2.0 * product
    # The root rounds near-ties together, which decides some of them: it belongs to the published numerics.
    return squared.clamp(min=0.0).sqrt().argmin(dim=-1)


def _nearest_code(x: Tensor, codebook: Tensor, cosine: bool) -> Tensor:
    x, codebook = dense_rows(x), codebook.contiguous()
    out = torch.empty(x.shape[0], dtype=torch.int64, device=x.device)
    start(
        nearest_kernel,
        (-(-x.shape[0] // ROWS),),
        *(x, codebook, out, x.shape[0], codebook.shape[0], x.shape[1], x.stride(0)),
        warps=WARPS,
        COSINE=cosine,
        ROWS=ROWS,
        CODES=CODES,
        BLOCK=_code_block(x.shape[1]),
    )
    return out


def nearest_code_bound(x: Tensor, codebook: Tensor, cosine: bool) -> Bound:
    """Rows and codebook read once, an index a row written; two operations for each pair's coordinate."""
    return Bound(x.nbytes + codebook.nbytes + 8 * x.shape[0], 2 * x.numel() * codebook.shape[0])


def lookup_project(
    indices: Tensor, codebook: Tensor, weight: Tensor, bias: Tensor, backend: Backend = "auto"
) -> Tensor:
    """Rows of the codebook through a linear layer.

    Args:
        indices: [...] int64 in 0..K-1. Outside, the kernel writes NaN rows, since it cannot raise.
        codebook: [K, d] float.
        weight: [D, d] float.
        bias: [D] float.

    Returns:
        [..., D], the dtype of `weight`; new memory.

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    expect_rank("codebook", codebook, 2)
    expect_rank("weight", weight, 2)
    expect_shape("weight", weight, (weight.shape[0], codebook.shape[1]))
    expect_shape("bias", bias, weight.shape[:1])
    expect_dtype("indices", indices, (torch.int64,))
    expect_floats(weight=weight, bias=bias, codebook=codebook)
    expect_together(indices=indices, codebook=codebook)
    return dispatch(backend, _lookup_project, lookup_project_reference, indices, codebook, weight, bias)


def lookup_project_reference(indices: Tensor, codebook: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(F.embedding(indices, codebook.to(weight.dtype)), weight, bias)


def _lookup_project(indices: Tensor, codebook: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    codebook, weight, rows = codebook.contiguous(), weight.contiguous(), indices.numel()
    features = weight.shape[0]
    out = torch.empty(*indices.shape, features, dtype=weight.dtype, device=weight.device)
    start(
        lookup_kernel,
        (-(-rows // ROWS), -(-features // COLUMNS)),
        *(weight, bias, codebook, indices.contiguous(), out, rows, codebook.shape[0], codebook.shape[1], features),
        warps=WARPS,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        BLOCK=_code_block(codebook.shape[1]),
    )
    return out


def lookup_project_bound(indices: Tensor, codebook: Tensor, weight: Tensor, bias: Tensor) -> Bound:
    """Indices, the rows they name and the layer read once, features written once."""
    rows, (features, width) = indices.numel(), weight.shape
    gathered = min(rows, codebook.shape[0]) * width * codebook.element_size()
    written = rows * features * weight.element_size()
    return Bound(indices.nbytes + gathered + weight.nbytes + bias.nbytes + written, 2 * rows * features * width)


def _code_block(width: int) -> int:
    if width > WIDEST_CODE:
        raise Uncovered(f"a tile holds codes of at most {WIDEST_CODE}, not {width}")
    return max(power_of_two(width), SMALLEST_TILE)

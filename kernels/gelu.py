"""Gated GELU of the planner's feed-forward layer, tanh form (REFERENCE 2.5).

Shapes: `D` width; leading dimensions are rows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.tools.launch import Backend, Bound, constexpr, dispatch, jit, operand, start, tl
from kernels.tools.tiles import Tile, dense_rows, expect_floats, expect_shape, power_of_two

TILE = Tile(2048, 4)


@jit
def gated_gelu_kernel(
    gate: operand, up: operand, out: operand, width: operand, gate_row: operand, up_row: operand, BLOCK: constexpr
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    x = tl.load(gate + row * gate_row + column, mask=mask, other=0.0).to(tl.float32)
    factor = tl.load(up + row * up_row + column, mask=mask, other=0.0).to(tl.float32)
    # 0.5 (1 + tanh u) is sigmoid(2 u); twice sqrt(2 / pi) is 1.5957691216057308.
    activated = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    tl.store(out + row * width + column, (activated * factor).to(out.dtype.element_ty), mask=mask)


def gated_gelu(gate: Tensor, up: Tensor, backend: Backend = "auto") -> Tensor:
    """gelu_tanh(gate) up.

    Args:
        gate, up: [..., D] float.

    Returns:
        [..., D], the dtype of `gate`; new memory.

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    expect_shape("up", up, gate.shape)
    expect_floats(gate=gate, up=up)
    return dispatch(backend, _gated_gelu, gated_gelu_reference, gate, up)


def gated_gelu_reference(gate: Tensor, up: Tensor) -> Tensor:
    return F.gelu(gate, approximate="tanh") * up


def _gated_gelu(gate: Tensor, up: Tensor) -> Tensor:
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    # Rows of any stride, so that halves of a packed projection need no copy.
    gate, up = (dense_rows(x).flatten(0, -2) for x in (gate, up))
    rows, width = gate.shape
    block = min(power_of_two(width), TILE.elements)
    start(
        gated_gelu_kernel,
        (rows, -(-width // block)),
        *(gate, up, out, width, gate.stride(0), up.stride(0)),
        warps=TILE.warps,
        BLOCK=block,
    )
    return out


def gated_gelu_bound(gate: Tensor, up: Tensor) -> Bound:
    """Two operands read, one written; eight operations an element."""
    return Bound(2 * gate.nbytes + up.nbytes, 8 * gate.numel())

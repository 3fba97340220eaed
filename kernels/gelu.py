"""Gated GELU of the planner's feed-forward layer, tanh form (FACTS 2.5).

Shapes: `D` width; leading dimensions are rows.
"""

import torch
from torch import Tensor

from kernels import reference
from kernels.tools.launch import Backend, Bound, constexpr, dispatch, jit, operand, start, tl
from kernels.tools.tiles import Tile, expect_dtype, expect_rank, expect_shape, expect_together, power_of_two, tile

USUAL = Tile(2048, 4)


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
        gate, up: [N, D] float, rows of any stride, so halves of a packed projection need no copy.

    Returns:
        [N, D], dense, the dtype of `gate`; new memory.

    Raises:
        ValueError: a shape, dtype, layout or device does not fit.
    """
    expect_rank("gate", gate, 2)
    expect_shape("up", up, gate.shape)
    expect_dtype("gate", gate)
    expect_dtype("up", up)
    expect_together(gate=gate, up=up)
    return dispatch(backend, _gated_gelu, reference.gated_gelu, gate, up)


def _gated_gelu(gate: Tensor, up: Tensor) -> Tensor:
    rows, width = gate.shape
    part = tile("gated_gelu", width, gate.device, USUAL)
    block = min(power_of_two(width), part.elements)
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    start(
        gated_gelu_kernel,
        (rows, -(-width // block)),
        *(gate, up, out, width, gate.stride(0), up.stride(0)),
        warps=part.warps,
        BLOCK=block,
    )
    return out


def gated_gelu_bound(gate: Tensor, up: Tensor) -> Bound:
    """Two operands read, one written; eight operations an element."""
    return Bound(2 * gate.nbytes + up.nbytes, 8 * gate.numel())

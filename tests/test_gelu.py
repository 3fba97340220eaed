"""Gated GELU against its reference."""

import pytest
import torch
from tolerances import DTYPES, assert_close, fused, normal, widened

from kernels import gelu


# The interpreter's numpy warns where exp reaches infinity, which sigmoid turns into 0 as it should.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 100), (431, 1), (63, 100), (5, 431), (2, 2049)], ids=str)
def test_gated_gelu(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """gated_gelu reads both halves of a packed projection, far beyond one block and far from zero."""
    rows, width = shape
    gate, up = (normal(rows, 2 * width, dtype=dtype) * 4).chunk(2, dim=1)
    assert_close(fused(gelu.gated_gelu, gate, up), gelu.gated_gelu_reference(*widened(gate, up)), dtype)


def test_refuses_wrong_operands() -> None:
    """Unequal shapes, integers and empty operands are named before anything runs."""
    gate = normal(3, 8)
    with pytest.raises(ValueError, match=r"up must have shape \(3, 8\)"):
        gelu.gated_gelu(gate, gate[:, :4])
    with pytest.raises(ValueError, match="gate must be"):
        gelu.gated_gelu(gate.long(), gate)
    with pytest.raises(ValueError, match="gate must have elements"):
        gelu.gated_gelu(gate[:0], gate[:0])

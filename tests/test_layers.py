"""Layers that several stages share."""

from __future__ import annotations

import torch
from tolerances import DEVICE, normal

from engine.runtime.layers import RMSNorm, autocast_dtype
from kernels.tools import launch


def _norm(width: int) -> RMSNorm:
    norm = RMSNorm(width).to(DEVICE).requires_grad_(False)
    norm.weight.copy_(normal(width, seed=2))
    return norm


@torch.inference_mode()
def test_norms_are_the_same_with_kernels() -> None:
    """Alone and after a residual add; the sum is what is normed."""
    norm, x, update = _norm(100), normal(2, 3, 100), normal(2, 3, 100, seed=1)
    plain = norm(x), *norm.add(x, update)
    with launch.preferring("triton"):
        torch.testing.assert_close((norm(x), *norm.add(x, update)), plain)
    torch.testing.assert_close(plain[1:], (norm(x + update), x + update))


def test_norms_have_the_dtype_of_the_next_product() -> None:
    """Under autocast a norm has the type of the product, in torch and in a kernel; to learn, that of its input."""
    norm, x = _norm(8), normal(3, 8)
    for backend in ("reference", "triton"):
        with torch.autocast(DEVICE.type, torch.bfloat16), torch.inference_mode(), launch.preferring(backend):
            normed, total = norm.add(x, x.bfloat16())
            assert (norm(x).dtype, normed.dtype, total.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        assert autocast_dtype(x) == torch.float32
    with torch.inference_mode():
        assert autocast_dtype(x) == torch.float32

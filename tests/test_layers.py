"""Layers that several stages share: a kernel and plain torch give the same."""

from __future__ import annotations

import pytest
import torch
from tolerances import DEVICE, normal

from engine.runtime import layers
from kernels.tools import launch


def _both(function: object, *operands: torch.Tensor) -> tuple[object, object]:
    """What a function gives written out in torch, and with kernels."""
    assert callable(function)
    with torch.inference_mode():
        with launch.preferring("reference"):
            plain = function(*operands)
        with launch.preferring("triton"):
            return plain, function(*operands)


def test_rotary_kernel_equals_torch() -> None:
    """Views of a packed projection are turned by the same angles either way."""
    q = normal(2, 5, 3, 2, 8).permute(2, 0, 3, 1, 4)[0]
    angles = layers.rotary_angles(torch.arange(5, device=DEVICE), 8)
    plain, kernel = _both(layers.rotate, q, angles.cos(), angles.sin())
    torch.testing.assert_close(kernel, plain)


def test_tables_of_each_row_have_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rows stand at different positions plain torch turns them, also with kernels ordered."""
    monkeypatch.setattr(layers.rotary, "rotate", lambda *operands: pytest.fail("the kernel knows one table"))
    x, angles = normal(2, 1, 3, 8), normal(2, 1, 3, 4, seed=1)
    plain, kernel = _both(layers.rotate, x, angles.cos(), angles.sin())
    torch.testing.assert_close(kernel, plain)


def test_rms_norm_kernel_equals_torch() -> None:
    """Alone and after a residual add; the sum is what is normed."""
    norm = layers.RMSNorm(100).to(DEVICE).requires_grad_(False)
    norm.weight.copy_(normal(100, seed=2))
    x, update = normal(2, 3, 100), normal(2, 3, 100, seed=1)
    plain, kernel = _both(norm, x)
    torch.testing.assert_close(kernel, plain)
    plain, kernel = _both(norm.add, x, update)
    torch.testing.assert_close(kernel, plain)
    assert isinstance(plain, tuple)
    torch.testing.assert_close(plain[1], x + update)
    torch.testing.assert_close(plain[0], norm(x + update))


def test_gated_gelu_kernel_equals_torch() -> None:
    """Any leading dimensions, any values."""
    plain, kernel = _both(layers.gated_gelu, normal(2, 3, 100), normal(2, 3, 100, seed=1))
    torch.testing.assert_close(kernel, plain)


def test_a_kernel_writes_what_the_next_product_reads() -> None:
    """Under autocast the norm's kernel gives the product's type; outside it the input's."""
    norm = layers.RMSNorm(8).to(DEVICE).requires_grad_(False)
    x = normal(3, 8)
    assert layers.product_dtype(x) == torch.float32
    with torch.autocast(DEVICE.type, torch.bfloat16), torch.inference_mode(), launch.preferring("triton"):
        assert layers.product_dtype(x) == torch.bfloat16
        assert norm(x).dtype == torch.bfloat16
        normed, total = norm.add(x, x.bfloat16())
        assert (normed.dtype, total.dtype) == (torch.bfloat16, torch.float32)

"""The transformer layer: segments, and memory of earlier tokens."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.perceptual import block as module
from engine.perceptual.block import Block, Layout, Segment
from engine.perceptual.timesteps import Times
from kernels.tools import launch


def _block() -> Block:
    torch.manual_seed(0)
    block = Block(hidden=16, heads=2, time_dim=8, mlp_ratio=2)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block.eval()


TIMES = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(1))
X = torch.randn(1, 9, 16, generator=torch.Generator().manual_seed(2))


@torch.inference_mode()
def test_tokens_after_a_memory_equal_tokens_after_tokens() -> None:
    """Later tokens see the same whether earlier ones are there or only their keys and values."""
    block = _block()
    whole, own = block(X, Layout((Segment(4, True, 0), Segment(5, False, 1)), Times(TIMES)))
    memory = block.read(X[:, :4], Layout((Segment(4, True, 0),), Times(TIMES)))
    later, _ = block(X[:, 4:], Layout((Segment(5, False, 1),), Times(TIMES)), memory)
    torch.testing.assert_close(later, whole[:, 4:])
    torch.testing.assert_close(memory.keys, own.keys[:, :, :4])
    torch.testing.assert_close(memory.values, own.values[:, :, :4])


@torch.inference_mode()
def test_segments_choose_kind_and_time() -> None:
    """Text or image, and which time, each change what a segment's tokens become."""
    block = _block()
    one = block(X, Layout((Segment(9, False, 0),), Times(TIMES)))[0]
    assert (one - block(X, Layout((Segment(9, True, 0),), Times(TIMES)))[0]).abs().max() > 1e-3
    assert (one - block(X, Layout((Segment(9, False, 1),), Times(TIMES)))[0]).abs().max() > 1e-3
    split = block(X, Layout((Segment(3, False, 0), Segment(6, False, 0)), Times(TIMES)))[0]
    torch.testing.assert_close(split, one)


@pytest.mark.parametrize("text", [0, 4])
@torch.inference_mode()
def test_kernels_equal_torch(text: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms, modulations, gates and the control residual give the same fused, with text tokens and without."""
    block = _block()
    segments = (Segment(4, True, 0), Segment(5, False, 0)) if text else (Segment(9, False, 0),)
    plain, plain_own = block(X, Layout(segments, Times(TIMES)), residual=X.flip(1))
    used = []
    for name in ("layernorm_modulate", "gated_residual", "head_norm"):
        kernel = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *rest, kernel=kernel, name=name: (used.append(name), kernel(*rest))[1])
    with launch.preferring("triton"):
        fused, fused_own = block(X, Layout(segments, Times(TIMES)), residual=X.flip(1))
    torch.testing.assert_close(fused, plain)
    torch.testing.assert_close(fused_own.keys, plain_own.keys)
    assert used == ["layernorm_modulate", "head_norm", "gated_residual", "layernorm_modulate", "gated_residual"]


@torch.inference_mode()
def test_two_times_have_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where prompt and new frames differ in time the layer is written out, also with kernels ordered."""
    monkeypatch.setattr(module, "layernorm_modulate", lambda *operands: pytest.fail("the kernel knows one time"))
    layout = Layout((Segment(4, True, 0), Segment(5, False, 1)), Times(TIMES))
    plain = _block()(X, layout)[0]
    with launch.preferring("triton"):
        torch.testing.assert_close(_block()(X, layout)[0], plain)


@torch.inference_mode()
def test_a_new_layer_passes_tokens_on() -> None:
    """With its initial modulation, which is zero, a layer changes nothing."""
    block = Block(hidden=16, heads=2, time_dim=8, mlp_ratio=2)
    torch.testing.assert_close(block(X, Layout((Segment(9, False, 0),), Times(TIMES)))[0], X, rtol=0, atol=0)

"""The transformer layer: segments, and memory of earlier tokens."""

from __future__ import annotations

import torch
from torch import nn

from engine.perceptual.block import Block, Layout, Segment


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
    whole, own = block(X, Layout((Segment(4, True, 0), Segment(5, False, 1)), TIMES))
    memory = block.read(X[:, :4], Layout((Segment(4, True, 0),), TIMES))
    later, _ = block(X[:, 4:], Layout((Segment(5, False, 1),), TIMES), memory)
    torch.testing.assert_close(later, whole[:, 4:])
    torch.testing.assert_close(memory.keys, own.keys[:, :, :4])
    torch.testing.assert_close(memory.values, own.values[:, :, :4])


@torch.inference_mode()
def test_segments_choose_kind_and_time() -> None:
    """Text or image, and which time, each change what a segment's tokens become."""
    block = _block()
    one = block(X, Layout((Segment(9, False, 0),), TIMES))[0]
    assert (one - block(X, Layout((Segment(9, True, 0),), TIMES))[0]).abs().max() > 1e-3
    assert (one - block(X, Layout((Segment(9, False, 1),), TIMES))[0]).abs().max() > 1e-3
    split = block(X, Layout((Segment(3, False, 0), Segment(6, False, 0)), TIMES))[0]
    torch.testing.assert_close(split, one)


@torch.inference_mode()
def test_a_new_layer_passes_tokens_on() -> None:
    """With its initial modulation, which is zero, a layer changes nothing."""
    block = Block(hidden=16, heads=2, time_dim=8, mlp_ratio=2)
    torch.testing.assert_close(block(X, Layout((Segment(9, False, 0),), TIMES))[0], X, rtol=0, atol=0)

"""The transformer layer: text and image tokens, and keys and values of earlier tokens."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.perceptual.block import DiTBlock, TokenLayout
from engine.perceptual.timesteps import TimestepCache
from kernels.tools import launch


def _block() -> DiTBlock:
    torch.manual_seed(0)
    block = DiTBlock(hidden=16, heads=2, time_dim=8, mlp_ratio=2)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block.eval()


def _layout(text_tokens: int, time: int = 0) -> TokenLayout:
    return TokenLayout(text_tokens, TimestepCache(TIMES[time]))


TIMES = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(1))
X = torch.randn(1, 9, 16, generator=torch.Generator().manual_seed(2))


@torch.inference_mode()
def test_tokens_after_a_cache_equal_tokens_after_tokens() -> None:
    """Later tokens see the same whether earlier ones are there or only their keys and values."""
    block = _block()
    whole, own = block(X, _layout(4))
    cached = block.keys_values(X[:, :4], _layout(4))
    later, _ = block(X[:, 4:], _layout(0), cached)
    torch.testing.assert_close(later, whole[:, 4:])
    torch.testing.assert_close(cached.keys, own.keys[:, :, :4])
    torch.testing.assert_close(cached.values, own.values[:, :, :4])


@torch.inference_mode()
def test_context_tokens_attend_to_themselves_only() -> None:
    """Tokens after the context change nothing in it, and see all of it."""
    block, layout = _block(), TokenLayout(2, TimestepCache(TIMES[0]), context_tokens=5)
    whole = block(X, layout)[0]
    torch.testing.assert_close(block(X[:, :5], _layout(2))[0], whole[:, :5])
    torch.testing.assert_close(block(X, _layout(2))[0][:, 5:], whole[:, 5:])


@torch.inference_mode()
def test_kind_and_time_matter() -> None:
    """Text or image, and which time, each change what a token becomes."""
    block = _block()
    image = block(X, _layout(0))[0]
    assert (image - block(X, _layout(9))[0]).abs().max() > 1e-3
    assert (image - block(X, _layout(0, time=1))[0]).abs().max() > 1e-3


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("text_tokens", [0, 4, 9])
@torch.inference_mode()
def test_kernels_equal_torch(text_tokens: int, rows: int) -> None:
    """Norms, modulations, gates and the control residual give the same fused, for one row and for two."""
    block, x = _block(), torch.cat([X, X.flip(2)])[:rows]
    layout = TokenLayout(text_tokens, TimestepCache(TIMES[:rows, 0]))
    plain, plain_own = block(x, layout, control=x.flip(1))
    with launch.preferring("triton"):
        fused, fused_own = block(x, layout, control=x.flip(1))
    torch.testing.assert_close(fused, plain)
    torch.testing.assert_close(fused_own.keys, plain_own.keys)


@torch.inference_mode()
def test_a_new_layer_passes_tokens_on() -> None:
    """With its initial modulation, which is zero, a layer changes nothing."""
    block = DiTBlock(hidden=16, heads=2, time_dim=8, mlp_ratio=2)
    torch.testing.assert_close(block(X, _layout(0))[0], X, rtol=0, atol=0)

"""The tokenizer's transformer layer: masked self-attention with rotary positions, and a plain MLP.

Shapes: `B` batch, `N` tokens, `W` width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from engine.runtime.attention import attend
from kernels.rotary import rotate

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

_MLP_RATIO = 4


@dataclass(frozen=True, slots=True)
class SequenceGeometry:
    """Positions and mask of a GOP of a certain length."""

    cos: Tensor  # [N, head_dim / 2] float32
    sin: Tensor
    mask: Tensor | BlockMask  # [N, N] bool, or the same in blocks


class MaskedAttention(nn.Module):
    """Masked self-attention with rotary positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, geometry: SequenceGeometry) -> Tensor:
        """[B, N, W] -> [B, N, W]."""
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in (self.query, self.key, self.value)
        )
        q = rotate(q, geometry.cos, geometry.sin)
        k = rotate(k, geometry.cos, geometry.sin)
        out: Tensor = self.out(attend(q, k, v, geometry.mask).transpose(1, 2).flatten(2))
        return out


class TokenizerBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = MaskedAttention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, _MLP_RATIO * width)
        self.down = nn.Linear(_MLP_RATIO * width, width)

    def forward(self, x: Tensor, geometry: SequenceGeometry) -> Tensor:
        """[B, N, W] -> [B, N, W]."""
        x = x + self.attention(self.attention_norm(x), geometry)
        out: Tensor = x + self.down(F.gelu(self.up(self.mlp_norm(x))))
        return out

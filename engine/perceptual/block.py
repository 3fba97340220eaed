"""One joint-attention layer over text and image tokens.

Shapes: `B` batch, `N` tokens, `D` width, `H` heads, `E` distinct times, `M` context tokens, `Z` time embedding width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.attention import attend

_NORM_EPS = 1e-5  # of the layer norms over the width
_HEAD_NORM_EPS = 1e-6  # of the norms over a head's queries and keys
_PARTS = 6  # shift, scale, gate of the attention, then of the MLP


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens that share their modulation."""

    tokens: int
    text: bool
    time: int  # row of `Layout.times`


@dataclass(frozen=True, slots=True)
class Layout:
    """How a token sequence is put together, and the time embedding of each part of it."""

    segments: tuple[Segment, ...]
    times: Tensor  # [E, B, Z], after the SiLU

    @property
    def lengths(self) -> list[int]:
        return [segment.tokens for segment in self.segments]

    def spread(self, modulation: Tensor) -> list[tuple[Tensor, ...]]:
        """Six [B, 1, D] tensors for each segment, out of [E, B, 12 D]: the image's six come first (FACTS 3.2)."""
        image, text = modulation.unsqueeze(-2).chunk(2, dim=-1)
        return [(text if part.text else image)[part.time].chunk(_PARTS, dim=-1) for part in self.segments]


@dataclass(frozen=True, slots=True)
class KeysValues:
    """What later tokens need of earlier ones, in one layer."""

    keys: Tensor  # [B, H, N, D/H], after the norm
    values: Tensor  # [B, H, N, D/H]


def _join(parts: Iterable[Tensor]) -> Tensor:
    listed = list(parts)
    return listed[0] if len(listed) == 1 else torch.cat(listed, dim=1)


class Block(nn.Module):
    """Adaptive-norm transformer layer, weights shared by text and image, modulation apart (FACTS 3.2 point 4)."""

    def __init__(self, hidden: int, heads: int, time_dim: int, mlp_ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(time_dim, 2 * _PARTS * hidden)
        self.norm1 = nn.LayerNorm(hidden, eps=_NORM_EPS)
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.query_norm = nn.LayerNorm(hidden // heads, eps=_HEAD_NORM_EPS)
        self.key_norm = nn.LayerNorm(hidden // heads, eps=_HEAD_NORM_EPS)
        self.out = nn.Linear(hidden, hidden)
        self.norm2 = nn.LayerNorm(hidden, eps=_NORM_EPS)
        self.mlp_in = nn.Linear(hidden, mlp_ratio * hidden)
        self.mlp_out = nn.Linear(mlp_ratio * hidden, hidden)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, layout: Layout, context: KeysValues | None = None) -> tuple[Tensor, KeysValues]:
        """One layer.

        Args:
            x: [B, N, D].
            layout: of the N tokens.
            context: keys and values of tokens before these, [B, H, M, D/H]; they are attended to as well.

        Returns:
            [B, N, D], and this layer's keys and values of the N tokens alone.
        """
        parts = layout.spread(self.modulation(layout.times))
        query, own = self._project(x, layout, parts)
        keys, values = own.keys, own.values
        if context is not None:
            keys, values = torch.cat([context.keys, keys], 2), torch.cat([context.values, values], 2)
        attended = self.out(attend(query, keys, values).transpose(1, 2).flatten(2))
        x = self._gated(x, attended, layout, [part[2] for part in parts])
        normed = self._modulated(self.norm2(x), layout, [part[3:5] for part in parts])
        mlp = self.mlp_out(F.gelu(self.mlp_in(normed), approximate="tanh"))
        return self._gated(x, mlp, layout, [part[5] for part in parts]), own

    def read(self, x: Tensor, layout: Layout) -> KeysValues:
        """The keys and values that `forward` would return, without the rest of the layer."""
        return self._project(x, layout, layout.spread(self.modulation(layout.times)))[1]

    def _project(self, x: Tensor, layout: Layout, parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, KeysValues]:
        normed = self._modulated(self.norm1(x), layout, [part[:2] for part in parts])
        query, key, value = self.qkv(normed).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # Under autocast the norms may answer in float32; the values tell the type that attention shall run in.
        return self.query_norm(query).to(value.dtype), KeysValues(self.key_norm(key).to(value.dtype), value)

    @staticmethod
    def _modulated(x: Tensor, layout: Layout, shift_scale: list[tuple[Tensor, ...]]) -> Tensor:
        pieces = zip(torch.split(x, layout.lengths, dim=1), shift_scale, strict=True)
        return _join(piece * (1 + scale) + shift for piece, (shift, scale) in pieces)

    @staticmethod
    def _gated(x: Tensor, update: Tensor, layout: Layout, gates: list[Tensor]) -> Tensor:
        pieces = zip(torch.split(update, layout.lengths, dim=1), gates, strict=True)
        return x + _join(gate * piece for piece, gate in pieces)

"""One joint-attention layer over text and image tokens.

Shapes: `B` batch, `N` tokens, `D` width, `H` heads, `E` distinct times, `M` context tokens, `Z` time embedding width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.perceptual.timesteps import Times
from engine.runtime.attention import attend
from engine.runtime.layers import product_dtype
from engine.runtime.packed_weights import gelu_of
from kernels.headnorm import head_norm
from kernels.modulation import gated_residual, layernorm_modulate
from kernels.tools.launch import fuses

_NORM_EPS = 1e-5  # of the layer norms over the width
_HEAD_NORM_EPS = 1e-6  # of the norms over a head's queries and keys
_PARTS = 6  # shift, scale, gate of the attention, then of the MLP
_ATTENTION, _MLP = 0, 3  # where their shift, scale and gate begin


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
    times: Times  # of [E, B, Z]
    own: int = 0  # so many first tokens attend to themselves only

    def split(self, x: Tensor) -> Sequence[Tensor]:
        """[B, N, D] -> what belongs to each segment."""
        return [x] if len(self.segments) == 1 else torch.split(x, [part.tokens for part in self.segments], dim=1)

    def spread(self, modulation: Tensor) -> list[tuple[Tensor, ...]]:
        """Six [B, 1, D] tensors for each segment, out of [E, B, 12 D]: the image's six come first (FACTS 3.2)."""
        image, text = modulation.unsqueeze(-2).chunk(2, dim=-1)
        return [(text if part.text else image)[part.time].chunk(_PARTS, dim=-1) for part in self.segments]


@dataclass(frozen=True, slots=True)
class Modulation:
    """Shift, scale and gate of every token in one layer, in the form that suits what computes with them."""

    layout: Layout
    parts: list[tuple[Tensor, ...]]  # six [B, 1, D] for each segment; empty where `kinds` serves
    kinds: Tensor | None  # [B, 2, 6, D], for image tokens and for text tokens, where kernels run

    @classmethod
    def of(cls, layout: Layout, vectors: Tensor, x: Tensor) -> Modulation:
        """From [E, B, 12 D] for tokens `x`: the image's six come first (FACTS 3.2)."""
        times = {part.time for part in layout.segments}
        # A kernel knows one time and text before images; nothing that a stream is made with needs more.
        if len(times) == 1 and not any(part.text for part in layout.segments[1:]) and fuses(x):
            return cls(layout, [], vectors[times.pop()].unflatten(-1, (2, _PARTS, -1)))
        return cls(layout, layout.spread(vectors), None)

    @property
    def _text_rows(self) -> int:
        first = self.layout.segments[0]
        return first.tokens if first.text else 0

    def normed(self, norm: nn.LayerNorm, x: Tensor, first: int) -> Tensor:
        """Layer norm of [B, N, D], scaled and shifted by the parts from `first` on."""
        if self.kinds is not None:
            shift, scale = self.kinds[:, :, first], self.kinds[:, :, first + 1]
            dtype = product_dtype(x)
            return layernorm_modulate(x, norm.weight, norm.bias, shift, scale, self._text_rows, norm.eps, dtype)
        if len(x) > 1:
            pieces = zip(self.layout.split(norm(x)), self.parts, strict=True)
            return _join(piece * (1 + part[first + 1]) + part[first] for piece, part in pieces)
        # Of one row, scale and shift can be the norm's own, which spares two passes.
        affine = self.layout.times.kept((norm, self.layout.segments), lambda: self._affine(norm, first))
        pieces = zip(self.layout.split(x), affine, strict=True)
        return _join(F.layer_norm(piece, piece.shape[-1:], weight, bias, norm.eps) for piece, (weight, bias) in pieces)

    def gated(self, x: Tensor, update: Tensor, first: int, residual: Tensor | None = None) -> Tensor:
        """x + gate update + residual, all [B, N, D]; the gate is the third part from `first` on."""
        if self.kinds is not None:
            rest = None if residual is None else residual.contiguous()
            gate = self.kinds[:, :, first + 2]
            return gated_residual(x.contiguous(), update.contiguous(), gate, self._text_rows, rest)
        pieces = zip(*(self.layout.split(rows) for rows in (x, update)), self.parts, strict=True)
        x = _join(torch.addcmul(piece, part[first + 2], added) for piece, added, part in pieces)
        return x if residual is None else x + residual

    def _affine(self, norm: nn.LayerNorm, first: int) -> list[tuple[Tensor, Tensor]]:
        """For each segment, weight and bias [D] that norm, scale and shift have together."""
        parts = [(part[first][0, 0], 1 + part[first + 1][0, 0].float()) for part in self.parts]
        return [(norm.weight * scale, norm.bias * scale + shift) for shift, scale in parts]


@dataclass(frozen=True, slots=True)
class KeysValues:
    """What later tokens need of earlier ones, in one layer."""

    keys: Tensor  # [B, H, N, D/H], after the norm
    values: Tensor  # [B, H, N, D/H]


def _attend(query: Tensor, keys: Tensor, values: Tensor, own: int) -> Tensor:
    """[B, H, N, D/H] queries over M keys and values -> the same shape; the first `own` of all by themselves."""
    if own in (0, query.shape[2]):
        return attend(query, keys, values)
    first = attend(query[:, :, :own], keys[:, :, :own], values[:, :, :own])
    return torch.cat([first, attend(query[:, :, own:], keys, values)], dim=2)


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

    def forward(
        self, x: Tensor, layout: Layout, context: KeysValues | None = None, residual: Tensor | None = None
    ) -> tuple[Tensor, KeysValues]:
        """One layer.

        Args:
            x: [B, N, D].
            layout: of the N tokens.
            context: keys and values of tokens before these, [B, H, M, D/H]; they are attended to as well.
            residual: [B, N, D], added to the result.

        Returns:
            [B, N, D], and this layer's keys and values of the N tokens alone.
        """
        modulation = Modulation.of(layout, layout.times.through(self.modulation), x)
        query, own = self._project(modulation.normed(self.norm1, x, _ATTENTION))
        keys, values = own.keys, own.values
        if context is not None:
            keys, values = torch.cat([context.keys, keys], 2), torch.cat([context.values, values], 2)
        attended = self.out(_attend(query, keys, values, layout.own).transpose(1, 2).flatten(2))
        x = modulation.gated(x, attended, _ATTENTION)
        mlp = self.mlp_out(gelu_of(self.mlp_in, modulation.normed(self.norm2, x, _MLP)))
        return modulation.gated(x, mlp, _MLP, residual), own

    def read(self, x: Tensor, layout: Layout) -> KeysValues:
        """The keys and values that `forward` would return, without the rest of the layer."""
        modulation = Modulation.of(layout, layout.times.through(self.modulation), x)
        return self._project(modulation.normed(self.norm1, x, _ATTENTION))[1]

    def _project(self, normed: Tensor) -> tuple[Tensor, KeysValues]:
        query, key, value = self.qkv(normed).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if fuses(query):
            of_query, of_key = self.query_norm, self.key_norm
            query, key = head_norm(
                query, key, of_query.weight, of_query.bias, of_key.weight, of_key.bias, _HEAD_NORM_EPS
            )
            return query, KeysValues(key, value)
        # Under autocast the norms may answer in float32; the values tell the type that attention shall run in.
        return self.query_norm(query).to(value.dtype), KeysValues(self.key_norm(key).to(value.dtype), value)

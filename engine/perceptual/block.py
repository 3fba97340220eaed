"""One joint-attention layer over text and image tokens.

Shapes: `B` batch, `N` tokens, `D` width, `H` heads, `M` context tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from engine.perceptual.sharing import WHOLE, TokenShare
from engine.perceptual.timesteps import TimestepCache
from engine.runtime.attention import attend
from engine.runtime.kv_cache import KeysValues
from engine.runtime.layers import autocast_dtype
from engine.runtime.packed_weights import gelu_of
from kernels.headnorm import head_norm
from kernels.modulation import fold_modulation, gated_residual, layernorm_modulate

_NORM_EPS = 1e-5  # of the layer norms over the width
_HEAD_NORM_EPS = 1e-6  # of the norms over a head's queries and keys
_PARTS = 6  # shift, scale, gate of the attention, then of the MLP


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """Kinds and timestep of a sequence of text tokens, then image tokens."""

    text_tokens: int  # of this process's share
    timestep: TimestepCache
    context_tokens: int = 0  # so many first tokens of the whole sequence attend to themselves only
    share: TokenShare = WHOLE


@dataclass(frozen=True, slots=True)
class Modulation:
    """Shift, scale and gate [B, 2, D] of a sublayer, for image tokens and for text tokens."""

    layout: TokenLayout
    shift: Tensor
    scale: Tensor
    gate: Tensor

    def normed(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        """Layer norm of [B, N, D], scaled and shifted, in the dtype of the matrix product that follows."""
        affine = norm.weight, norm.bias, self.shift, self.scale
        folded = partial(self.layout.timestep.cached, norm, lambda: fold_modulation(*affine))
        return layernorm_modulate(x, *affine, self.layout.text_tokens, norm.eps, autocast_dtype(x), folded)

    def gated(self, x: Tensor, update: Tensor, control: Tensor | None = None) -> Tensor:
        """x + gate update + control, all [B, N, D]."""
        return gated_residual(x, update, self.gate, self.layout.text_tokens, control)


class DiTBlock(nn.Module):
    """Adaptive-norm transformer layer, weights shared by text and image, modulation apart (REFERENCE 3.2 point 4)."""

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
        self, x: Tensor, layout: TokenLayout, context: KeysValues | None = None, control: Tensor | None = None
    ) -> tuple[Tensor, KeysValues]:
        """One layer.

        Args:
            x: [B, N, D], the tokens of this process's share.
            layout: of the sequence that they are of.
            context: keys and values of tokens before these, [B, H, M, D/H]; they are attended to as well.
            control: [B, N, D] of the control branch, added to the result.

        Returns:
            [B, N, D], and this layer's keys and values of the sequence alone: all of its tokens, of the share's heads.
        """
        attention, mlp = self._modulations(layout)
        query, own = self._project(attention.normed(self.norm1, x), layout.share)
        keys, values = own.keys, own.values
        if context is not None:
            keys, values = torch.cat([context.keys, keys], 2), torch.cat([context.values, values], 2)
        attended = layout.share.to_tokens(_attend(query, keys, values, layout.context_tokens))
        x = attention.gated(x, self.out(attended.transpose(1, 2).flatten(2)))
        return mlp.gated(x, self.mlp_out(gelu_of(self.mlp_in, mlp.normed(self.norm2, x))), control), own

    def keys_values(self, x: Tensor, layout: TokenLayout) -> KeysValues:
        """The keys and values that `forward` would return, without the rest of the layer."""
        return self._project(self._modulations(layout)[0].normed(self.norm1, x), layout.share)[1]

    def _modulations(self, layout: TokenLayout) -> tuple[Modulation, Modulation]:
        """The attention's and the MLP's; of the layer's 12 vectors the image's six come first (REFERENCE 3.2)."""
        vectors = layout.timestep.modulate(self.modulation).unflatten(-1, (2, _PARTS, -1))
        parts = vectors.unbind(2)
        return Modulation(layout, *parts[:3]), Modulation(layout, *parts[3:])

    def _project(self, normed: Tensor, share: TokenShare) -> tuple[Tensor, KeysValues]:
        query, key, value = self.qkv(normed).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        of_query, of_key = self.query_norm, self.key_norm
        query, key = head_norm(query, key, of_query.weight, of_query.bias, of_key.weight, of_key.bias, _HEAD_NORM_EPS)
        query, key, value = share.to_heads(query, key, value)
        return query, KeysValues(key, value)


def _attend(query: Tensor, keys: Tensor, values: Tensor, context_tokens: int) -> Tensor:
    """[B, H, N, D/H] queries over M keys and values -> the same shape; context tokens see themselves only."""
    if context_tokens in (0, query.shape[2]):
        return attend(query, keys, values)
    first, rest = query.tensor_split([context_tokens], dim=2)
    alone = attend(first, keys[:, :, :context_tokens], values[:, :, :context_tokens])
    return torch.cat([alone, attend(rest, keys, values)], dim=2)

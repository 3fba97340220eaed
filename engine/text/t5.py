"""The encoder of T5 v1.1 at a small size: relative positions as a bias of attention, gated MLP, norms without shifts.

Modules and parameters have the names of transformers' `T5EncoderModel`, whose files it reads and whose embeddings it
gives bit for bit; importing that library takes as long as everything else that preset `mini` loads. Shapes: `B`
prompts, `L` tokens, `K` width, `H` heads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BUCKETS, FARTHEST = 32, 128  # of relative positions, and the distance from which on all are in the last bucket
_EPS = 1e-6  # of every norm


class T5Norm(nn.Module):
    """Root-mean-square norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., K]."""
        normed = x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + _EPS)
        return self.weight * normed.to(self.weight.dtype)


class T5Attention(nn.Module):
    """Self-attention without a scale; the first layer's has the bias that all layers add."""

    def __init__(self, width: int, heads: int, has_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        nn.init.normal_(self.q.weight, std=width**-0.5 * (width // heads) ** -0.5)
        for layer in (self.k, self.v, self.o):
            nn.init.normal_(layer.weight, std=width**-0.5)
        if has_bias:
            self.relative_attention_bias = nn.Embedding(BUCKETS, heads)
            nn.init.normal_(self.relative_attention_bias.weight, std=width**-0.5)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """[B, L, K] with `bias` [B, H, L, L] -> [B, L, K]."""
        q, k, v = (project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=1.0)
        out: Tensor = self.o(attended.transpose(1, 2).flatten(2))
        return out

    def bias(self, mask: Tensor) -> Tensor:
        """What is added to the scores, [B, H, L, L], where `mask` [B, L] is 1; else the lowest number."""
        buckets = relative_buckets(mask.shape[1], mask.device)
        bias: Tensor = self.relative_attention_bias(buckets).permute(2, 0, 1)
        return torch.where(mask[:, None, None].bool(), bias, torch.finfo(bias.dtype).min).contiguous()


def relative_buckets(length: int, device: torch.device) -> Tensor:
    """[L, L] int64, query by key: one bucket a step up to 8, wider ones behind; keys after the query in the second
    half."""
    places = torch.arange(length, device=device)
    way = places[None, :] - places[:, None]
    half, exact = BUCKETS // 2, BUCKETS // 4
    distance = way.abs()
    growth = torch.log(distance.float() / exact) / math.log(FARTHEST / exact) * (half - exact)
    far = (exact + growth.to(torch.int64)).clamp(max=half - 1)
    return torch.where(distance < exact, distance, far) + half * (way > 0)


class T5Gated(nn.Module):
    """MLP whose inner layer is gated by a tanh-GELU."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.wi_0, self.wi_1 = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.wo = nn.Linear(inner, width, bias=False)
        for layer in (self.wi_0, self.wi_1):
            nn.init.normal_(layer.weight, std=width**-0.5)
        nn.init.normal_(self.wo.weight, std=inner**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, K] -> [B, L, K]."""
        out: Tensor = self.wo(_gelu(self.wi_0(x)) * self.wi_1(x))
        return out


def _gelu(x: Tensor) -> Tensor:
    """Tanh-GELU in the operations of transformers; torch's own differs in the last bits."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class T5Sublayer(nn.Module):
    """A norm before one of the two, which is added to its input."""

    def __init__(self, width: int, **inner: nn.Module) -> None:
        """`inner`: the module, under the name that it has in files."""
        super().__init__()
        ((self._name, module),) = inner.items()
        self.add_module(self._name, module)
        self.layer_norm = T5Norm(width)

    def forward(self, x: Tensor, *bias: Tensor) -> Tensor:
        """[B, L, K] -> [B, L, K]."""
        out: Tensor = x + self.get_submodule(self._name)(self.layer_norm(x), *bias)
        return out


class T5Block(nn.Module):
    """Attention and MLP."""

    def __init__(self, width: int, heads: int, inner: int, has_bias: bool) -> None:
        super().__init__()
        attention = T5Attention(width, heads, has_bias)
        sublayers = T5Sublayer(width, SelfAttention=attention), T5Sublayer(width, DenseReluDense=T5Gated(width, inner))
        self.layer = nn.ModuleList(sublayers)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """[B, L, K] -> [B, L, K]."""
        out: Tensor = self.layer[1](self.layer[0](x, bias))
        return out


class T5Stack(nn.Module):
    """The layers behind the embedding of tokens."""

    def __init__(self, shared: nn.Embedding, layers: int, heads: int, inner: int) -> None:
        super().__init__()
        width = shared.embedding_dim
        self.embed_tokens = shared
        self.block = nn.ModuleList(T5Block(width, heads, inner, number == 0) for number in range(layers))
        self.final_layer_norm = T5Norm(width)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Int64 [B, L] and what is a token, not padding, int64 [B, L] -> [B, L, K]."""
        x = self.embed_tokens(tokens)
        first = self.get_submodule("block.0.layer.0.SelfAttention")
        assert isinstance(first, T5Attention)
        bias = first.bias(mask)
        for block in self.block:
            x = block(x, bias)
        out: Tensor = self.final_layer_norm(x)
        return out


class T5Encoder(nn.Module):
    """Tokens to embeddings."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, inner: int) -> None:
        super().__init__()
        self.shared = nn.Embedding(vocabulary, width)
        self.encoder = T5Stack(self.shared, layers, heads, inner)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """As `T5Stack`."""
        out: Tensor = self.encoder(tokens, mask)
        return out

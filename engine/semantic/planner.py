"""Planner: the language model that writes a video's semantic tokens (REFERENCE 2.1-2.5).

A sequence is [BOS, frame count, motion score, text, START_OF_IFRAME, tokens of the I frame, END_OF_IFRAME,
START_OF_PFRAME, tokens of a P frame, END_OF_PFRAME, ...]; positions count from BOS = 0.
Shapes: `B` batch, `L` text tokens, `N` tokens, `M` keys, `W` width, `V` vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.runtime.attention import attend
from engine.runtime.kv_cache import KVCache
from engine.runtime.layers import RMSNorm, rotation_table, rotations
from engine.runtime.packed_weights import gated_gelu_of
from engine.runtime.turned_linear import float_product
from engine.semantic.micro_embedding import MicroEmbedding
from kernels.decode_attention import FilledLength
from kernels.rotary import rotate

_SPECIALS = 7
_MICRO_VECTORS = 2  # frame count and motion score


@dataclass(frozen=True, slots=True)
class PlannerConfig:
    """`landiff` by default."""

    hidden: int = 2048
    layers: int = 24
    heads: int = 16
    mlp: int = 11008
    codebook_size: int = 2048
    text_dim: int = 4096
    micro_freq: int = 256
    micro_hidden: int = 512
    i_tokens: int = 330
    p_tokens: int = 74
    gop_frames: int = 13
    context_gops: int = 0  # earlier GOPs kept before the one being planned
    pooled_text: bool = False  # the mean of the text, projected, is added to every position
    null_micro: bool = False  # frame count and motion score may be left out
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        if self.hidden % self.heads or self.head_dim % 2:
            raise ValueError(f"hidden {self.hidden} over {self.heads} heads must give an even head width")
        if self.micro_freq % 2:
            raise ValueError(f"micro_freq {self.micro_freq} is odd; it holds cosines and sines in equal number")
        if min(self.i_tokens, self.p_tokens, self.gop_frames, self.codebook_size, self.layers) < 1:
            raise ValueError(
                f"i_tokens {self.i_tokens}, p_tokens {self.p_tokens}, gop_frames {self.gop_frames}, codebook_size "
                f"{self.codebook_size} and layers {self.layers} must be positive"
            )
        if self.context_gops < 0:
            raise ValueError(f"context_gops {self.context_gops} is negative; 0 plans each GOP by the text alone")

    @property
    def eos(self) -> int:
        return self.codebook_size

    @property
    def bos(self) -> int:
        return self.codebook_size + 1

    @property
    def iframe_start(self) -> int:
        return self.codebook_size + 2

    @property
    def iframe_end(self) -> int:
        return self.codebook_size + 3

    @property
    def pframe_start(self) -> int:
        return self.codebook_size + 4

    @property
    def pframe_end(self) -> int:
        return self.codebook_size + 5

    @property
    def pad(self) -> int:
        return self.codebook_size + 6

    @property
    def vocab(self) -> int:
        return self.codebook_size + _SPECIALS

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def prefix_len(self, text_len: int) -> int:
        """Positions before the first START_OF_IFRAME."""
        return 1 + _MICRO_VECTORS + text_len

    def max_len(self, text_len: int) -> int:
        """Positions of the longest sequence of endless planning: prefix, context GOPs and the new GOP."""
        return self.prefix_len(text_len) + (self.context_gops + 1) * self.plan_len(self.gop_frames)

    def layout(self, frames: int) -> tuple[int | None, ...]:
        """The special token at each position of a plan of so many frames, None for a position of a semantic token."""
        i_frame = (self.iframe_start, *[None] * self.i_tokens, self.iframe_end)
        p_frame = (self.pframe_start, *[None] * self.p_tokens, self.pframe_end)
        layout: tuple[int | None, ...] = ()
        for frame in range(frames):
            layout += p_frame if frame % self.gop_frames else i_frame
        return layout

    def plan_len(self, frames: int) -> int:
        """Positions of a plan of so many frames, special tokens included."""
        return len(self.layout(frames))


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prompt's text and the micro conditions, embedded."""

    embeddings: Tensor  # [B, 3 + L, W]: BOS, frame count, motion score, text
    pooled: Tensor | None  # [B, 1, W], already part of `embeddings`; `Planner.embed` adds it to tokens


@dataclass(frozen=True, slots=True)
class _NewTokens:
    """Rotary angles and mask of the new tokens."""

    cos: Tensor  # [N, head_dim / 2], or [B, 1, N, head_dim / 2] where rows differ
    sin: Tensor
    mask: Tensor | FilledLength | None  # as `attend` takes it
    causal: bool


class PlannerBlock(nn.Module):
    """LLaMA-like pre-norm block with a gated tanh-GELU."""

    def __init__(self, config: PlannerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.attention_norm = RMSNorm(config.hidden)
        self.qkv = nn.Linear(config.hidden, 3 * config.hidden, bias=False)
        self.out = nn.Linear(config.hidden, config.hidden, bias=False)
        self.mlp_norm = RMSNorm(config.hidden)
        self.gate = nn.Linear(config.hidden, config.mlp, bias=False)
        self.up = nn.Linear(config.hidden, config.mlp, bias=False)
        self.down = nn.Linear(config.mlp, config.hidden, bias=False)

    def forward(self, x: Tensor, new: _NewTokens, layer: int, cache: KVCache | None, position: int | Tensor) -> Tensor:
        """[B, N, W] -> [B, N, W]; writes its keys, already rotated, and values to `cache` at `position`."""
        q, k, v = self._project(x, new)
        if cache is not None:
            seen = cache.write(layer, k, v, position)
            k, v = seen.keys.to(q.dtype), seen.values.to(q.dtype)
        attended = attend(q, k, v, new.mask, new.causal)
        normed, x = self.mlp_norm.add(x, self.out(attended.transpose(1, 2).flatten(2)))
        out: Tensor = x + self.down(gated_gelu_of(self.gate, self.up, normed))
        return out

    def fill(self, x: Tensor, new: _NewTokens, layer: int, cache: KVCache, position: int) -> None:
        """Writes to `cache` what `forward` would, without the rest of the layer."""
        _, k, v = self._project(x, new)
        cache.write(layer, k, v, position)

    def _project(self, x: Tensor, new: _NewTokens) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, rotated, and values, each [B, H, N, head_dim]."""
        projected = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(projected[:2], new.cos, new.sin)
        return q, k, projected[2]


class Planner(nn.Module):
    """Text, frame count and motion score -> semantic tokens."""

    def __init__(self, config: PlannerConfig) -> None:
        super().__init__()
        self.config = config
        self.text_in = nn.Linear(config.text_dim, config.hidden)
        self.text_out = nn.Linear(config.hidden, config.hidden)
        self.null_text = nn.Parameter(0.02 * torch.randn(config.hidden))
        self.pooled = nn.Linear(config.text_dim, config.hidden, bias=False) if config.pooled_text else None
        micro = config.micro_freq, config.micro_hidden, config.hidden, config.null_micro
        self.frames = MicroEmbedding("the frame count", *micro)
        self.motion = MicroEmbedding("the motion score", *micro)
        self.tokens = nn.Embedding(config.vocab, config.hidden)
        self.blocks = nn.ModuleList(PlannerBlock(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.hidden)
        self.head = nn.Linear(config.hidden, config.vocab, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def prepare(self, length: int, device: torch.device) -> None:
        """Makes what passes over caches of that length compute with, which is then kept."""
        rotation_table(length, self.config.head_dim, self.config.rope_theta, device)

    def prefix(
        self, text: Tensor, frames: Tensor | float | None, motion: Tensor | float | None, null_text: Tensor | bool
    ) -> Prefix:
        """The conditions as the first vectors of a sequence.

        Args:
            text: [B, L, text_dim] of the text encoder; all rows equally long, padding removed.
            frames: semantic frames of the video, one number or [B]; None or NaN where not given.
            motion: motion score, likewise.
            null_text: bool, or [B] bool: rows whose text is hidden (for guidance; to train for it).

        Raises:
            ValueError: None for a number in a planner without null vectors for it.
        """
        batch = len(text)
        text = text.to(self.text_in.weight.dtype)
        hidden = torch.as_tensor(null_text, device=text.device).expand(batch)[:, None, None]
        words = self.text_out(F.gelu(self.text_in(text), approximate="tanh"))
        words = torch.where(hidden, self.null_text.to(words.dtype), words)
        bos = self.tokens.weight[self.config.bos].to(words.dtype).expand(batch, 1, -1)
        embeddings = torch.cat([bos, self.frames(frames, batch), self.motion(motion, batch), words], dim=1)
        if self.pooled is None:
            return Prefix(embeddings, None)
        pooled = self.pooled(text.mean(dim=1, keepdim=True)).masked_fill(hidden, 0.0)
        return Prefix(embeddings + pooled, pooled)

    def embed(self, tokens: Tensor, pooled: Tensor | None) -> Tensor:
        """Tokens int64 [B, N] under a `Prefix` with this `pooled` -> [B, N, W]."""
        embeddings: Tensor = self.tokens(tokens)
        return embeddings if pooled is None else embeddings + pooled

    def forward(self, embeddings: Tensor, cache: KVCache | None = None, position: int | Tensor = 0) -> Tensor:
        """Logits of the token after each given one.

        Args:
            embeddings: [B, N, W].
            cache: holds what stands before `position`, and takes the new keys and values.
            position: of the first given vector, as `KVCache.write` takes it; 0 without a cache.

        Returns:
            [B, N, V] float32.
        """
        return self.logits(self.transform(embeddings, cache, position))

    def transform(self, embeddings: Tensor, cache: KVCache | None = None, position: int | Tensor = 0) -> Tensor:
        """`forward` without the head: the last block's output [B, N, W]."""
        return self._run(self.blocks, embeddings, self._new_tokens(embeddings, cache, position), cache, position)

    def fill(self, embeddings: Tensor, cache: KVCache) -> None:
        """Begins a cache with vectors [B, N, W] of which no logits are wanted."""
        new, number, last = self._new_tokens(embeddings, cache, 0), len(self.blocks) - 1, self.blocks[-1]
        assert isinstance(last, PlannerBlock)
        last.fill(self._run(self.blocks[:-1], embeddings, new, cache, 0), new, number, cache, 0)

    @staticmethod
    def _run(
        blocks: nn.ModuleList, x: Tensor, new: _NewTokens, cache: KVCache | None, position: int | Tensor
    ) -> Tensor:
        for layer, block in enumerate(blocks):
            x = block(x, new, layer, cache, position)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """[..., W] -> [..., V]: norm and head in float32, also under autocast."""
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.norm.weight.float(), self.norm.bias.float()
            normed = F.layer_norm(x.float(), weight.shape, weight, bias, self.norm.eps)
            return float_product(self.head, normed)

    def _new_tokens(self, embeddings: Tensor, cache: KVCache | None, position: int | Tensor) -> _NewTokens:
        count, device = embeddings.shape[1], embeddings.device
        start = position.reshape(-1, 1) if isinstance(position, Tensor) else position
        positions = start + torch.arange(count, device=device)
        if isinstance(position, int):
            cos, sin = rotations(position, count, self.config.head_dim, self.config.rope_theta, device)
        else:
            assert cache is not None, "without a cache positions count from 0"
            table = rotation_table(cache.length, self.config.head_dim, self.config.rope_theta, device)
            cos, sin = (part[positions][:, None] for part in table)
        mask: Tensor | FilledLength | None = None
        if cache is not None and isinstance(position, Tensor):
            mask = FilledLength(position.reshape(-1) + 1, cache.length, count)
        elif isinstance(position, int) and position > 0 and count > 1:
            mask = torch.arange(position + count, device=device) <= positions[:, None]
        return _NewTokens(cos, sin, mask, causal=mask is None and count > 1)

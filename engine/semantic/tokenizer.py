"""Semantic tokenizer: features of a GOP of frames <-> one flat list of tokens (REFERENCE 1.2-1.8).

Shapes: `B` batch, `T` frames of a GOP, `D` feature channels, `h` x `w` feature grid, `P` patches of a frame,
`L` latent tokens of T frames (the I frame's, then each P frame's), `N` = T * P + L, `W` width, `E` token width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor, nn

from engine.runtime.attention import mask_of
from engine.runtime.layers import rotary_angles
from engine.semantic.masks import decoder_rule, encoder_rule, gop_tokens
from engine.semantic.quantizer import QuantizerConfig, VectorQuantizer
from engine.semantic.transformer import SequenceGeometry, TokenizerBlock

_FEATURE_EPS = 1e-8
_POSITION_STD = 0.3


@dataclass(frozen=True, slots=True)
class FeatureFrames:
    """Semantic features of consecutive frames, first frame number `start` since the video began."""

    features: Tensor  # [1, T, D, h, w]
    start: int


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """`landiff` by default."""

    feature_dim: int = 768
    grid: tuple[int, int] = (30, 45)
    patch: int = 1  # cells of the grid along each side of what one visual token covers
    width: int = 768
    layers: int = 12
    heads: int = 12
    frames: int = 13  # longest GOP
    i_tokens: int = 330
    p_tokens: int = 74
    normalize: bool = False  # standardise features by the buffers `mean` and `std`; the release never does
    learned_positions: bool = False  # frame and patch embeddings beside the rotary ones; `mini`, which learns fast so
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)

    def __post_init__(self) -> None:
        if self.width % self.heads or self.head_dim % 16:
            raise ValueError(
                f"width {self.width} over {self.heads} heads must give a head width divisible by 16, for rotary "
                "pairs of time, row and column"
            )
        if self.grid[0] % self.patch or self.grid[1] % self.patch:
            raise ValueError(f"grid {self.grid} is not divisible by patch {self.patch}")
        if min(self.frames, self.i_tokens, self.p_tokens, self.layers) < 1:
            raise ValueError(
                f"frames {self.frames}, i_tokens {self.i_tokens}, p_tokens {self.p_tokens} and layers {self.layers} "
                "must be positive"
            )

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def patch_grid(self) -> tuple[int, int]:
        return self.grid[0] // self.patch, self.grid[1] // self.patch

    @property
    def patches(self) -> int:
        """Visual tokens of a frame."""
        return self.patch_grid[0] * self.patch_grid[1]

    @property
    def gop_tokens(self) -> int:
        """Tokens of a full GOP."""
        return self.tokens(self.frames)

    @property
    def offsets(self) -> tuple[int, ...]:
        """The first token of each frame in a full GOP, and the end: `frames` + 1 numbers."""
        return (0, *(self.tokens(frames) for frames in range(1, self.frames + 1)))

    def tokens(self, frames: int) -> int:
        """Tokens of a GOP's first `frames` frames."""
        if not 1 <= frames <= self.frames:
            raise ValueError(f"a GOP has 1 to {self.frames} frames, not {frames}")
        return self.i_tokens + self.p_tokens * (frames - 1)

    def frames_of(self, tokens: int) -> int:
        """Frames that a GOP of so many tokens has; the inverse of `tokens`."""
        frames, rest = divmod(tokens - self.i_tokens, self.p_tokens)
        if rest or not 0 <= frames < self.frames:
            raise ValueError(f"{tokens} tokens do not make whole frames: expected one of {self.offsets[1:]}")
        return frames + 1


@dataclass(frozen=True, slots=True)
class TokenizerOutput:
    """The result of a training step."""

    reconstruction: Tensor  # [B, T, D, h, w]
    latents: Tensor  # [B, L, E], what the decoder read
    tokens: Tensor  # [B, L] int64
    commitment: Tensor  # []
    perplexity: Tensor  # []


def gop_angles(config: TokenizerConfig, frames: int, device: torch.device | str) -> Tensor:
    """Rotary angles of time, row and column: patches at (t, y, x), the k-th latent at (k, k, k).

    Returns:
        [N, head_dim / 2] float32.
    """
    rows, columns = config.patch_grid
    axes = torch.meshgrid(
        torch.arange(frames, device=device),
        torch.arange(rows, device=device),
        torch.arange(columns, device=device),
        indexing="ij",
    )
    latents = torch.arange(config.tokens(frames), device=device)
    time_dim = config.head_dim // 4
    space_dim = 3 * config.head_dim // 8
    return torch.cat(
        [
            rotary_angles(torch.cat([axis.flatten(), latents]), dim)
            for axis, dim in zip(axes, (time_dim, space_dim, space_dim), strict=True)
        ],
        dim=-1,
    )


# Bounded on purpose: a full-size mask is 352 MB.
@lru_cache(maxsize=4)
def _geometry(config: TokenizerConfig, frames: int, device: torch.device, decoding: bool) -> SequenceGeometry:
    make_rule = decoder_rule if decoding else encoder_rule
    sizes = frames, config.patches, config.i_tokens, config.p_tokens
    # Kept tensors must also serve training, so none of them may be an inference tensor.
    with torch.inference_mode(False):
        angles = gop_angles(config, frames, device)
        mask = mask_of(make_rule(*sizes, device), gop_tokens(*sizes), device)
        return SequenceGeometry(cos=angles.cos(), sin=angles.sin(), mask=mask)


class Positions(nn.Module):
    """Learned embeddings of frame and patch; a latent token carries its frame's."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.frame = nn.Parameter(_POSITION_STD * torch.randn(config.frames, config.width))
        self.patch = nn.Parameter(_POSITION_STD * torch.randn(config.patches, config.width))

    def forward(self, frames: int) -> Tensor:
        """[N, W] for a GOP of so many frames, patches first."""
        visual = self.frame[:frames, None] + self.patch
        counts = [self.config.i_tokens, *[self.config.p_tokens] * (frames - 1)]
        owner = torch.repeat_interleave(torch.tensor(counts, device=self.frame.device))
        return torch.cat([visual.flatten(0, 1), self.frame[owner]])


class TokenizerEncoder(nn.Module):
    """Features -> one vector for each latent token."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        scale = config.width**-0.5
        self.i_queries = nn.Parameter(scale * torch.randn(config.i_tokens, config.width))
        self.p_queries = nn.Parameter(scale * torch.randn(config.p_tokens, config.width))
        self.patch_embed = nn.Conv2d(config.feature_dim, config.width, config.patch, config.patch)
        self.positions = Positions(config) if config.learned_positions else None
        self.norm_in = nn.LayerNorm(config.width)
        self.blocks = nn.ModuleList(TokenizerBlock(config.width, config.heads) for _ in range(config.layers))
        self.norm_out = nn.LayerNorm(config.width)
        self.project = nn.Linear(config.width, config.quantizer.dim)

    def forward(self, features: Tensor) -> Tensor:
        """[B, T, D, h, w] -> [B, L, E]."""
        batch, frames = features.shape[:2]
        patches = self.patch_embed(features.flatten(0, 1)).unflatten(0, (batch, frames)).movedim(2, -1).flatten(1, 3)
        queries = torch.cat([self.i_queries, self.p_queries.repeat(frames - 1, 1)])
        x = torch.cat([patches, queries.to(patches.dtype).expand(batch, -1, -1)], dim=1)
        x = self.norm_in(x if self.positions is None else x + self.positions(frames))
        geometry = _geometry(self.config, frames, x.device, False)
        for block in self.blocks:
            x = block(x, geometry)
        out: Tensor = self.project(self.norm_out(x[:, patches.shape[1] :]))
        return out


class TokenizerDecoder(nn.Module):
    """One vector for each latent token -> features."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.mask_token = nn.Parameter(config.width**-0.5 * torch.randn(1, 1, config.width))
        self.positions = Positions(config) if config.learned_positions else None
        self.embed = nn.Linear(config.quantizer.dim, config.width)
        self.norm_in = nn.LayerNorm(config.width)
        self.blocks = nn.ModuleList(TokenizerBlock(config.width, config.heads) for _ in range(config.layers))
        self.norm_out = nn.LayerNorm(config.width)
        self.head_in = nn.Linear(config.width, 2 * config.width)
        self.head_out = nn.Linear(2 * config.width, config.feature_dim * config.patch**2)

    def forward(self, latents: Tensor) -> Tensor:
        """[B, L, E] -> [B, T, D, h, w]."""
        config = self.config
        frames = config.frames_of(latents.shape[1])
        embedded = self.embed(latents)
        visual = self.mask_token.to(embedded.dtype).expand(len(latents), frames * config.patches, -1)
        x = torch.cat([visual, embedded], dim=1)
        x = self.norm_in(x if self.positions is None else x + self.positions(frames))
        geometry = _geometry(config, frames, x.device, True)
        for block in self.blocks:
            x = block(x, geometry)
        x = self.head_out(torch.tanh(self.head_in(self.norm_out(x[:, : visual.shape[1]]))))
        # [B, T, rows, columns, patch, patch, D]: each visual token draws its own square of cells.
        x = x.unflatten(-1, (config.patch, config.patch, -1)).unflatten(1, (frames, *config.patch_grid))
        cells: Tensor = x.permute(0, 1, 6, 2, 4, 3, 5).flatten(5).flatten(3, 4)
        return cells


class SemanticTokenizer(nn.Module):
    """Encoder, quantizer and decoder. GOPs of any length up to `config.frames` pass; each starts at time 0."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(config.feature_dim))
        self.register_buffer("std", torch.ones(config.feature_dim))
        self.encoder = TokenizerEncoder(config)
        self.quantizer = VectorQuantizer(config.quantizer)
        self.decoder = TokenizerDecoder(config)

    def encode(self, features: Tensor) -> Tensor:
        """Features [B, T, D, h, w] -> tokens int64 [B, L]; ValueError for other shapes."""
        return self.quantizer.encode(self._latents(features))

    def decode(self, tokens: Tensor, frames: int | None = None) -> Tensor:
        """Tokens int64 [B, L] -> features [B, T, D, h, w], causal by frame: the first frames depend on their tokens
        only.

        Args:
            tokens: of the first T frames of a GOP.
            frames: T, where the caller wants it checked; ValueError if the tokens do not make that many.
        """
        if frames is not None and tokens.shape[1] != (sequence := self.config.tokens(frames)):
            raise ValueError(f"{frames} frames take {sequence} tokens, not {tokens.shape[1]}")
        return self._features(self.quantizer.decode(tokens))

    def forward(self, features: Tensor, quantize: bool = True) -> TokenizerOutput:
        """One training step; in training mode the codebook moves.

        Args:
            features: [B, T, D, h, w].
            quantize: False passes the vectors on as they are, for the first steps of a training.
        """
        latents = self._latents(features)
        quantized = self.quantizer(latents) if quantize else self.quantizer.bypass(latents)
        return TokenizerOutput(
            reconstruction=self._features(quantized.output),
            latents=quantized.output,
            tokens=quantized.indices,
            commitment=quantized.commitment,
            perplexity=quantized.perplexity,
        )

    def _latents(self, features: Tensor) -> Tensor:
        expected = (self.config.feature_dim, *self.config.grid)
        if features.ndim != 5 or features.shape[2:] != expected:
            raise ValueError(f"features are {tuple(features.shape)}, expected [B, T, *{expected}]")
        self.config.tokens(features.shape[1])
        if self.config.normalize:
            features = (features - self.mean[:, None, None]) / (self.std[:, None, None] + _FEATURE_EPS)
        latents: Tensor = self.encoder(features)
        return latents

    def _features(self, latents: Tensor) -> Tensor:
        features: Tensor = self.decoder(latents)
        if self.config.normalize:
            features = features * (self.std[:, None, None] + _FEATURE_EPS) + self.mean[:, None, None]
        return features

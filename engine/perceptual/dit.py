"""The diffusion transformer's trunk, its position table, and the base network made of it.

Shapes: `B` batch, `T` latent frames, `C` latent channels, `H` x `W` latent size, `L` text tokens, `K` text width,
`N` tokens (text and image), `D` width, `Z` time embedding width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.perceptual.block import DiTBlock, TokenLayout
from engine.perceptual.head import HeadInputs, LinearHead
from engine.perceptual.mini.head import ConvHead
from engine.perceptual.sharing import WHOLE, TokenShare
from engine.perceptual.timesteps import Timestep, TimestepCache
from engine.runtime.kv_cache import KeysValues
from engine.runtime.layers import sinusoid

CONTEXT_TIME = 0.999  # the time condition of context frames, clean = 1 (REFERENCE 6.2)


@dataclass(frozen=True, slots=True)
class DiTConfig:
    """Sizes of the trunk and its head; the defaults are the published ones (REFERENCE 3.2).

    `frames`, `height` and `width` are the largest window in latents. `position_scale` divides rows and columns in the
    position table. `time_scale` multiplies the time before the sinusoid: 1 where times are the published steps 0..999,
    1000 where they run from 0 (noise) to 1 (clean).

    `half_causal` gives context frames the time condition `CONTEXT_TIME`, as the paper says, where the release has one
    time for all frames (REFERENCE 6.2). Text has it too, and text and context frames attend to themselves only, so that
    their keys and values are the same at every denoising step. The control branch then reads text, context frames and
    the new frames' condition, all at that time, and no noisy frame: once a window.

    `head` is 'linear' as published, or 'conv' for small presets: `head_blocks` residual blocks of `head_width`
    channels at latent resolution, which also see `head_details` channels that are made of the features alone, the last
    `channels` + 1 of them a sketch and its opacity.
    """

    hidden: int = 1920
    heads: int = 30
    layers: int = 30
    mlp_ratio: int = 4
    patch: int = 2
    frames: int = 13
    height: int = 60
    width: int = 90
    channels: int = 16
    time_dim: int = 512
    time_scale: float = 1.0
    text_length: int = 226
    text_dim: int = 4096
    position_scale: float = 1.875
    half_causal: bool = False
    head: str = "linear"
    head_width: int = 96
    head_blocks: int = 4
    head_details: int = 0

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not a multiple of heads {self.heads}")
        if self.hidden % 16:
            raise ValueError(f"hidden {self.hidden} is not a multiple of 16, which the position table needs")
        if self.height % self.patch or self.width % self.patch:
            raise ValueError(f"latents of {self.height}x{self.width} cannot be cut into patches of {self.patch}")
        if self.head not in ("linear", "conv"):
            raise ValueError(f"head {self.head!r} is neither 'linear' nor 'conv'")

    @property
    def frame_tokens(self) -> int:
        return (self.height // self.patch) * (self.width // self.patch)

    @property
    def condition_channels(self) -> int:
        """Those that are added to the latents, then details."""
        return self.channels + self.head_details


def position_table(config: DiTConfig) -> Tensor:
    """The fixed table [1, L + tokens of all frames, D] float32: zero for text, then [time | column | row] sines."""
    rows, columns = config.height // config.patch, config.width // config.patch
    quarter, rest = config.hidden // 4, config.hidden // 4 * 3 // 2
    grid = (config.frames, rows, columns)
    time = _sines(torch.arange(config.frames), quarter)[:, None, None].expand(*grid, quarter)
    column = _sines(torch.arange(columns) / config.position_scale, rest)[None, None].expand(*grid, rest)
    row = _sines(torch.arange(rows) / config.position_scale, rest)[None, :, None].expand(*grid, rest)
    image = torch.cat([time, column, row], dim=-1).flatten(0, 2)
    return torch.cat([torch.zeros(config.text_length, config.hidden), image])[None]


@functools.cache
def _kept_table(config: DiTConfig, device: torch.device) -> Tensor:
    """`position_table`, kept for each device."""
    # Kept tensors must also serve training, so none of them may be an inference tensor.
    with torch.inference_mode(False), torch.device("cpu"):
        table = position_table(config)
    return table.to(device)


def _sines(positions: Tensor, dim: int) -> Tensor:
    """[N] -> [N, dim] float32, [sin | cos], computed in float64."""
    exponents = torch.arange(dim // 2, dtype=torch.float64) / (dim / 2)
    angles = positions.double()[:, None] / 10000**exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()


def patches_of(frames: Tensor, patch: int) -> Tensor:
    """[B, T, C, H, W] -> [B, T h w, C P P], frame by frame, row by row."""
    tiles: Tensor = frames.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))  # [B, T, C, h, P, w, P]
    return tiles.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(1, 3)


class Trunk(nn.Module):
    """Embeddings and layers that the base network and the control branch each have a copy of."""

    positions: Tensor

    def __init__(self, config: DiTConfig, layers: int) -> None:
        super().__init__()
        self.config = config
        if config.head == "linear":
            # The release's files hold its table; ours is made from the configuration.
            self.register_buffer("positions", position_table(config))
        self.patch = nn.Conv2d(config.channels, config.hidden, config.patch, stride=config.patch)
        self.text = nn.Linear(config.text_dim, config.hidden)
        self.time = nn.Sequential(
            nn.Linear(config.hidden, config.time_dim), nn.SiLU(), nn.Linear(config.time_dim, config.time_dim)
        )
        self.blocks = nn.ModuleList(
            DiTBlock(config.hidden, config.heads, config.time_dim, config.mlp_ratio) for _ in range(layers)
        )
        self.final_norm = nn.LayerNorm(config.hidden, eps=1e-5)

    def embed(self, text: Tensor, frames: Tensor) -> Tensor:
        """[B, L, K] text and [B, T, C, H, W] frames from window position 0 on -> [B, N, D] tokens."""
        return self.join(self.embed_text(text), frames, 0)

    def embed_text(self, text: Tensor) -> Tensor:
        """[B, L, K] -> [B, L, D] tokens."""
        config = self.config
        if text.shape[1:] != (config.text_length, config.text_dim):
            expected = (config.text_length, config.text_dim)
            raise ValueError(f"text of {tuple(text.shape[1:])} (tokens, width) given, {expected} expected")
        tokens: Tensor = self.text(text)
        return tokens + self._positions(0, config.text_length, tokens)

    def join(self, tokens: Tensor, frames: Tensor, start: int) -> Tensor:
        """[B, M, D] tokens, then those of frames [B or 1, T, C, H, W] from window position `start` on: [B, N, D]."""
        if not frames.shape[1]:
            return tokens
        return torch.cat([tokens, self.embed_frames(frames, start).expand(len(tokens), -1, -1)], dim=1)

    def embed_frames(self, frames: Tensor, start: int) -> Tensor:
        """[B, T, C, H, W] frames from window position `start` on -> [B, T tokens, D]."""
        config = self.config
        if start + frames.shape[1] > config.frames:
            raise ValueError(f"frames {start}..{start + frames.shape[1] - 1} do not fit a window of {config.frames}")
        if frames.shape[2:] != (config.channels, config.height, config.width):
            expected = (config.channels, config.height, config.width)
            raise ValueError(
                f"latents of {tuple(frames.shape[2:])} (channels, rows, columns) given, {expected} expected"
            )
        return self.embed_patches(patches_of(frames, config.patch), start)

    def embed_patches(self, patches: Tensor, start: int) -> Tensor:
        """[B, N, C P P] patches of frames from window position `start` on -> [B, N, D]."""
        # A convolution by name only: in bf16 torch 2.13 computes some of these shapes wrongly on a CPU, `mini`'s too.
        tokens = F.linear(patches, self.patch.weight.flatten(1), self.patch.bias)
        first = self.config.text_length + start * self.config.frame_tokens
        return tokens + self._positions(first, tokens.shape[1], tokens)

    def _positions(self, first: int, count: int, like: Tensor) -> Tensor:
        """[1, count, D] of the position table from token `first` on, of the type and device of `like`."""
        table = self.positions if self.config.head == "linear" else _kept_table(self.config, like.device)
        return table[:, first : first + count].to(like.dtype)

    def project_patches(self, patches: Tensor) -> Tensor:
        """[B, N, C P P] -> [B, N, D], to be added to the tokens of other patches at the same places."""
        return F.linear(patches, self.patch.weight.flatten(1))

    def layout(self, timestep: Timestep, share: TokenShare = WHOLE) -> TokenLayout:
        """The layout of text and all frames, which attend to each other."""
        return TokenLayout(share.own_of_first(self.config.text_length), self._cache(timestep), share=share)

    def context_layout(self, timestep: Timestep, context_frames: int, share: TokenShare = WHOLE) -> TokenLayout:
        """The layout of text and frames; text and the first `context_frames` frames attend to themselves only."""
        text_tokens = self.config.text_length
        own = text_tokens + context_frames * self.config.frame_tokens
        return TokenLayout(share.own_of_first(text_tokens), self._cache(timestep), own, share)

    def new_layout(self, timestep: Timestep, share: TokenShare = WHOLE) -> TokenLayout:
        """The layout of new frames alone."""
        return TokenLayout(0, self._cache(timestep), share=share)

    def _cache(self, timestep: Timestep) -> TimestepCache:
        return timestep.cache(self, self._embed_time)

    def _embed_time(self, time: Tensor) -> Tensor:
        """[B] -> [B, Z], after the SiLU that every user of an embedding applies."""
        return F.silu(self.time(sinusoid(time.float() * self.config.time_scale, self.config.hidden)))


class DiT(Trunk):
    """The base network: trunk and head (REFERENCE 3.2)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config, config.layers)
        self.head: LinearHead | ConvHead
        if config.head == "linear":
            self.head = LinearHead(config.hidden, config.time_dim, config.patch, config.channels)
        else:
            self.head = ConvHead(
                config.hidden,
                config.time_dim,
                config.patch,
                config.channels,
                config.head_width,
                config.head_blocks,
                config.head_details,
            )

    def forward(
        self,
        x: Tensor,
        layout: TokenLayout,
        residuals: Sequence[Tensor] = (),
        context: Sequence[KeysValues] | None = None,
    ) -> Tensor:
        """Runs the layers.

        Args:
            x: [B, N, D] tokens.
            layout: of these tokens.
            residuals: of the control branch, [B, N, D] each, added after layer 0, 1, ...
            context: for every layer, the keys and values of tokens before these.

        Returns:
            [B, N, D].
        """
        for index, block in enumerate(self.blocks):
            residual = residuals[index] if index < len(residuals) else None
            x, _ = block(x, layout, None if context is None else context[index], residual)
        return x

    def keys_values(self, x: Tensor, layout: TokenLayout, residuals: Sequence[Tensor] = ()) -> tuple[KeysValues, ...]:
        """The keys and values of every layer for [B, N, D] tokens; of the last layer nothing else is computed."""
        caches = []
        for index, block in enumerate(self.blocks[:-1]):
            x, cache = block(x, layout, control=residuals[index] if index < len(residuals) else None)
            caches.append(cache)
        last = self.blocks[-1]
        assert isinstance(last, DiTBlock)
        return (*caches, last.keys_values(x, layout))

    def output(self, x: Tensor, layout: TokenLayout, inputs: HeadInputs) -> Tensor:
        """The head's answer [B, T, C, H, W] for new frames, whose tokens are the last of [B, N, D]."""
        config = self.config
        count = inputs.noisy.shape[1]
        grid = (count, config.height // config.patch, config.width // config.patch)
        hidden = self.final_norm(x[:, -count * config.frame_tokens :]).unflatten(1, grid)
        output: Tensor = self.head(hidden, layout.timestep, inputs)
        return output

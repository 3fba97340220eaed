"""Latents -> pixels: the decoder of CogVideoX's three-dimensional causal autoencoder.

Shapes: `B` batch, `C` channels, `T` latents, `F` frames and `H` x `W` size at a level, `h` x `w` latent size.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from engine.perceptual.cogvideox.causal import (
    CausalConv,
    CausalResidualBlock,
    CausalState,
    normed_conv,
    number_convolutions,
    per_frame,
)
from kernels.spatial_norm import resize_nearest, spatial_norm_silu

GROUPS = 32  # of every group norm in the autoencoder
NORM_EPS = 1e-6


class SpatialNorm(nn.Module):
    """Group norm, scaled and shifted at every place by what the latent there says, then SiLU (REFERENCE 4.3)."""

    def __init__(self, channels: int, latent_channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, eps=NORM_EPS)
        self.scale = nn.Conv3d(latent_channels, channels, 1)
        self.shift = nn.Conv3d(latent_channels, channels, 1)

    def forward(self, x: Tensor, latents: Tensor, *, out: Tensor) -> Tensor:
        """[B, C, F, H, W] and [B, latent channels, T, h, w] -> [B, C, F, H, W], written to `out`."""
        # Mapping before resizing gives the same numbers as the other way round, for a fraction of the work.
        scale, shift = self.scale(latents), self.shift(latents)
        return spatial_norm_silu(x, self.norm.weight, self.norm.bias, scale, shift, GROUPS, NORM_EPS, out)


class DecoderLevel(nn.Module):
    """Residual blocks, then a doubling of the picture and perhaps of the frame rate."""

    def __init__(self, widths: list[int], latent_channels: int, doubles: bool, doubles_time: bool) -> None:
        super().__init__()
        norm = partial(SpatialNorm, latent_channels=latent_channels)
        self.blocks = nn.ModuleList(CausalResidualBlock(a, b, norm) for a, b in pairwise(widths))
        self.upsample = nn.Conv2d(widths[-1], widths[-1], 3, padding=1) if doubles else None
        self.doubles_time = doubles_time

    def forward(self, x: Tensor, state: CausalState, latents: Tensor) -> Tensor:
        """[B, C, F, H, W] -> [B, C', F', H', W']."""
        for block in self.blocks:
            x = block(x, state, latents)
        if self.upsample is None:
            return x
        frames, height, width = x.shape[2:]
        if self.doubles_time:
            # One odd frame stands for itself, every other one for two.
            frames = 2 * frames - frames % 2
        return per_frame(self.upsample, resize_nearest(x, frames, 2 * height, 2 * width))


class VAEDecoder(nn.Module):
    """`levels` are kept finest first, as the published file numbers them, and run from the last to the first."""

    def __init__(
        self, latent_channels: int, width: int, multipliers: tuple[int, ...], blocks: int, time_levels: int
    ) -> None:
        super().__init__()
        widths = [width * multiplier for multiplier in multipliers]
        norm = partial(SpatialNorm, latent_channels=latent_channels)
        self.conv_in = CausalConv(latent_channels, widths[-1])
        self.middle = nn.ModuleList(CausalResidualBlock(widths[-1], widths[-1], norm) for _ in range(2))
        inputs = [*widths[1:], widths[-1]]
        self.levels = nn.ModuleList(
            DecoderLevel(
                [inputs[index]] + [widths[index]] * (blocks + 1),
                latent_channels,
                doubles=index > 0,
                doubles_time=index >= len(widths) - time_levels,
            )
            for index in range(len(widths))
        )
        self.norm_out = norm(widths[0])
        self.conv_out = CausalConv(widths[0], 3)
        number_convolutions(self)

    def forward(self, latents: Tensor, state: CausalState) -> Tensor:
        """One slice: [B, C, T, h, w] -> [B, 3, F, H, W] about -1..1. Group norms see the slice as a whole."""
        latents = latents.contiguous(memory_format=torch.channels_last_3d)
        x = self.conv_in(latents, state)
        for block in self.middle:
            x = block(x, state, latents)
        for level in reversed(self.levels):
            x = level(x, state, latents)
        return normed_conv(self.norm_out, self.conv_out, x, state, latents)

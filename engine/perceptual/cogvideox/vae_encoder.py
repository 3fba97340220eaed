"""Pixels -> latents: the encoder of CogVideoX's three-dimensional causal autoencoder.

Shapes: `B` batch, `C` channels, `F` frames and `H` x `W` size at a level, `T` latents, `h` x `w` latent size.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from engine.perceptual.cogvideox.causal import (
    ActivatedNorm,
    CausalConv,
    CausalResidualBlock,
    CausalState,
    normed_conv,
    number_convolutions,
    per_frame,
)
from engine.perceptual.cogvideox.vae_decoder import GROUPS, NORM_EPS


def _halved_in_time(x: Tensor) -> Tensor:
    """Means of pairs of frames; an odd first frame stays alone: [B, C, F, H, W] -> [B, C, (F + 1) // 2, H, W]."""
    odd = x.shape[2] % 2
    pairs = torch.unflatten(x[:, :, odd:], 2, (-1, 2)).mean(dim=3)
    return torch.cat([x[:, :, :1], pairs], dim=2) if odd else pairs


class EncoderLevel(nn.Module):
    """Residual blocks, then a halving of the picture and perhaps of the frame rate."""

    def __init__(self, widths: list[int], halves: bool, halves_time: bool) -> None:
        super().__init__()
        norm = partial(ActivatedNorm, GROUPS, eps=NORM_EPS)
        self.blocks = nn.ModuleList(CausalResidualBlock(a, b, norm) for a, b in pairwise(widths))
        self.downsample = nn.Conv2d(widths[-1], widths[-1], 3, stride=2) if halves else None
        self.halves_time = halves_time

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        """[B, C, F, H, W] -> [B, C', F', H', W']."""
        for block in self.blocks:
            x = block(x, state)
        if self.downsample is None:
            return x
        x = _halved_in_time(x) if self.halves_time else x
        # Padded below and to the right only.
        return per_frame(self.downsample, nnf.pad(x, (0, 1, 0, 1)))


class VAEEncoder(nn.Module):
    """The decoder's mirror, with plain group norms; `levels` run from the first, which is the finest."""

    def __init__(
        self, latent_channels: int, width: int, multipliers: tuple[int, ...], blocks: int, time_levels: int
    ) -> None:
        super().__init__()
        widths = [width * multiplier for multiplier in multipliers]
        norm = partial(ActivatedNorm, GROUPS, eps=NORM_EPS)
        self.conv_in = CausalConv(3, width)
        inputs = [width, *widths[:-1]]
        self.levels = nn.ModuleList(
            EncoderLevel(
                [inputs[index]] + [widths[index]] * blocks,
                halves=index < len(widths) - 1,
                halves_time=index < time_levels,
            )
            for index in range(len(widths))
        )
        self.middle = nn.ModuleList(CausalResidualBlock(widths[-1], widths[-1], norm) for _ in range(2))
        self.norm_out = norm(widths[-1])
        self.conv_out = CausalConv(widths[-1], 2 * latent_channels)
        number_convolutions(self)

    def forward(self, video: Tensor, state: CausalState) -> tuple[Tensor, Tensor]:
        """One slice: [B, 3, F, H, W] -> mean and log variance of the latents, each [B, C, T, h, w]."""
        x = self.conv_in(video, state)
        for level in self.levels:
            x = level(x, state)
        for block in self.middle:
            x = block(x, state)
        mean, log_variance = normed_conv(self.norm_out, self.conv_out, x, state).chunk(2, dim=1)
        return mean, log_variance

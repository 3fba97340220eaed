"""Semantic features -> condition latents.

Shapes: `B` batch, `T` latent frames, `D` feature width, `h` x `w` the semantic grid, `C` latent channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.perceptual.mini.details import Details, DetailsConfig

_EPS = 1e-6  # of every group norm in the up-sampler


@dataclass(frozen=True, slots=True)
class ConditionConfig:
    """Sizes of `Condition`; the defaults are the published ones (REFERENCE 3.1).

    `multipliers` give the width of each level, finest first; every level but the finest ends in a doubling of the
    grid. A level holds `blocks` + 1 residual blocks. With `details` the condition has further channels, for the head.
    """

    feature_dim: int = 768
    width: int = 512
    multipliers: tuple[float, ...] = (0.25, 1.0)
    blocks: int = 4
    out_channels: int = 64
    latent_channels: int = 16
    groups: int = 32
    details: DetailsConfig | None = None

    def __post_init__(self) -> None:
        if not self.multipliers:
            raise ValueError("multipliers is empty: give one number a level")
        for width in self.widths:
            if width < 1 or width % self.groups:
                raise ValueError(f"a level of width {width} cannot be split into {self.groups} norm groups")
        if self.widths[-1] % 4:
            raise ValueError(f"the coarsest width {self.widths[-1]} is not a multiple of 4, which pixel shuffle needs")
        if self.details is not None and self.details.sketch.channels != self.latent_channels:
            raise ValueError(
                f"a sketch of {self.details.sketch.channels} channels, but latents have {self.latent_channels}"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(int(self.width * multiplier) for multiplier in self.multipliers)

    @property
    def scale(self) -> int:
        """Latent rows per row of the semantic grid."""
        return 1 << (len(self.multipliers) - 1)

    @property
    def detail_channels(self) -> int:
        return 0 if self.details is None else self.details.total


class ResidualBlock(nn.Module):
    """Norm, SiLU and a 3x3 convolution, twice, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, eps=_EPS)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outputs, eps=_EPS)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, h, w] -> [N, outputs, h, w]."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        output: Tensor = self.shortcut(x) + self.conv2(F.silu(self.norm2(hidden)))
        return output


class UpsamplerLevel(nn.Module):
    """Residual blocks, then, but for the finest level, a pixel shuffle and a convolution back to the width."""

    def __init__(self, inputs: int, outputs: int, config: ConditionConfig, doubles: bool) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * (config.blocks + 1)
        self.blocks = nn.ModuleList(ResidualBlock(a, b, config.groups) for a, b in pairwise(widths))
        self.upsample = nn.Conv2d(outputs // 4, outputs, 3, padding=1) if doubles else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, h, w] -> [N, outputs, h, w] or [N, outputs, 2h, 2w]."""
        for block in self.blocks:
            x = block(x)
        if self.upsample is not None:
            x = self.upsample(F.pixel_shuffle(x, 2))
        return x


class Upsampler(nn.Module):
    """The 2-D VQGAN-like decoder that brings features to the latents' grid, frame by frame (REFERENCE 3.1).

    `levels` are kept finest first, as the published files number them, and run from the last to the first.
    """

    def __init__(self, config: ConditionConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.feature_dim, widths[-1], 3, padding=1)
        self.middle = nn.ModuleList(ResidualBlock(widths[-1], widths[-1], config.groups) for _ in range(2))
        inputs = (*widths[1:], widths[-1])
        self.levels = nn.ModuleList(
            UpsamplerLevel(inputs[i], widths[i], config, doubles=i > 0) for i in range(len(widths))
        )
        self.norm_out = nn.GroupNorm(config.groups, widths[0], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, D, h, w] -> [N, out_channels, scale h, scale w]."""
        x = self.conv_in(x)
        for block in self.middle:
            x = block(x)
        for level in reversed(self.levels):
            x = level(x)
        output: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return output


class Condition(nn.Module):
    """Features to the control branch's summand of noisy latents: up-sampled and brought to their channels."""

    def __init__(self, config: ConditionConfig) -> None:
        super().__init__()
        self.config = config
        self.upsampler = Upsampler(config)
        self.project = nn.Conv2d(config.out_channels, config.latent_channels, 3, padding=1)
        self.details = None if config.details is None else Details(config.details, config.feature_dim, config.scale)

    def forward(self, features: Tensor, context_frames: int = 0, known: Tensor | None = None) -> Tensor:
        """[B, T, D, h, w] -> [B, T, C and details, scale h, scale w].

        Frames do not see each other, but for details, which see those around. The first frame is the window's first.
        Details are 0 in the first `context_frames` frames, which the head does not make.

        Args:
            known: what an earlier call gave for the first frames, details aside, [B, K, C, scale h, scale w].

        Raises:
            ValueError: if the features' width is not the configuration's.
        """
        if features.shape[2] != self.config.feature_dim:
            raise ValueError(f"features of width {features.shape[2]} given, {self.config.feature_dim} expected")
        new = features if known is None else features[:, known.shape[1] :]
        condition = torch.unflatten(self.project(self.upsampler(new.flatten(0, 1))), 0, new.shape[:2])
        if known is not None:
            condition = torch.cat([known, condition], dim=1)
        if self.details is not None:
            details = self.details(features, context_frames).to(condition.dtype)
            condition = torch.cat([condition, F.pad(details, (0, 0) * 3 + (context_frames, 0))], dim=2)
        return condition

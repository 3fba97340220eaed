"""Channels that the head reads of the features itself: fine patterns, and things that stand where they always stand.

The published model has none of it. The condition has as many channels as the latents and goes through convolutions that
know no place, which in small models blurs outlines and hardly learns a backdrop by heart.
Shapes: `B` batch, `T` frames, `D` feature width, `h` x `w` the semantic grid, `H` x `W` latent size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.perceptual.mini.sketch import Sketch, SketchConfig
from engine.perceptual.mini.waves import Waves, WavesConfig


@dataclass(frozen=True, slots=True)
class DetailsConfig:
    """Sizes of `Details`: `channels` read from `waves`, whose meaning is the head's, `place_channels` of what each cell
    has of its own, by a network of `place_width`, and last those of the `sketch`."""

    grid: tuple[int, int]
    waves: WavesConfig = field(default_factory=WavesConfig)
    channels: int = 64
    place_width: int = 32
    place_channels: int = 24
    sketch: SketchConfig = field(default_factory=SketchConfig)

    @property
    def total(self) -> int:
        """Channels of the result."""
        return self.channels + self.place_channels + self.sketch.channels + 1


class Details(nn.Module):
    """Features -> channels for the head: of each latent cell, of a network that each grid cell has of its own, and of
    the sketch."""

    def __init__(self, config: DetailsConfig, feature_dim: int, scale: int) -> None:
        """`scale`: latent rows per row of the grid."""
        super().__init__()
        self.scale = scale
        self.fine = Waves(config.waves, feature_dim, config.channels)
        self.sketch = Sketch(config.sketch, feature_dim)
        cells, own = config.grid[0] * config.grid[1], config.place_channels * scale**2
        self.place_in = nn.Parameter(torch.randn(cells, feature_dim, config.place_width) / feature_dim**0.5)
        self.place_bias = nn.Parameter(torch.zeros(cells, 1, config.place_width))
        self.place_out = nn.Parameter(torch.zeros(cells, config.place_width, own))

    def forward(self, features: Tensor, context_frames: int = 0) -> Tensor:
        """Channels for a window's new frames.

        Args:
            features: [B, P + T, D, h, w] of the window, from its first frame on.
            context_frames: P, of which no channels are made.

        Returns:
            [B, T, total, H, W].
        """
        wide = F.interpolate(features.flatten(0, 1), scale_factor=self.scale, mode="bilinear")
        wide = wide.unflatten(0, features.shape[:2])
        new = wide[:, context_frames:]
        # With none before it, a frame is taken to stand still.
        before = torch.cat([wide[:, :context_frames][:, -1:] if context_frames else new[:, :1], new[:, :-1]], dim=1)
        fine = self.fine(new.flatten(0, 1), before.flatten(0, 1))
        places = self._places(features[:, context_frames:].flatten(0, 1)).to(fine.dtype)
        beside = torch.cat([fine, places], dim=1).unflatten(0, new.shape[:2])
        return torch.cat([beside, self.sketch(wide, context_frames).to(fine.dtype)], dim=2)

    def _places(self, x: Tensor) -> Tensor:
        """[B T, D, h, w] -> [B T, place channels, H, W]."""
        cells = x.flatten(2).permute(2, 0, 1)  # [h w, B T, D]
        hidden = F.silu(torch.bmm(cells, self.place_in.to(x.dtype)) + self.place_bias)
        own = torch.bmm(hidden.to(x.dtype), self.place_out.to(x.dtype)).permute(1, 2, 0)
        return F.pixel_shuffle(own.unflatten(2, x.shape[2:]), self.scale)

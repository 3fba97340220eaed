"""What the head reads of the features itself: fine patterns, and what stands where it always stands.

The published model has none of it. The condition has as many channels as the latents and goes through convolutions that
know no place, which in small models blurs outlines and hardly learns a backdrop by heart.
Shapes: `N` frames, `D` feature width, `h` x `w` the semantic grid, `H` x `W` latent size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class DetailsConfig:
    """Sizes of `Details`: `waves` sines of the features, `width` of what reads them, and of each cell's own network."""

    grid: tuple[int, int]
    waves: int = 128
    width: int = 96
    channels: int = 48
    place_width: int = 32
    place_channels: int = 24

    @property
    def total(self) -> int:
        """Channels of the result."""
        return self.channels + self.place_channels


class Details(nn.Module):
    """Features -> channels for the head, from sines of them in each latent cell and from a network of each grid cell.

    Sines are what makes a function of a way or an angle sharp: a network that reads the plain numbers learns its smooth
    part for hours before an outline (learned Fourier features).
    """

    def __init__(self, config: DetailsConfig, feature_dim: int, scale: int) -> None:
        """`scale`: latent rows per row of the grid."""
        super().__init__()
        self.scale = scale
        self.waves = nn.Conv2d(feature_dim, config.waves, 1)
        assert self.waves.bias is not None
        nn.init.uniform_(self.waves.bias, -torch.pi, torch.pi)
        self.fine_in = nn.Conv2d(feature_dim + config.waves, config.width, 1)
        self.fine_out = nn.Conv2d(config.width, config.channels, 1)
        cells, own = config.grid[0] * config.grid[1], config.place_channels * scale**2
        self.place_in = nn.Parameter(torch.randn(cells, feature_dim, config.place_width) / feature_dim**0.5)
        self.place_bias = nn.Parameter(torch.zeros(cells, 1, config.place_width))
        self.place_out = nn.Parameter(torch.zeros(cells, config.place_width, own))

    def forward(self, x: Tensor) -> Tensor:
        """[N, D, h, w] -> [N, total, H, W]."""
        fine = F.interpolate(x, scale_factor=self.scale, mode="bilinear")
        fine = torch.cat([fine, self.waves(fine).float().sin().to(fine.dtype)], dim=1)
        fine = self.fine_out(F.silu(self.fine_in(fine)))
        return torch.cat([fine, self._places(x).to(fine.dtype)], dim=1)

    def _places(self, x: Tensor) -> Tensor:
        """[N, D, h, w] -> [N, place channels, H, W]."""
        cells = x.flatten(2).permute(2, 0, 1)  # [h w, N, D]
        hidden = F.silu(torch.bmm(cells, self.place_in.to(x.dtype)) + self.place_bias)
        own = torch.bmm(hidden.to(x.dtype), self.place_out.to(x.dtype)).permute(1, 2, 0)
        return F.pixel_shuffle(own.unflatten(2, x.shape[2:]), self.scale)

"""What the head reads of the features itself: fine patterns, and what stands where it always stands.

The published model has none of it. The condition has as many channels as the latents and goes through convolutions that
know no place, which in small models blurs outlines and hardly learns a backdrop by heart.
Shapes: `B` batch, `T` frames, `D` feature width, `h` x `w` the semantic grid, `H` x `W` latent size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class DetailsConfig:
    """Sizes of `Details`: `waves` sines of the features, `width` and `layers` of what reads them, and of what each cell
    has of its own.

    Sines are taken at `pictures` points in time: a latent frame stands for so many pictures. Beside `channels` whose
    meaning is the head's there are, last, `sketch` ones, as many as the latents have, for what subjects look like, and
    one for how opaque that is.
    """

    grid: tuple[int, int]
    pictures: int = 4
    waves: int = 160
    width: int = 192
    layers: int = 1
    channels: int = 64
    sketch: int = 24
    place_width: int = 32
    place_channels: int = 24

    @property
    def total(self) -> int:
        """Channels of the result."""
        return self.channels + self.place_channels + self.sketch + 1


class Gated(nn.Module):
    """The product of two maps of each cell's channels, one of them through a SiLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.maps = nn.Conv2d(inputs, 2 * outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H, W]."""
        gate, value = self.maps(x).chunk(2, dim=1)
        product: Tensor = F.silu(gate) * value
        return product


class Details(nn.Module):
    """Features -> channels for the head, from sines of them in each latent cell and from a network of each grid cell.

    Sines are what makes a function of a way or an angle sharp: a network that reads the plain numbers learns its smooth
    part for hours before an outline (learned Fourier features). What moves is somewhere else in each of the pictures
    that a latent stands for, so sines are taken all along the way from the frame before. Products of channels let what
    there is choose among the shapes that sines of a way make.
    """

    def __init__(self, config: DetailsConfig, feature_dim: int, scale: int) -> None:
        """`scale`: latent rows per row of the grid."""
        super().__init__()
        self.scale, self.pictures, self.channels = scale, config.pictures, config.channels
        self.waves = nn.Conv2d(feature_dim, config.waves, 1)
        assert self.waves.bias is not None
        nn.init.uniform_(self.waves.bias, -torch.pi, torch.pi)
        self.fine_in = Gated(feature_dim + config.pictures * config.waves, config.width)
        self.fine_layers = nn.ModuleList(
            nn.Sequential(Gated(config.width, config.width), nn.Conv2d(config.width, config.width, 1))
            for _ in range(config.layers)
        )
        self.fine_out = nn.Conv2d(config.width, config.channels + config.sketch, 1)
        self.opacity = nn.Conv2d(feature_dim, 1, 1, bias=False)
        cells, own = config.grid[0] * config.grid[1], config.place_channels * scale**2
        self.place_in = nn.Parameter(torch.randn(cells, feature_dim, config.place_width) / feature_dim**0.5)
        self.place_bias = nn.Parameter(torch.zeros(cells, 1, config.place_width))
        self.place_out = nn.Parameter(torch.zeros(cells, config.place_width, own))

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """Frames [B, T, D, h, w] and the one before them [B, 1, D, h, w] -> [B, T, total, H, W].

        With none before, [B, 0, D, h, w], the first frame is taken to stand still.
        """
        path = torch.cat([before if before.shape[1] else x[:, :1], x], dim=1)
        wide = F.interpolate(path.flatten(0, 1), scale_factor=self.scale, mode="bilinear")
        fine, sketch = self.fine(wide.unflatten(0, path.shape[:2])).tensor_split([self.channels], dim=1)
        places = self._places(x.flatten(0, 1)).to(fine.dtype)
        return torch.unflatten(torch.cat([fine, places, sketch], dim=1), 0, x.shape[:2])

    def fine(self, path: Tensor) -> Tensor:
        """The frame before and T frames, [B, 1 + T, D, H, W] in latent cells -> [B T, channels + sketch + 1, H, W]."""
        waves = self.waves(path.flatten(0, 1)).float().unflatten(0, path.shape[:2])
        shares = [back / self.pictures for back in range(self.pictures)]
        sines = [torch.lerp(waves[:, 1:], waves[:, :-1], share).sin().to(path.dtype) for share in shares]
        hidden = self.fine_in(torch.cat([path[:, 1:], *sines], dim=2).flatten(0, 1))
        for layer in self.fine_layers:
            hidden = hidden + layer(hidden)
        opacity = self.opacity(path[:, 1:].flatten(0, 1)).clamp(0, 1)
        return torch.cat([self.fine_out(hidden), opacity], dim=1)

    def _places(self, x: Tensor) -> Tensor:
        """[B T, D, h, w] -> [B T, place channels, H, W]."""
        cells = x.flatten(2).permute(2, 0, 1)  # [h w, B T, D]
        hidden = F.silu(torch.bmm(cells, self.place_in.to(x.dtype)) + self.place_bias)
        own = torch.bmm(hidden.to(x.dtype), self.place_out.to(x.dtype)).permute(1, 2, 0)
        return F.pixel_shuffle(own.unflatten(2, x.shape[2:]), self.scale)

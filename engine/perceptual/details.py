"""What the head reads of the features itself: fine patterns, and what stands where it always stands.

The published model has none of it. The condition has as many channels as the latents and goes through convolutions that
know no place, which in small models blurs outlines and hardly learns a backdrop by heart.
Shapes: `B` batch, `T` frames, `D` feature width, `h` x `w` the semantic grid, `H` x `W` latent size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.layers import Gated
from engine.perceptual.sketch import Sketch, SketchConfig


@dataclass(frozen=True, slots=True)
class DetailsConfig:
    """Sizes of `Details`: `waves` sines of the features, `width` and `layers` of what reads them, and of what each cell
    has of its own.

    Sines are taken at `pictures` points in time: a latent frame stands for so many pictures. Beside `channels` whose
    meaning is the head's there are, last, those of the `sketch`.
    """

    grid: tuple[int, int]
    pictures: int = 4
    waves: int = 160
    width: int = 192
    layers: int = 1
    channels: int = 64
    sketch: SketchConfig = field(default_factory=SketchConfig)
    place_width: int = 32
    place_channels: int = 24

    @property
    def total(self) -> int:
        """Channels of the result."""
        return self.channels + self.place_channels + self.sketch.channels + 1


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
        self.scale, self.pictures = scale, config.pictures
        self.waves = nn.Conv2d(feature_dim, config.waves, 1)
        assert self.waves.bias is not None
        nn.init.uniform_(self.waves.bias, -torch.pi, torch.pi)
        self.fine_in = Gated(feature_dim + config.pictures * config.waves, config.width)
        self.fine_layers = nn.ModuleList(
            nn.Sequential(Gated(config.width, config.width), nn.Conv2d(config.width, config.width, 1))
            for _ in range(config.layers)
        )
        self.fine_out = nn.Conv2d(config.width, config.channels, 1)
        self.sketch = Sketch(config.sketch, feature_dim)
        cells, own = config.grid[0] * config.grid[1], config.place_channels * scale**2
        self.place_in = nn.Parameter(torch.randn(cells, feature_dim, config.place_width) / feature_dim**0.5)
        self.place_bias = nn.Parameter(torch.zeros(cells, 1, config.place_width))
        self.place_out = nn.Parameter(torch.zeros(cells, config.place_width, own))

    def forward(self, features: Tensor, given: int = 0) -> Tensor:
        """A window's frames from its first one on, [B, P + T, D, h, w] -> [B, T, total, H, W] of those behind the first
        P = `given` ones."""
        wide = F.interpolate(features.flatten(0, 1), scale_factor=self.scale, mode="bilinear")
        wide = wide.unflatten(0, features.shape[:2])
        new = features[:, given:]
        places = torch.unflatten(self._places(new.flatten(0, 1)), 0, new.shape[:2])
        fine, sketch = self._fine(wide, given), self.sketch(wide, given)
        return torch.cat([part.to(fine.dtype) for part in (fine, places, sketch)], dim=2)

    def _fine(self, path: Tensor, given: int) -> Tensor:
        """[B, P + T, D, H, W] -> [B, T, channels, H, W]; with none before it, a frame is taken to stand still."""
        now = path[:, given:]
        waves = self.waves(torch.cat([path[:, :given][:, -1:] if given else now[:, :1], now], dim=1).flatten(0, 1))
        waves = waves.float().unflatten(0, (len(path), -1))
        shares = [back / self.pictures for back in range(self.pictures)]
        sines = [torch.lerp(waves[:, 1:], waves[:, :-1], share).sin().to(now.dtype) for share in shares]
        hidden = self.fine_in(torch.cat([now, *sines], dim=2).flatten(0, 1))
        for layer in self.fine_layers:
            hidden = hidden + layer(hidden)
        return torch.unflatten(self.fine_out(hidden), 0, now.shape[:2])

    def _places(self, x: Tensor) -> Tensor:
        """[B T, D, h, w] -> [B T, place channels, H, W]."""
        cells = x.flatten(2).permute(2, 0, 1)  # [h w, B T, D]
        hidden = F.silu(torch.bmm(cells, self.place_in.to(x.dtype)) + self.place_bias)
        own = torch.bmm(hidden.to(x.dtype), self.place_out.to(x.dtype)).permute(1, 2, 0)
        return F.pixel_shuffle(own.unflatten(2, x.shape[2:]), self.scale)

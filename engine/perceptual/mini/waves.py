"""Channels of a cell from sines of its features: what turns smooth maps of ways and angles into outlines.

Shapes: `N` frames, `D` feature width, `E` further inputs, `O` outputs, `H` x `W` latent size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.runtime.layers import Gated


@dataclass(frozen=True, slots=True)
class WavesConfig:
    """`count` sines of the features at `pictures` points in time, for a latent frame stands for so many pictures;
    `layers` of `width` read them."""

    pictures: int = 4
    count: int = 160
    width: int = 192
    layers: int = 1


class Waves(nn.Module):
    """A network of each cell alone that reads sines of its features, all along the way from the frame before.

    Sines are what makes a function of a way or an angle sharp: a network that reads the plain numbers learns its smooth
    part for hours before an outline (learned Fourier features). What moves is somewhere else in each of the pictures
    that a latent stands for. Products of channels let what there is choose among the shapes that sines of a way make.
    """

    def __init__(self, config: WavesConfig, feature_dim: int, outputs: int, extra: int = 0) -> None:
        super().__init__()
        self.pictures, width = config.pictures, config.width
        self.waves = nn.Conv2d(feature_dim, config.count, 1)
        assert self.waves.bias is not None
        nn.init.uniform_(self.waves.bias, -torch.pi, torch.pi)
        self.shapes = Gated(feature_dim + config.pictures * config.count + extra, width)
        self.layers = nn.ModuleList(
            nn.Sequential(Gated(width, width), nn.Conv2d(width, width, 1)) for _ in range(config.layers)
        )
        self.out = nn.Conv2d(width, outputs, 1)

    def forward(self, now: Tensor, before: Tensor, *extra: Tensor) -> Tensor:
        """Frames [N, D, H, W], the one before each of them, and `E` further inputs -> [N, O, H, W]."""
        waves, order = self.waves(now), torch.channels_last
        # All in the type and order of what convolutions give: joining different ones costs more than all the rest.
        now, *others = (part.to(waves.dtype, memory_format=order) for part in (now, *extra))
        end, start = waves.float(), self.waves(before).float()
        shares = [back / self.pictures for back in range(self.pictures)]
        sines = [torch.lerp(end, start, share).sin().to(waves.dtype, memory_format=order) for share in shares]
        hidden = self.shapes(torch.cat([now, *sines, *others], dim=1))
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        output: Tensor = self.out(hidden)
        return output

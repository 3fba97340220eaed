"""What subjects look like in latents, drawn from the plan alone, cell by cell.

The published model has none of it. A small renderer spends itself on what stands still; here a network of each cell
sees little but how far away a subject is, and answers with a piece of it.
Shapes: `B` batch, `T` new frames, `P` frames before them, `D` feature width, `H` x `W` latent size, `I` inputs of one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.layers import Gated


@dataclass(frozen=True, slots=True)
class SketchConfig:
    """Sizes of `Sketch`: it looks `back` and `ahead` so many frames, within the window, through `sight` channels, and
    draws with `waves` sines at `pictures` points in time and `layers` of `width`; `moods` is what it keeps of its look
    around beside a mended way.
    """

    channels: int = 24
    back: int = 4
    ahead: int = 3
    sight: int = 160
    moods: int = 16
    pictures: int = 4
    waves: int = 208
    width: int = 192
    layers: int = 1


class Sketch(nn.Module):
    """Features -> latents of subjects, and how opaque they are.

    A plan says to one or two pixels where a subject is, so that from one frame to the next a slow one may seem to go
    backwards. Seen over some frames its way is plain: that, whether it faces left, and with the frame's number whether
    its wings are up, which the window's frames share with those of all others (a beat is two latents, windows begin at
    even ones). Sines are taken along the mended way, one point for each picture of a latent.
    """

    def __init__(self, config: SketchConfig, feature_dim: int) -> None:
        super().__init__()
        self.config, self.features = config, feature_dim
        self.seen = config.back + 1 + config.ahead
        self.sight = Gated(self.seen * (feature_dim + 1) + 1, config.sight)
        self.mend = nn.Conv2d(config.sight, 2 * feature_dim + config.moods, 1)
        nn.init.zeros_(self.mend.weight)
        self.waves = nn.Conv2d(feature_dim, config.waves, 1)
        assert self.waves.bias is not None and self.mend.bias is not None
        nn.init.zeros_(self.mend.bias)
        nn.init.uniform_(self.waves.bias, -torch.pi, torch.pi)
        self.shapes = Gated(feature_dim + config.pictures * config.waves + config.moods, config.width)
        self.layers = nn.ModuleList(
            nn.Sequential(Gated(config.width, config.width), nn.Conv2d(config.width, config.width, 1))
            for _ in range(config.layers)
        )
        self.out = nn.Conv2d(config.width, config.channels, 1)
        self.opacity = nn.Conv2d(feature_dim, 1, 1, bias=False)

    def forward(self, path: Tensor, given: int) -> Tensor:
        """Frames of a window from its first one on, [B, P + T, D, H, W] in latent cells, of which the first P = `given`
        ones are drawn already -> [B, T, channels + 1, H, W]."""
        inputs = self.look(path, given)
        drawn = torch.unflatten(self.draw(inputs.flatten(0, 1)), 0, inputs.shape[:2])
        opacity = self.opacity(path[:, given:].flatten(0, 1)).clamp(0, 1).unflatten(0, inputs.shape[:2])
        return torch.cat([drawn, opacity], dim=2)

    def look(self, path: Tensor, given: int) -> Tensor:
        """What each cell sees, [B, T, I, H, W]: the frames around, each with a mark that it is in the window, and
        whether its own has an even number. Arguments as for `forward`."""
        back, ahead = self.config.back, self.config.ahead
        new = path.shape[1] - given
        known = min(given, back)
        frames = torch.cat([path, torch.ones_like(path[:, :, :1])], dim=2)[:, given - known :]
        frames = F.pad(frames, (0, 0) * 3 + (back - known, ahead))
        parity = torch.arange(given, given + new, device=path.device).remainder(2).to(path.dtype)
        parity = parity[:, None, None, None].expand_as(path[:, given:, :1])
        return torch.cat([*(frames[:, start : start + new] for start in range(self.seen)), parity], dim=2)

    def draw(self, inputs: Tensor) -> Tensor:
        """[N, I, H, W] of `look` -> [N, channels, H, W]."""
        config, size = self.config, self.features + 1
        now = inputs[:, config.back * size :][:, : self.features]
        before = inputs[:, (config.back - 1) * size :][:, :size]
        # With none before, a frame is taken to stand still.
        before = torch.where(before[:, self.features :] > 0, before[:, : self.features], now)
        ways, moods = self.mend(self.sight(inputs)).tensor_split([2 * self.features], dim=1)
        before, now = torch.cat([before, now], dim=1).add(ways).chunk(2, dim=1)
        end, start = self.waves(now).float(), self.waves(before).float()
        shares = [back / config.pictures for back in range(config.pictures)]
        sines = [torch.lerp(end, start, share).sin().to(now.dtype) for share in shares]
        hidden = self.shapes(torch.cat([now, *sines, moods], dim=1))
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        drawn: Tensor = self.out(hidden)
        return drawn

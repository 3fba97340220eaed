"""Sketches of subjects in latents, drawn from the plan alone, cell by cell.

The published model has none of it. A small renderer spends itself on what stands still; here a network of each cell
sees little but how far away a subject is, and answers with a piece of it.
Shapes: `B` batch, `T` new frames, `P` frames before them, `D` feature width, `H` x `W` latent size, `I` inputs of one
cell, `N` cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.perceptual.mini.waves import Waves, WavesConfig
from engine.runtime.layers import Gated


@dataclass(frozen=True, slots=True)
class SketchConfig:
    """Sizes of `Sketch`: it looks `back` and `ahead` so many frames, within the window, through `sight` channels, keeps
    `hints` of what it saw beside the mended way, and draws with `waves` the `share` of a frame's cells that are the
    most opaque.

    `twins` are features that both subjects have, masks first: where those of the first and of the second one begin, and
    how many there are.
    """

    channels: int = 24
    back: int = 4
    ahead: int = 3
    sight: int = 160
    hints: int = 16
    waves: WavesConfig = field(default_factory=lambda: WavesConfig(count=352, width=320, layers=2))
    share: float = 1 / 3
    twins: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.back < 1 or self.ahead < 0:
            raise ValueError(
                f"back {self.back} must be at least 1, for the frame before, ahead {self.ahead} at least 0"
            )
        if not 0 < self.share <= 1:
            raise ValueError(f"share {self.share} of the cells is not above 0 and at most 1")


class Sketch(nn.Module):
    """Features -> latents of subjects, and how opaque they are.

    A plan says to one or two pixels where a subject is, so that from one frame to the next a slow one may seem to go
    backwards. Over some frames its way is plain, and so is whether it faces left. Whether its wings are up is told by
    the frame's number in the window: a beat is two latents, and windows begin at even ones (`EngineConfig`).

    A cell that the second subject covers more than the first is drawn as if it were the first, so that both are drawn
    by the same rules. Where nothing is opaque there is nothing to draw.
    """

    def __init__(self, config: SketchConfig, feature_dim: int) -> None:
        super().__init__()
        self.config, self.features = config, feature_dim
        self.seen = config.back + 1 + config.ahead
        self._swapped = _swapped(config.twins, feature_dim + 1)
        self.sight = Gated(self.seen * (feature_dim + 1) + 1, config.sight)
        self.mend = nn.Conv2d(config.sight, 2 * feature_dim + config.hints, 1)
        assert self.mend.bias is not None
        nn.init.zeros_(self.mend.weight)
        nn.init.zeros_(self.mend.bias)
        self.strokes = Waves(config.waves, feature_dim, config.channels, config.hints)
        self.opacity = nn.Conv2d(feature_dim, 1, 1, bias=False)

    def forward(self, path: Tensor, context_frames: int) -> Tensor:
        """Latents and opacity of a window's new frames.

        Args:
            path: [B, P + T, D, H, W] features of the window in latent cells, from its first frame on.
            context_frames: P, which are not drawn.

        Returns:
            [B, T, channels + 1, H, W].
        """
        inputs = self.look(path, context_frames).movedim(2, -1)
        covered = self.opacity(path[:, context_frames:].flatten(0, 1)).flatten(1)
        frames, cells = covered.shape
        first = torch.arange(0, frames * cells, cells, device=path.device)[:, None]
        chosen = (covered.topk(math.ceil(self.config.share * cells), sorted=False).indices + first).flatten()
        drawn = self.draw(inputs.flatten(0, 3).index_select(0, chosen))
        opacity = covered.clamp(0, 1).view(-1, 1)
        sketch = drawn.new_zeros(frames * cells, self.config.channels).index_copy(0, chosen, drawn)
        sketch = torch.cat([sketch * (opacity > 0), opacity], dim=1)
        return sketch.view(*inputs.shape[:-1], -1).movedim(-1, 2)

    def look(self, path: Tensor, context_frames: int) -> Tensor:
        """The input of each cell, [B, T, I, H, W]: the frames around, each with a mark that it is in the window, and
        a mark that its own number is odd. Arguments as for `forward`."""
        back, ahead = self.config.back, self.config.ahead
        new = path.shape[1] - context_frames
        known = min(context_frames, back)
        path = path.movedim(2, -1)  # so that channels come last in memory, as convolutions like them
        frames = torch.cat([path, torch.ones_like(path[..., :1])], dim=-1)[:, context_frames - known :]
        frames = F.pad(frames, (0, 0) * 3 + (back - known, ahead))
        odd = torch.arange(context_frames, context_frames + new, device=path.device).remainder(2).to(path.dtype)
        odd = odd[:, None, None, None].expand_as(path[:, context_frames:, ..., :1])
        around = [frames[:, start : start + new] for start in range(self.seen)]
        return torch.cat([*around, odd], dim=-1).movedim(-1, 2)

    def draw(self, inputs: Tensor) -> Tensor:
        """[N, I] of `look` -> [N, channels]."""
        inputs = self._own_first(inputs).T[None, :, :, None]
        frames = inputs[:, :-1].unflatten(1, (self.seen, -1))
        before, now = frames[:, self.config.back - 1, :-1], frames[:, self.config.back, :-1]
        # With none before, a frame is taken to stand still.
        before = torch.where(frames[:, self.config.back - 1, -1:] > 0, before, now)
        ways, hints = self.mend(self.sight(inputs)).tensor_split([2 * self.features], dim=1)
        before, now = torch.cat([before, now], dim=1).add(ways).chunk(2, dim=1)
        drawn: Tensor = self.strokes(now, before, hints)
        return drawn[0, :, :, 0].T

    def _own_first(self, inputs: Tensor) -> Tensor:
        """Inputs [N, I] in which the subject that covers a cell more is the first one, in all frames."""
        if not self.config.twins:
            return inputs
        frames = inputs[:, :-1].unflatten(1, (self.seen, -1))
        swapped = torch.cat([frames[..., part] for part in self._swapped], dim=-1)
        first, second, _ = self.config.twins[0]
        now = frames[:, self.config.back]
        behind = now[:, second] > now[:, first]
        frames = torch.where(behind[:, None, None], swapped, frames)
        return torch.cat([frames.flatten(1), inputs[:, -1:]], dim=1)


def _swapped(twins: tuple[tuple[int, int, int], ...], width: int) -> list[slice]:
    """The channels of a frame, `width` in all, with twins in each other's place."""
    parts, end = [], 0
    for place, other, count in sorted(pair for one, two, n in twins for pair in ((one, two, n), (two, one, n))):
        parts += [slice(end, place), slice(other, other + count)]
        end = place + count
    return [*parts, slice(end, width)]

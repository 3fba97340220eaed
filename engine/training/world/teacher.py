"""What the world knows of its pictures: the maps that the feature extractor is distilled from, without pixels.

Shapes: `B` worlds, `F` frames, `h` x `w` feature cells, `D` feature channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.training.world import backdrop
from engine.training.world import drawing as world
from engine.training.world.captions import COLOURS, SCENES, SUBJECTS
from engine.training.world.spec import Spec

CELL_PX = 16
FINE_PX = 4  # from one point of a cell to the next
WHOLE = 0.5  # share of a cell that subjects cover from which on it counts as all theirs
OFFSET_PX = 48.0  # how far away a cell still tells well where the subject is
# New maps come last: trained weights know the others by their place.
CHANNELS = (
    ("mask", 1),
    ("depth", 1),
    ("class", 8),
    ("colour", 8),
    ("offset", 2),
    ("scene", 6),
    ("ground", 2),
    ("glow", 1),
    ("cloud", 1),
    ("mask2", 1),
    ("class2", 8),
    ("colour2", 8),
    ("offset2", 2),
    ("scroll", 2),
)
FEATURE_DIM = sum(width for _, width in CHANNELS)


def channel(name: str) -> slice:
    """Where the teacher's map `name` lies among the feature channels."""
    start = 0
    for other, width in CHANNELS:
        if other == name:
            return slice(start, start + width)
        start += width
    raise ValueError(f"no feature channel {name!r}; there are {', '.join(other for other, _ in CHANNELS)}")


def covered(maps_: Tensor) -> Tensor:
    """Maps [..., D, h, w] -> how much of each cell subjects cover, [..., h, w]."""
    return maps_[..., channel("mask"), :, :].squeeze(-3) + maps_[..., channel("mask2"), :, :].squeeze(-3)


def maps(spec: Spec, frames: Tensor) -> Tensor:
    """The maps the feature extractor learns: what the world knows of each cell of CELL_PX pixels.

    Args:
        spec: B worlds.
        frames: [B, F] frame numbers.

    Returns:
        float32 [B, F, FEATURE_DIM, 128 / CELL_PX, 192 / CELL_PX]; channels as in CHANNELS. `class` and
        `colour` are the subject's in every cell, and `offset` is tanh((subject - cell) / OFFSET_PX), so that each cell
        tells what there is and which way it lies: what and where are then learned apart, which is far faster.
        The same of the second subject, all 0 where there is none. `scroll` is cosine and sine of `backdrop.scroll`.
    """
    device, frames = frames.device, frames.float()
    x = torch.arange(FINE_PX / 2, world.WIDTH_PX, FINE_PX, device=device)
    y = torch.arange(FINE_PX / 2, world.HEIGHT_PX, FINE_PX, device=device)
    far, near = _cells(backdrop.far_alpha(spec, frames, x, y)), _cells(backdrop.near_alpha(spec, frames, x, y))
    glow = _cells(backdrop.glow(spec, x, y)[0][:, None]) * (1 - far)
    cloud = _cells(backdrop.cloud_alpha(spec, frames, x, y)) * (1 - far)
    (mask, *first), (mask2, *second) = (_subject_maps(spec, frames, x, y, number == 1) for number in range(2))
    depth = torch.lerp(1.0 - 0.3 * far - 0.4 * near, torch.full_like(mask, 0.1), mask + mask2)
    turn = backdrop.scroll(spec, frames, x.view(-1, 4).mean(1))[:, :, None, None]
    scene = _one_hot(SCENES, list(spec.scenes), 6, device)
    parts = [mask, depth, *first, scene, far, near, glow, cloud, mask2, *second, turn.cos(), turn.sin()]
    return torch.cat([part.expand(*mask.shape[:2], -1, *mask.shape[3:]) for part in parts], dim=2)


def wave_weights(count: int) -> Tensor:
    """What `engine.perceptual.mini.waves.Waves` start from, [count, FEATURE_DIM] radians per unit.

    Most read the way to a subject, the others the scenery's angle, each shifted by what is seen there. Periods of ways
    are 20 to 60 px: shorter ones would see how far a tokenizer misplaces subjects.
    """
    parts = (("offset", 10.0, "class", 5), ("offset2", 10.0, "class2", 3), ("scroll", 2.5, "scene", 2))
    kinds = [part for part in parts for _ in range(part[3])]
    weights = torch.zeros(count, FEATURE_DIM)
    for row in range(count):
        way, scale, what, _ = kinds[row % len(kinds)]
        for name, width in ((way, scale), (what, 1.5)):
            weights[row, channel(name)] = width * torch.randn(weights[row, channel(name)].shape)
    return weights


def opacity_weights() -> Tensor:
    """What the opacity of `Sketch` starts from, [FEATURE_DIM]."""
    weights = torch.zeros(FEATURE_DIM)
    for name in ("mask", "mask2"):
        weights[channel(name)] = 1 / WHOLE
    return weights


def _cells(fine: Tensor) -> Tensor:
    """Mean of maps of points [B, F, ...] over cells, [B, F, 1, h, w]."""
    pooled: Tensor = F.avg_pool2d(fine.flatten(0, 1)[:, None], CELL_PX // FINE_PX).unflatten(0, fine.shape[:2])
    return pooled


def _subject_maps(spec: Spec, frames: Tensor, x: Tensor, y: Tensor, second: bool) -> list[Tensor]:
    """Mask, class, colour and offset, each [B, F or 1, channels, h or 1, w or 1]."""
    there = [not second or label.relation is not None for label in spec.labels]
    middle = world.centres(spec, frames, second)
    fine = torch.zeros(*frames.shape, len(y), len(x), device=frames.device)
    for row in range(len(spec)):
        if there[row]:
            at, alpha, _ = world.stamp(spec.row(row), frames[row], FINE_PX, second)
            fine[row][at] = alpha
    cell_x, cell_y = x.view(-1, 4).mean(1), y.view(-1, 4).mean(1)
    gap_x, gap_y = middle[..., 0, None, None] - cell_x, middle[..., 1, None, None] - cell_y[:, None]
    gap = torch.stack(torch.broadcast_tensors(gap_x, gap_y), dim=2)
    exists = torch.tensor(there, device=frames.device).float()[:, None, None, None, None]
    names = [label.subject2 if second else label.subject for label in spec.labels]
    colours = [label.colour2 if second else label.colour for label in spec.labels]
    return [
        _cells(fine),
        _one_hot(SUBJECTS, names, 8, frames.device),
        _one_hot(COLOURS, colours, 8, frames.device),
        torch.tanh(gap / OFFSET_PX) * exists,
    ]


def _one_hot(words: tuple[str, ...], chosen: Sequence[str | None], width: int, device: torch.device) -> Tensor:
    """[B, 1, width, 1, 1], all 0 for None."""
    rows = [[float(word is not None and words.index(word) == i) for i in range(width)] for word in chosen]
    return torch.tensor(rows, device=device)[:, None, :, None, None]

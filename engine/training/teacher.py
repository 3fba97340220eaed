"""What the world knows of its pictures: the maps that the feature extractor is distilled from, without pixels.

Shapes: `B` worlds, `F` frames, `h` x `w` feature cells, `D` feature channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.training import world
from engine.training.captions import COLOURS, SCENES, SUBJECTS

CELL_PX = 16
OFFSET_PX = 48.0  # how far away a cell still tells well where the subject is
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


def maps(spec: world.Spec, frames: Tensor) -> Tensor:
    """The maps the feature extractor learns: what the world knows of each cell of CELL_PX pixels.

    Args:
        spec: B worlds.
        frames: [B, F] frame numbers.

    Returns:
        float32 [B, F, FEATURE_DIM, 128 / CELL_PX, 192 / CELL_PX]; channels as in CHANNELS. `class` and
        `colour` are the subject's in every cell, and `offset` is tanh((subject - cell) / OFFSET_PX), so that each cell
        tells what there is and which way it lies: what and where are then learned apart, which is far faster.
    """
    device, frames = frames.device, frames.float()
    x = torch.arange(2, world.WIDTH_PX, 4, device=device).float()
    y = torch.arange(2, world.HEIGHT_PX, 4, device=device).float()
    batch, count = frames.shape

    def cells(fine: Tensor) -> Tensor:
        pooled: Tensor = F.avg_pool2d(fine.flatten(0, 1)[:, None], 4).unflatten(0, fine.shape[:2])
        return pooled.expand(batch, count, *pooled.shape[2:])

    middle = world.bobbing_centres(spec, frames)
    masks = []
    for row in range(batch):
        dx, dy = x - middle[row, :, 0, None, None], y[:, None] - middle[row, :, 1, None, None]
        masks.append(world.subject(spec, row, dx, dy)[0])
    mask = cells(torch.stack(masks))
    cell_x, cell_y = F.avg_pool1d(x[None], 4)[0], F.avg_pool1d(y[None], 4)[0]
    gap_x = (middle[..., 0, None, None] - cell_x).expand(mask.shape[0], count, *mask.shape[-2:])
    gap_y = (middle[..., 1, None, None] - cell_y[:, None]).expand_as(gap_x)
    offset = torch.tanh(torch.stack([gap_x, gap_y], dim=2) / OFFSET_PX)
    far = cells(world.ridge_alpha(spec, x, y, 0, world.HORIZON_PX - 6.0)[:, None])
    near = cells(world.ridge_alpha(spec, x, y, 1, world.HORIZON_PX + 4.0)[:, None])
    glow = cells(world.glow(spec, x, y)[0][:, None]) * (1 - far)
    cloud = cells(world.cloud_alpha(spec, frames, x, y)) * (1 - far)
    depth = torch.lerp(1.0 - 0.3 * far - 0.4 * near, torch.full_like(mask, 0.1), mask)

    def one_hot(words: tuple[str, ...], name: str, width: int) -> Tensor:
        index = torch.tensor([words.index(getattr(label, name)) for label in spec.labels], device=device)
        return F.one_hot(index, width).float()[:, None, :, None, None].expand(-1, count, -1, *mask.shape[-2:])

    return torch.cat(
        [
            mask,
            depth,
            one_hot(SUBJECTS, "subject", 8),
            one_hot(COLOURS, "colour", 8),
            offset,
            one_hot(SCENES, "scene", 6),
            far,
            near,
            glow,
            cloud,
        ],
        dim=2,
    )

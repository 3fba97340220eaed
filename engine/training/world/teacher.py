"""The teacher of the feature extractor: maps of what the drawn world shows, made without pixels.

Shapes: `B` worlds, `F` frames, `h` x `w` feature cells, `D` feature channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.semantic.world_maps import CELL_PX, FEATURE_DIM, HEIGHT_PX, OFFSET_PX, WIDTH_PX, channel
from engine.text.asked import COLOURS, SCENES, SUBJECTS
from engine.training.world import backdrop, drawing
from engine.training.world.spec import Spec

FINE_PX = 4  # from one point of a cell to the next
WHOLE = 0.5  # a cell counts as covered from this share on


def covered(maps_: Tensor) -> Tensor:
    """The share of each cell that subjects cover, [..., h, w], by maps [..., D, h, w]."""
    return maps_[..., channel("mask"), :, :].squeeze(-3) + maps_[..., channel("mask2"), :, :].squeeze(-3)


def maps(spec: Spec, frames: Tensor) -> Tensor:
    """Maps [B, F, FEATURE_DIM, h, w] float32 of frame numbers [B, F], with a cell for every CELL_PX px each way.

    Channels are those of the table of maps. `class` and `colour` are the subject's in every cell, and `offset` is
    tanh((subject - cell) / OFFSET_PX): each cell tells what there is and in which direction, which is learned faster.
    Maps of a second subject are 0 where there is none. `scroll` is cosine and sine of `backdrop.scroll`.
    """
    device, frames = frames.device, frames.float()
    x, y = (torch.arange(FINE_PX / 2, size, FINE_PX, device=device) for size in (WIDTH_PX, HEIGHT_PX))
    far, near = _cells(backdrop.far_alpha(spec, frames, x, y)), _cells(backdrop.near_alpha(spec, frames, x, y))
    glow = _cells(backdrop.glow(spec, x, y)[0][:, None]) * (1 - far)
    cloud = _cells(backdrop.cloud_alpha(spec, frames, x, y)) * (1 - far)
    (mask, *first), (mask2, *second) = (_subject_maps(spec, frames, x, y, number == 1) for number in range(2))
    depth = torch.lerp(1.0 - 0.3 * far - 0.4 * near, torch.full_like(mask, 0.1), mask + mask2)
    turn = backdrop.scroll(spec, frames, x.view(-1, 4).mean(1))[:, :, None, None]
    scene = _one_hot(SCENES, spec.scenes, device)
    parts = [mask, depth, *first, scene, far, near, glow, cloud, mask2, *second, turn.cos(), turn.sin()]
    return torch.cat([part.expand(*mask.shape[:2], -1, *mask.shape[3:]) for part in parts], dim=2)


def wave_weights(count: int) -> Tensor:
    """Initial weights of `engine.perceptual.mini.waves.Waves`, [count, FEATURE_DIM] radians per unit.

    Most read the direction of a subject, the others the scenery's angle, each shifted by what is seen there. Periods of
    directions are 20 to 60 px: shorter ones would show how far a tokenizer misplaces subjects.
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
    """Initial weights of the opacity of `Sketch`, [FEATURE_DIM]."""
    weights = torch.zeros(FEATURE_DIM)
    weights[channel("mask")] = weights[channel("mask2")] = 1 / WHOLE
    return weights


def _cells(fine: Tensor) -> Tensor:
    """Means over cells, [B, F, 1, h, w], of maps of points [B, F, ...]."""
    pooled: Tensor = F.avg_pool2d(fine.flatten(0, 1)[:, None], CELL_PX // FINE_PX).unflatten(0, fine.shape[:2])
    return pooled


def _subject_maps(spec: Spec, frames: Tensor, x: Tensor, y: Tensor, second: bool) -> list[Tensor]:
    """Mask, class, colour and offset, each [B, F or 1, channels, h or 1, w or 1]."""
    there = [not second or label.relation is not None for label in spec.labels]
    middle = drawing.centres(spec, frames, second)
    fine = torch.zeros(*frames.shape, len(y), len(x), device=frames.device)
    for row in range(len(spec)):
        if there[row]:
            at, alpha, _ = drawing.stamp(spec.row(row), frames[row], FINE_PX, second)
            fine[row][at] = alpha
    cell_x, cell_y = x.view(-1, 4).mean(1), y.view(-1, 4).mean(1)
    gap_x, gap_y = middle[..., 0, None, None] - cell_x, middle[..., 1, None, None] - cell_y[:, None]
    gap = torch.stack(torch.broadcast_tensors(gap_x, gap_y), dim=2)
    exists = torch.tensor(there, device=frames.device).float()[:, None, None, None, None]
    names = [label.subject2 if second else label.subject for label in spec.labels]
    colours = [label.colour2 if second else label.colour for label in spec.labels]
    what = [_one_hot(SUBJECTS, names, frames.device), _one_hot(COLOURS, colours, frames.device)]
    return [_cells(fine), *what, torch.tanh(gap / OFFSET_PX) * exists]


def _one_hot(words: tuple[str, ...], chosen: Sequence[str | None], device: torch.device) -> Tensor:
    """[B, 1, len(words), 1, 1], all 0 for None."""
    rows = torch.tensor([[float(one == word) for word in words] for one in chosen], device=device)
    return rows[:, None, :, None, None]

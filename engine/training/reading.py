"""Reads back what a plan shows: the label and the subject's path, from semantic features alone.

Shapes: `B` videos, `T` semantic frames, `D` channels, `h` x `w` cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.training import teacher, world
from engine.training.captions import COLOURS, SCENES, SPEEDS, SUBJECTS, Label

FRAMES_PER_STEP = 4  # video frames between two semantic frames
STILL_PX = 0.3  # per video frame; slower than this is no movement
SPEED_LIMITS_PX = tuple((a + b) / 2 for a, b in zip(world.SPEED_PX, world.SPEED_PX[1:], strict=False))
VISIBLE_CELLS = 0.5  # a subject that covers less is not measured


@dataclass(frozen=True, slots=True)
class Reading:
    """What was seen; `None` for a moving word that could not be measured."""

    subject: str
    colour: str
    scene: str
    direction: str | None
    speed: str | None

    def right(self, label: Label) -> dict[str, bool]:
        """Which words agree with `label`."""
        names = ("subject", "colour", "scene", "direction", "speed")
        return {name: getattr(self, name) == getattr(label, name) for name in names}


def path(features: Tensor) -> tuple[Tensor, Tensor]:
    """Middle of the subject in px [B, T, 2] and the cells it covers [B, T]."""
    area = features[:, :, teacher.channel("mask")].clamp(0, 1).sum((2, 3, 4))
    offset = features[:, :, teacher.channel("offset")].clamp(-0.99, 0.99)
    rows, columns = offset.shape[-2:]
    y, x = torch.meshgrid(
        (torch.arange(rows, device=offset.device) + 0.5) * teacher.CELL_PX,
        (torch.arange(columns, device=offset.device) + 0.5) * teacher.CELL_PX,
        indexing="ij",
    )
    votes = torch.stack([x, y]) + teacher.OFFSET_PX * torch.atanh(offset)
    weight = (1 - offset.square()) ** 2  # near cells know best
    return (votes * weight).sum((-2, -1)) / weight.sum((-2, -1)), area


def movement(middles: Tensor, visible: Tensor, frames_per_step: float) -> Tensor:
    """Median velocity in px a video frame, [B, 2]; NaN where fewer than three steps are visible.

    Args:
        middles: [B, T, 2] px.
        visible: [B, T] bool.
        frames_per_step: video frames between two of them.
    """
    span = torch.tensor([world.WIDTH_PX, world.HEIGHT_PX], device=middles.device) + 2 * world.MARGIN_PX
    step = middles.diff(dim=1)
    step = torch.remainder(step + span / 2, span) - span / 2  # the short way round
    usable = (visible[:, 1:] & visible[:, :-1])[..., None]
    step = torch.where(usable, step, torch.nan)
    enough = usable.sum(1) >= 3
    return torch.where(enough, step.nanmean(dim=1), torch.nan) / frames_per_step


def words(velocity: tuple[float, float]) -> tuple[str | None, str | None]:
    """Direction and speed of a velocity in px a video frame; (None, None) for NaN."""
    x, y = velocity
    if x != x or y != y:
        return None, None
    size = max(abs(x), abs(y))
    if size < STILL_PX:
        return "still", "slow"
    direction = ("left" if x < 0 else "right") if abs(x) > abs(y) else ("up" if y < 0 else "down")
    return direction, SPEEDS[sum(size > limit for limit in SPEED_LIMITS_PX)]


def read(features: Tensor) -> list[Reading]:
    """One reading a video from features [B, T, D, h, w]."""
    features = features.float()
    totals = features.sum((1, 3, 4))
    middles, area = path(features)
    velocity = movement(middles, area > VISIBLE_CELLS, FRAMES_PER_STEP)

    def best(name: str, names: tuple[str, ...]) -> list[str]:
        scores = totals[:, teacher.channel(name)][:, : len(names)]
        return [names[i] for i in scores.argmax(1).tolist()]

    rows = zip(best("class", SUBJECTS), best("colour", COLOURS), best("scene", SCENES), velocity.tolist(), strict=True)
    return [Reading(subject, colour, scene, *words((v[0], v[1]))) for subject, colour, scene, v in rows]


def shares(readings: list[Reading], labels: list[Label]) -> dict[str, float]:
    """Share of right words, each kind and all at once."""
    rows = [reading.right(label) for reading, label in zip(readings, labels, strict=True)]
    result = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    result["all"] = sum(all(row.values()) for row in rows) / len(rows)
    return result

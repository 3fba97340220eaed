"""Reads back what a plan shows: the label and the subjects' paths, from semantic features alone.

Shapes: `B` videos, `T` semantic frames, `D` channels, `h` x `w` cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.training.world import drawing as world
from engine.training.world import teacher
from engine.training.world.captions import COLOURS, SCENES, SPEEDS, SUBJECTS, Label
from engine.training.world.landmarks import PERIOD_PX
from engine.training.world.spec import HOP_FRAMES, HOP_PX, PAN_PX, SPEED_PX

FRAMES_PER_STEP = 4  # video frames between two semantic frames
STILL_PX = 0.3  # per video frame; slower than this is no movement
SPEED_LIMITS_PX = tuple((a + b) / 2 for a, b in zip(SPEED_PX, SPEED_PX[1:], strict=False))
VISIBLE_CELLS = 0.25  # a subject that covers less is not measured
LEAST_STEPS = 2  # that a movement is measured from
PHASES = 24  # of a bounce that are tried
BOUNCE_SHARE = 0.35  # of the variance about a steady movement, that a bounce leaves at most
THERE = 0.5  # of a second subject's class, in the mean over cells


@dataclass(frozen=True, slots=True)
class Reading:
    """What was seen; `None` for a moving word that could not be measured, and where there is no second subject."""

    subject: str
    colour: str
    scene: str
    direction: str | None
    speed: str | None
    camera: str | None
    relation: str | None
    subject2: str | None
    colour2: str | None

    def right(self, label: Label) -> dict[str, bool]:
        """Which words agree with `label`: those that it has."""
        return {name: getattr(self, name.removeprefix("fixed_")) == word for name, word in label.words.items()}


def path(features: Tensor, second: bool = False) -> tuple[Tensor, Tensor]:
    """Middle of the subject, or of the second one, in px [B, T, 2] and the cells it covers [B, T]."""
    mask, away = ("mask2", "offset2") if second else ("mask", "offset")
    area = features[:, :, teacher.channel(mask)].clamp(0, 1).sum((2, 3, 4))
    offset = features[:, :, teacher.channel(away)].clamp(-0.99, 0.99)
    rows, columns = offset.shape[-2:]
    y, x = torch.meshgrid(
        (torch.arange(rows, device=offset.device) + 0.5) * teacher.CELL_PX,
        (torch.arange(columns, device=offset.device) + 0.5) * teacher.CELL_PX,
        indexing="ij",
    )
    votes = torch.stack([x, y]) + teacher.OFFSET_PX * torch.atanh(offset)
    weight = (1 - offset.square()) ** 2  # near cells know best
    return (votes * weight).sum((-2, -1)) / weight.sum((-2, -1)), area


def steps(middles: Tensor, visible: Tensor) -> Tensor:
    """Movement from frame to frame [B, T - 1, 2] in px, NaN between frames one of which does not show the subject.

    Args:
        middles: [B, T, 2] px.
        visible: [B, T] bool.
    """
    span = torch.tensor([world.WIDTH_PX, world.HEIGHT_PX], device=middles.device) + 2 * world.MARGIN_PX
    step = middles.diff(dim=1)
    step = torch.remainder(step + span / 2, span) - span / 2  # the short way round
    return torch.where((visible[:, 1:] & visible[:, :-1])[..., None], step, torch.nan)


def movement(middles: Tensor, visible: Tensor, frames_per_step: float) -> Tensor:
    """Mean velocity in px a video frame, [B, 2]; NaN where fewer than LEAST_STEPS steps are visible.

    Args:
        middles: [B, T, 2] px.
        visible: [B, T] bool.
        frames_per_step: video frames between two of them.
    """
    step = steps(middles, visible)
    enough = (~step.isnan()).sum(1) >= LEAST_STEPS
    return torch.where(enough, step.nanmean(dim=1), torch.nan) / frames_per_step


def bounces(height: Tensor, frames_per_step: float) -> list[str | None]:
    """Speed of the bounce that heights [B, T] px show, counted downwards; None where they show none.

    Bounces of every speed and phase are fitted by least squares; the best is one if it is about HOP_PX high and
    explains far more than a steady movement does.
    """
    time = torch.arange(height.shape[1], device=height.device) * float(frames_per_step)
    steady = torch.stack([torch.ones_like(time), time], dim=1)[None]
    rest = _residual(steady, height)[0][:, 0]
    phases = torch.arange(PHASES, device=height.device) / PHASES
    part = torch.remainder(time / torch.tensor(HOP_FRAMES, device=time.device)[:, None, None] + phases[:, None], 1.0)
    hop = (-4 * HOP_PX * part * (1 - part)).flatten(0, 1)
    left, size = _residual(torch.stack([torch.ones_like(hop), hop], dim=-1), height)
    left, best = left.masked_fill((size < 0.5) | (size > 1.5), math.inf).min(dim=1)
    found = left < BOUNCE_SHARE * rest
    return [SPEEDS[i // PHASES] if yes else None for i, yes in zip(best.tolist(), found.tolist(), strict=True)]


def _residual(bases: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Square error [B, K] of rows [B, T] fitted by each of K bases [K, T, 2], and the second function's weight."""
    weights = torch.linalg.pinv(bases) @ rows.T  # [K, 2, B]
    gap = (bases @ weights - rows.T).square().sum(1)
    return gap.T, weights[:, 1].T


def cameras(features: Tensor) -> list[str | None]:
    """How the camera moves, from how the scenery's angle turns; None of fewer than two frames."""
    if features.shape[1] < 2:
        return [None] * len(features)
    cosine, sine = features[:, :, teacher.channel("scroll")].unbind(2)
    turn = torch.complex(cosine, sine)
    columns = (turn[:, 1:] * turn[:, :-1].conj()).sum((1, 2, 3))
    passed = columns.angle() * PERIOD_PX / (2 * math.pi) / FRAMES_PER_STEP
    return ["fixed" if abs(px) < PAN_PX / 2 else "left" if px < 0 else "right" for px in passed.tolist()]


def words(velocity: tuple[float, float], bounce: str | None = None) -> tuple[str | None, str | None]:
    """Direction and speed of a velocity in px a video frame; (None, None) for NaN. A `bounce` is the speed of one."""
    x, y = velocity
    if x != x or y != y:
        return None, None
    if bounce and abs(x) < STILL_PX:
        return "bounce", bounce
    size = max(abs(x), abs(y))
    if size < STILL_PX:
        return "still", "slow"
    direction = ("left" if x < 0 else "right") if abs(x) > abs(y) else ("up" if y < 0 else "down")
    return direction, SPEEDS[sum(size > limit for limit in SPEED_LIMITS_PX)]


def read(features: Tensor) -> list[Reading]:
    """One reading a video from features [B, T, D, h, w]."""
    features = features.float()
    totals = features.mean((1, 3, 4))
    middles, area = path(features)
    visible = area > VISIBLE_CELLS
    velocity = movement(middles, visible, FRAMES_PER_STEP).tolist()
    climb = steps(middles, visible)[..., 1].nan_to_num().cumsum(1)
    hops = bounces(torch.nn.functional.pad(climb, (1, 0)), FRAMES_PER_STEP)

    def best(name: str, names: tuple[str, ...]) -> list[str]:
        scores = totals[:, teacher.channel(name)][:, : len(names)]
        return [names[i] for i in scores.argmax(1).tolist()]

    rows = zip(
        best("class", SUBJECTS), best("colour", COLOURS), best("scene", SCENES), velocity, hops, cameras(features),
        _relations(features, middles, totals), best("class2", SUBJECTS), best("colour2", COLOURS), strict=True,
    )  # fmt: skip
    return [
        Reading(subject, colour, scene, *words((v[0], v[1]), hop), camera, *(second if second[0] else (None,) * 3))
        for subject, colour, scene, v, hop, camera, *second in rows
    ]


def _relations(features: Tensor, middles: Tensor, totals: Tensor) -> list[str | None]:
    """How the first subject stands to the second; None where there is none."""
    there = (totals[:, teacher.channel("class2")].sum(1) > THERE).tolist()
    gaps = (path(features, second=True)[0] - middles).median(dim=1).values.tolist()
    return [_relation(x, y) if yes else None for yes, (x, y) in zip(there, gaps, strict=True)]


def _relation(x: float, y: float) -> str:
    """Of a first subject whose second is `x` px to the right of it and `y` px below."""
    if abs(x) > abs(y):
        return "left of" if x > 0 else "right of"
    return "above" if y > 0 else "below"


def shares(readings: list[Reading], labels: list[Label]) -> dict[str, float]:
    """Share of right words, each kind over the labels that have it, and all at once."""
    rows = [reading.right(label) for reading, label in zip(readings, labels, strict=True)]
    names = dict.fromkeys(name for row in rows for name in row)
    result = {name: _share([row[name] for row in rows if name in row]) for name in names}
    result["all"] = _share([all(row.values()) for row in rows])
    return result


def _share(right: list[bool]) -> float:
    return sum(right) / len(right)

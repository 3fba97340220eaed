"""Reads what the feature extractor's maps say: the label and the subjects' paths.

Shapes: `B` videos, `T` semantic frames, `D` channels, `h` x `w` cells.
"""

from __future__ import annotations

import math
from itertools import chain

import torch
from torch import Tensor

from engine.semantic import world_maps
from engine.semantic.world_maps import BOUNCE_FRAMES, BOUNCE_PX, FRAMES_PER_MAP, PAN_PX, PERIOD_PX, SPEED_PX
from engine.text.asked import COLOURS, SCENES, SPEEDS, SUBJECTS, WORDS

STILL_PX = 0.3  # per video frame; a slower subject is still
SPEED_LIMITS_PX = tuple((a + b) / 2 for a, b in zip(SPEED_PX, SPEED_PX[1:], strict=False))
VISIBLE_CELLS = 0.25  # a subject that covers less is not measured
LEAST_STEPS = 2  # to measure a movement from
PHASES = 24  # of a bounce that are tried
BOUNCE_SHARE = 0.35  # a bounce leaves at most this share of the variance around a steady movement
THERE = 0.5  # there is a second subject if its class has this sum, in the mean over cells


# A word for each field of `WORDS`; None for what could not be measured, and without a second subject.
Reading = dict[str, str | None]


def path(features: Tensor, second: bool = False) -> tuple[Tensor, Tensor]:
    """Middle of the subject, or of the second one, in px [B, T, 2] and the cells it covers [B, T]."""
    mask, away = ("mask2", "offset2") if second else ("mask", "offset")
    area = features[:, :, world_maps.channel(mask)].clamp(0, 1).sum((2, 3, 4))
    offset = features[:, :, world_maps.channel(away)].clamp(-0.99, 0.99)
    y, x = ((torch.arange(count, device=offset.device) + 0.5) * world_maps.CELL_PX for count in offset.shape[-2:])
    votes = torch.stack(torch.broadcast_tensors(x, y[:, None])) + world_maps.OFFSET_PX * torch.atanh(offset)
    weight = (1 - offset.square()) ** 2  # near cells tell best
    return (votes * weight).sum((-2, -1)) / weight.sum((-2, -1)), area


def steps(middles: Tensor, visible: Tensor) -> Tensor:
    """Movement [B, T - 1, 2] from frame to frame of middles [B, T, 2] px; NaN unless both are `visible` [B, T]."""
    span = torch.tensor([world_maps.WIDTH_PX, world_maps.HEIGHT_PX], device=middles.device) + 2 * world_maps.MARGIN_PX
    step = middles.diff(dim=1)
    step = torch.remainder(step + span / 2, span) - span / 2  # the short way round
    return torch.where((visible[:, 1:] & visible[:, :-1])[..., None], step, torch.nan)


def movement(middles: Tensor, visible: Tensor) -> Tensor:
    """Mean velocity [B, 2] in px a video frame, NaN for fewer than LEAST_STEPS visible steps; arguments of `steps`."""
    step = steps(middles, visible)
    enough = (~step.isnan()).sum(1) >= LEAST_STEPS
    return torch.where(enough, step.nanmean(dim=1), torch.nan) / FRAMES_PER_MAP


def bounces(height: Tensor) -> list[str | None]:
    """Speed of the bounce in vertical positions [B, T] px, counted downwards; None where there is none.

    Bounces of every speed and phase are fitted by least squares. The best one counts if it is about BOUNCE_PX high and
    leaves far less of the variance than a steady movement does.
    """
    time = torch.arange(height.shape[1], device=height.device) * float(FRAMES_PER_MAP)
    steady = torch.stack([torch.ones_like(time), time], dim=1)[None]
    rest = _residual(steady, height)[0][:, 0]
    phases = torch.arange(PHASES, device=height.device) / PHASES
    part = torch.remainder(time / torch.tensor(BOUNCE_FRAMES, device=time.device)[:, None, None] + phases[:, None], 1.0)
    bounce = (-4 * BOUNCE_PX * part * (1 - part)).flatten(0, 1)
    left, size = _residual(torch.stack([torch.ones_like(bounce), bounce], dim=-1), height)
    left, best = left.masked_fill((size < 0.5) | (size > 1.5), math.inf).min(dim=1)
    found = left < BOUNCE_SHARE * rest
    return [SPEEDS[i // PHASES] if yes else None for i, yes in zip(best.tolist(), found.tolist(), strict=True)]


def _residual(bases: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Square errors [B, K] of rows [B, T] fitted by each of K bases [K, T, 2], and weights of the second function."""
    weights = torch.linalg.pinv(bases) @ rows.T  # [K, 2, B]
    gap = (bases @ weights - rows.T).square().sum(1)
    return gap.T, weights[:, 1].T


def cameras(features: Tensor) -> list[str | None]:
    """Movement of the camera, by the turning of the scenery's angle; None with fewer than two frames."""
    if features.shape[1] < 2:
        return [None] * len(features)
    cosine, sine = features[:, :, world_maps.channel("scroll")].unbind(2)
    turn = torch.complex(cosine, sine)
    columns = (turn[:, 1:] * turn[:, :-1].conj()).sum((1, 2, 3))
    passed = columns.angle() * PERIOD_PX / (2 * math.pi) / FRAMES_PER_MAP
    return ["fixed" if abs(px) < PAN_PX / 2 else "left" if px < 0 else "right" for px in passed.tolist()]


def words(velocity: tuple[float, float], bounce: str | None = None) -> tuple[str | None, str | None]:
    """Direction and speed of a velocity in px a video frame; (None, None) for NaN. `bounce` is the speed of one."""
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
    """A reading of each video, from features [B, T, D, h, w]."""
    features = features.float()
    totals = features.mean((1, 3, 4))
    middles, area = path(features)
    visible = area > VISIBLE_CELLS
    velocity = movement(middles, visible).tolist()
    climb = steps(middles, visible)[..., 1].nan_to_num().cumsum(1)
    bouncing = bounces(torch.nn.functional.pad(climb, (1, 0)))

    def best(name: str, names: tuple[str, ...]) -> list[str]:
        scores = totals[:, world_maps.channel(name)][:, : len(names)]
        return [names[i] for i in scores.argmax(1).tolist()]

    relations = _relations(features, middles, totals)
    pairs = zip(relations, best("class2", SUBJECTS), best("colour2", COLOURS), strict=True)
    columns = [
        zip(best("class", SUBJECTS), best("colour", COLOURS), best("scene", SCENES), strict=True),
        [words((x, y), bounce) for (x, y), bounce in zip(velocity, bouncing, strict=True)],
        [(camera,) for camera in cameras(features)],
        [pair if pair[0] else (None, None, None) for pair in pairs],
    ]
    return [dict(zip(WORDS, chain(*parts), strict=True)) for parts in zip(*columns, strict=True)]


def _relations(features: Tensor, middles: Tensor, totals: Tensor) -> list[str | None]:
    """Place of the first subject as seen from the second; None where there is no second."""

    def relation(x: float, y: float) -> str:
        if abs(x) > abs(y):
            return "left of" if x > 0 else "right of"
        return "above" if y > 0 else "below"

    there = (totals[:, world_maps.channel("class2")].sum(1) > THERE).tolist()
    gaps = (path(features, second=True)[0] - middles).median(dim=1).values.tolist()
    return [relation(x, y) if yes else None for yes, (x, y) in zip(there, gaps, strict=True)]

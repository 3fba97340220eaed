"""Draws the world that preset `mini` learns: endless captioned videos of which everything is known.

A `Spec` is a batch of worlds. A frame is a function of its number, so any part of an endless video can be drawn.
Shapes: `B` worlds, `F` frames, `H` x `W` pixels, `h` x `w` points.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from engine.config import FRAMES_PER_LATENT
from engine.semantic.world_maps import HEIGHT_PX, MARGIN_PX, PAN_PX, WIDTH_PX
from engine.text.asked import SPEEDS
from engine.text.world_tables import TABLES
from engine.training.world import backdrop, subjects
from engine.training.world.captions import Label
from engine.training.world.spec import GAP_PX, STAY, STEP, Spec

START_X, START_Y = tuple(range(56, 144, 8)), tuple(range(40, 104, 8))  # px, middles of subjects in new videos
LOW_Y = (80, 88)  # the same of subjects that roll, sail or bounce
# Px by which a moving subject starts farther back, in the order of SPEEDS, so that the fastest is in sight for two
# chunks.
LEAD_X, LEAD_Y = (32, 32, 48), (24, 24, 40)
IN_SIGHT = (range(16, 184, 8), range(16, 120, 8))  # px, where a subject goes on if its prompt changes
# Cameras start in one of four places, each a quarter of the way between landmarks and a little more from the next, in
# whole steps of a pan, so that the scenery always passes by the same fractions of a pixel.
PAN_STARTS, PAN_START_PX = 4, 54 * PAN_PX
SIZE = 1.05  # of a single subject; 1 is as painted
PAIR_SIZE = 0.8  # of each of two subjects, relative to a single one


def sample(labels: list[Label], rng: random.Random) -> Spec:
    """Worlds that show `labels`; `rng` draws where subjects and cameras start, the same on every machine.

    Subjects start on a grid and cameras in one of few places, so that a rough plan tells their exact positions.
    """
    start = torch.tensor([[float(rng.choice(places)) for places in starts(label)] for label in labels])
    pan = torch.tensor([rng.randrange(PAN_STARTS) * PAN_START_PX for _ in labels])
    return Spec(tuple(labels), start, pan, bounce=torch.zeros(len(labels)))


def starts(label: Label) -> tuple[Sequence[float], Sequence[float]]:
    """Places in px, x and y, where the subject of a new video, or the middle of two, may start and stay in sight."""
    (step_x, step_y), speed = STEP.get(label.direction, STAY), SPEEDS.index(label.speed)
    low = label.direction == "bounce" or label.subject in ("car", "sailboat")
    high: Sequence[float] = (64 - LEAD_Y[speed] * step_y,) if step_y else LOW_Y if low else START_Y
    if label.relation == "above" and not step_y:
        high = tuple(y for y in high if 64 <= y <= 80)
    wide = [x - LEAD_X[speed] * step_x for x in START_X]
    if label.relation == "left of":
        half = GAP_PX["left of"][0] / 2
        wide = [x for x in wide if half <= x <= WIDTH_PX - half]
    return wide, high


def relabel(spec: Spec, labels: list[Label], frame: Tensor) -> Spec:
    """The worlds after a change of their prompts at `frame` [B]: other labels, the same cameras.

    A new subject begins at the start of a new video that is nearest to the old one; the same subject goes on from the
    nearest point of the grid. So subjects come into sight, and look as in new videos.
    """
    frame = frame - frame.remainder(FRAMES_PER_LATENT)
    here = centres(spec, frame[:, None])[:, 0] + spec.gap / 2
    start = here.clone()
    for row, (old, new) in enumerate(zip(spec.labels, labels, strict=True)):
        stays = old.subject == new.subject and new.direction != "bounce"
        for axis, places in enumerate(IN_SIGHT if stays else starts(new)):
            allowed = torch.tensor(places, dtype=here.dtype, device=here.device)
            start[row, axis] = allowed[(allowed - here[row, axis]).abs().argmin()]
    changed = replace(spec, labels=tuple(labels), start=start, pan=spec.pan * 0, bounce=frame)
    pan = spec.panned(frame[:, None])[:, 0] - changed.panned(frame[:, None])[:, 0]
    return replace(changed, start=start - changed.velocity * frame[:, None], pan=pan)


def centres(spec: Spec, frames: Tensor, second: bool = False) -> Tensor:
    """Middles [B, F, 2] of the first or the second subjects, in px, at frames [B, F]. Two leave the picture together.

    Without the height of a bounce, x of a single subject is in [-MARGIN_PX, WIDTH_PX + MARGIN_PX), y likewise.
    """
    half = spec.gap[:, None] / 2
    margin = MARGIN_PX + half
    span = torch.tensor([WIDTH_PX, HEIGHT_PX], device=frames.device) + 2 * margin
    free = spec.start[:, None] + spec.velocity[:, None] * frames[..., None]
    middle = torch.remainder(free + margin, span) - margin + (half if second else -half)
    return torch.stack([middle[..., 0], middle[..., 1] - spec.bounced(frames)], dim=-1)


def subject(
    spec: Spec, frames: Tensor, x: Tensor, y: Tensor, second: bool = False, pitch_px: float = 1.0
) -> subjects.Layer:
    """Alpha [F, h, w] and rgb [F, h, w, 3] of the first or second subject of 1 world, not premultiplied.

    `frames` [F] are numbers; `x`, `y` are px from the subject's middle, `pitch_px` apart, and broadcast to [F, h, w].
    """
    x, y, _ = torch.broadcast_tensors(x, y, frames[:, None, None])
    [label] = spec.labels
    name, colour = (label.subject2, label.colour2) if second else (label.subject, label.colour)
    assert name is not None and colour is not None
    size = SIZE * (PAIR_SIZE if label.relation else 1.0)
    facing = STEP.get(label.direction, STAY)[0] or 1.0
    beat = 6.2832 * frames[:, None, None] / subjects.BEAT_FRAMES.get(name, 8.0)
    rgb = torch.tensor(TABLES["colours"][colour], device=x.device)
    return subjects.paint(name, x * facing / size, y / size, rgb, beat, pitch_px)


def draw(spec: Spec, frames: Tensor, scale: int = 1) -> Tensor:
    """Pictures of frame numbers [B, F] in any order, whole or between two, on the spec's device.

    Returns:
        uint8 [B, F, 3, scale HEIGHT_PX, scale WIDTH_PX], drawn at that size.
    """
    frames = frames.float()
    video = torch.empty(*frames.shape, 3, scale * HEIGHT_PX, scale * WIDTH_PX, device=frames.device)
    for row, label in enumerate(spec.labels):
        one = spec.row(row)
        backdrop.draw(one, frames[row], video[row])
        # The second subject lies behind the first.
        for second in (True, False) if label.relation else (False,):
            (frame, i, j), alpha, rgb = stamp(one, frames[row], 1 / scale, second)
            at = (frame, slice(None), i, j)
            video[row][at] = torch.lerp(video[row][at], rgb, alpha[:, None])
    return video.mul_(255.0).add_(0.5).to(torch.uint8)


def stamp(
    spec: Spec, frames: Tensor, pitch_px: float, second: bool
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
    """The points of a grid over the picture that the first or second subject of 1 world covers.

    Args:
        frames: [F] frame numbers.
        pitch_px: distance of neighbouring points; the first lies half of it from the picture's corner.

    Returns:
        Frame, row and column of N points, [N] each; alpha [N] and rgb [N, 3], not premultiplied.
    """
    reach = int(subjects.HALF_WIDTH_PX * 1.15 / pitch_px) + 3
    middle = centres(spec, frames[None], second)[0]
    corner = (middle / pitch_px).floor().long() - reach
    span = torch.arange(2 * reach, device=frames.device)
    column = corner[:, 0, None, None] + span  # [F, 1, S]
    row = corner[:, 1, None, None] + span[:, None]  # [F, S, 1]
    dx = (column + 0.5) * pitch_px - middle[:, 0, None, None]
    dy = (row + 0.5) * pitch_px - middle[:, 1, None, None]
    alpha, rgb = subject(spec, frames, dx, dy, second, pitch_px)
    inside = (column >= 0) & (column < WIDTH_PX // pitch_px) & (row >= 0) & (row < HEIGHT_PX // pitch_px)
    frame, i, j = torch.nonzero(inside & (alpha > 1e-3), as_tuple=True)
    return (frame, row[frame, i, 0], column[frame, 0, j]), alpha[frame, i, j], rgb[frame, i, j]

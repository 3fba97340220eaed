"""The world that preset `mini` learns: endless captioned videos, drawn exactly, with everything about them known.

A `Spec` is a batch of worlds; a world is a function of the frame number, so any stretch of its endless video can be
drawn.
Shapes: `B` worlds, `F` frames, `H` x `W` pixels, `h` x `w` points.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from engine.config import FRAMES_PER_LATENT
from engine.training.world import backdrop, scenery, subjects
from engine.training.world.captions import SPEEDS, Label
from engine.training.world.spec import GAP_PX, PAN_PX, STAY, STEP, Spec

HEIGHT_PX, WIDTH_PX = scenery.HEIGHT_PX, scenery.WIDTH_PX
MARGIN_PX = 20.0  # a subject that leaves comes back on the other side this far outside the picture
START_X, START_Y = tuple(range(56, 144, 8)), tuple(range(40, 104, 8))  # px, of the subjects' middles
LOW_Y = (80, 88)  # where what rolls, sails or bounces starts
# How far behind these places one starts that moves, in the order of SPEEDS, so that the fastest too is in sight for two
# hops.
LEAD_X, LEAD_Y = (32, 32, 48), (24, 24, 40)
IN_SIGHT = (range(16, 184, 8), range(16, 120, 8))  # px, where a subject goes on that stays
# How many places a camera may start from, each a quarter of the way between landmarks and some farther than the next,
# in whole steps of a pan, so that scenery passes by the same fractions of a pixel for ever.
PAN_STARTS, PAN_START_PX = 4, 54 * PAN_PX
SIZE = 1.05  # of a lone subject, 1 = as painted
PAIR_SIZE = 0.8  # of subjects that are two

SUBJECT_RGB = {
    "red": (0.88, 0.10, 0.12),
    "yellow": (1.00, 0.84, 0.08),
    "green": (0.02, 0.56, 0.26),
    "blue": (0.12, 0.22, 0.85),
    "purple": (0.52, 0.12, 0.72),
    "white": (0.97, 0.97, 0.98),
    "orange": (1.00, 0.48, 0.03),
    "pink": (1.00, 0.50, 0.74),
}


def sample(labels: list[Label], rng: random.Random) -> Spec:
    """Worlds that show `labels`, seen from where and begun where `rng` says; the same on every machine.

    Subjects start on a grid, and cameras in one of few places that the feature maps tell apart: what a plan says
    roughly is then known exactly.
    """
    start = torch.tensor([[float(rng.choice(places)) for places in starts(label)] for label in labels])
    pan = torch.tensor([rng.randrange(PAN_STARTS) * PAN_START_PX for _ in labels])
    return Spec(tuple(labels), start, pan, hop=torch.zeros(len(labels)))


def starts(label: Label) -> tuple[Sequence[float], Sequence[float]]:
    """Px where the subject of a new video may be, or the middle of two: in sight, and for some seconds from there."""
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
    """What the worlds become when their prompts change at `frame` [B]: other labels under the same cameras.

    Another subject begins at that start of a new video which is nearest to the one before it; the same one goes on from
    where it is, to the next point of the grid. So subjects come into sight, and look as they do in new videos.
    """
    frame = frame - frame.remainder(FRAMES_PER_LATENT)
    here = centres(spec, frame[:, None])[:, 0] + spec.gap / 2
    start = here.clone()
    for row, (old, new) in enumerate(zip(spec.labels, labels, strict=True)):
        stays = old.subject == new.subject and new.direction != "bounce"
        for axis, places in enumerate(IN_SIGHT if stays else starts(new)):
            allowed = torch.tensor(places, dtype=here.dtype, device=here.device)
            start[row, axis] = allowed[(allowed - here[row, axis]).abs().argmin()]
    changed = replace(spec, labels=tuple(labels), start=start, pan=spec.pan * 0, hop=frame)
    pan = spec.panned(frame[:, None])[:, 0] - changed.panned(frame[:, None])[:, 0]
    return replace(changed, start=start - changed.velocity * frame[:, None], pan=pan)


def centres(spec: Spec, frames: Tensor, second: bool = False) -> Tensor:
    """Middle of each subject, or of each `second` one. Two leave the picture together.

    Args:
        spec: B worlds.
        frames: [B, F] frame numbers.

    Returns:
        [B, F, 2] px; of a lone subject x in [-MARGIN_PX, WIDTH_PX + MARGIN_PX), y likewise with HEIGHT_PX, but for
        what a bounce is up.
    """
    half = spec.gap[:, None] / 2
    margin = MARGIN_PX + half
    span = torch.tensor([WIDTH_PX, HEIGHT_PX], device=frames.device) + 2 * margin
    free = spec.start[:, None] + spec.velocity[:, None] * frames[..., None]
    middle = torch.remainder(free + margin, span) - margin + (half if second else -half)
    return torch.stack([middle[..., 0], middle[..., 1] - spec.hopped(frames)], dim=-1)


def subject(spec: Spec, row: int, frames: Tensor, x: Tensor, y: Tensor, second: bool = False) -> tuple[Tensor, Tensor]:
    """Alpha and rgb of world `row`'s subject, or of its `second`.

    Args:
        frames: [F] frame numbers.
        x, y: px from its middle; together they broadcast to [F, h, w].

    Returns:
        alpha [F, h, w] and rgb [F, h, w, 3], not premultiplied.
    """
    x, y, _ = torch.broadcast_tensors(x, y, frames[:, None, None])
    label = spec.labels[row]
    name, colour = (label.subject2, label.colour2) if second else (label.subject, label.colour)
    assert name is not None and colour is not None
    size = SIZE * (PAIR_SIZE if label.relation else 1.0)
    facing = STEP.get(label.direction, STAY)[0] or 1.0
    beat = 6.2832 * frames[:, None, None] / subjects.BEAT_FRAMES.get(name, 8.0)
    rgb = torch.tensor(SUBJECT_RGB[colour], device=x.device)
    return subjects.paint(name, x * facing / size, y / size, rgb, beat)


def draw(spec: Spec, frames: Tensor) -> Tensor:
    """Pictures of the worlds.

    Args:
        spec: B worlds.
        frames: [B, F] frame numbers, any order, on the spec's device.

    Returns:
        uint8 [B, F, 3, HEIGHT_PX, WIDTH_PX].
    """
    frames = frames.float()
    video = torch.empty(*frames.shape, 3, HEIGHT_PX, WIDTH_PX, device=frames.device)
    for row in range(len(spec)):
        backdrop.draw(spec.row(row), frames[row], video[row])
    _stamp(spec, frames, video, second=True)
    _stamp(spec, frames, video, second=False)
    return video.mul_(255.0).add_(0.5).to(torch.uint8)


def _stamp(spec: Spec, frames: Tensor, video: Tensor, second: bool) -> None:
    """Draw the first or the second subjects into `video` [B, F, 3, H, W] in place, each only in its square."""
    for row, label in enumerate(spec.labels):
        if label.relation or not second:
            (frame, i, j), alpha, rgb = stamp(spec.row(row), frames[row], 1, second)
            at = (frame, slice(None), i, j)
            video[row][at] = torch.lerp(video[row][at], rgb, alpha[:, None])


def stamp(
    spec: Spec, frames: Tensor, pitch_px: int, second: bool
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
    """The points of a grid over the picture that a subject covers, found in the square around it.

    Args:
        spec: 1 world.
        frames: [F] frame numbers.
        pitch_px: from one point to the next; the first is half of it from the picture's corner.
        second: whether the second subject is meant.

    Returns:
        Of N points their frame, row and column [N] each, alpha [N] and rgb [N, 3], not premultiplied.
    """
    reach = int(subjects.HALF_WIDTH_PX * 1.15 / pitch_px) + 3
    middle = centres(spec, frames[None], second)[0]
    corner = (middle / pitch_px).floor().long() - reach
    span = torch.arange(2 * reach, device=frames.device)
    column = corner[:, 0, None, None] + span  # [F, 1, S]
    row = corner[:, 1, None, None] + span[:, None]  # [F, S, 1]
    dx = (column + 0.5) * pitch_px - middle[:, 0, None, None]
    dy = (row + 0.5) * pitch_px - middle[:, 1, None, None]
    alpha, rgb = subject(spec, 0, frames, dx, dy, second)
    inside = (column >= 0) & (column < WIDTH_PX // pitch_px) & (row >= 0) & (row < HEIGHT_PX // pitch_px)
    frame, i, j = torch.nonzero(inside & (alpha > 1e-3), as_tuple=True)
    return (frame, row[frame, i, 0], column[frame, 0, j]), alpha[frame, i, j], rgb[frame, i, j]

"""The world that preset `mini` learns: endless captioned videos, drawn exactly, with everything about them known.

A `Spec` is a batch of worlds; a world is a function of the frame number, so any stretch of its endless video can be
drawn.
Shapes: `B` worlds, `F` frames, `H` x `W` pixels, `h` x `w` points.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.training import subjects
from engine.training.captions import SPEEDS, Label

HEIGHT_PX, WIDTH_PX = 128, 192
MARGIN_PX = 20.0  # a subject that leaves comes back on the other side this far outside the picture
HORIZON_PX = 80.0
SPEED_PX = (0.6, 1.1, 1.9)  # per frame, in the order of SPEEDS
BOB_PX, BOB_FRAMES = 1.5, 24.0
CLOUDS = 3
PUFFS = ((-9.0, 1.0, 9.0), (0.0, -3.0, 11.0), (10.0, 1.0, 9.0))  # x, y, radius of a cloud's parts
STARS = torch.rand(30, 3, generator=torch.Generator().manual_seed(7)) * torch.tensor([192.0, 62.0, 0.8])

SUBJECT_RGB = {
    "red": (0.88, 0.10, 0.12),
    "yellow": (1.00, 0.84, 0.08),
    "green": (0.02, 0.56, 0.26),
    "blue": (0.12, 0.22, 0.85),
    "purple": (0.56, 0.14, 0.74),
    "white": (0.97, 0.97, 0.98),
}
# sky top, sky at the horizon, far ridge, ground at the horizon, ground at the bottom, sun or moon, cloud
SCENE_RGB = {
    "hills": ((0.35, 0.62, 0.93), (0.82, 0.92, 0.99), (0.47, 0.68, 0.52), (0.60, 0.76, 0.36), (0.34, 0.55, 0.22),
              (1.00, 0.97, 0.80), (1.00, 1.00, 1.00)),
    "desert": ((0.90, 0.50, 0.36), (1.00, 0.87, 0.62), (0.84, 0.60, 0.42), (0.90, 0.73, 0.48), (0.66, 0.44, 0.28),
               (1.00, 0.96, 0.76), (1.00, 0.80, 0.68)),
    "sea": ((0.50, 0.75, 0.95), (0.88, 0.95, 0.99), (0.50, 0.66, 0.78), (0.25, 0.57, 0.74), (0.06, 0.28, 0.50),
            (1.00, 0.98, 0.86), (1.00, 1.00, 1.00)),
    "night": ((0.03, 0.04, 0.15), (0.19, 0.17, 0.40), (0.12, 0.13, 0.26), (0.09, 0.13, 0.18), (0.03, 0.05, 0.08),
              (0.96, 0.95, 0.84), (0.30, 0.30, 0.48)),
}  # fmt: skip
RIDGE_PX = {"hills": 7.0, "desert": 6.0, "sea": 0.0, "night": 6.0}
RIPPLE = {"hills": 0.015, "desert": 0.02, "sea": 0.05, "night": 0.008}
STEP = {"still": (0.0, 0.0), "left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}


@dataclass(frozen=True, slots=True)
class Spec:
    """A batch of worlds. `labels` say what is seen; the tensors, all on one device, say where."""

    labels: tuple[Label, ...]
    start: Tensor  # [B, 2] px, x and y of the subject at frame 0
    facing: Tensor  # [B] 1 right, -1 left
    size: Tensor  # [B] 1 = as painted
    ridges: Tensor  # [B, 2, 4] far and near: two phases, two wave numbers per picture width
    sun: Tensor  # [B, 2] px
    clouds: Tensor  # [B, CLOUDS, 3] x, y at frame 0 in px, drift in px a frame

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Spec:
        names = ("start", "facing", "size", "ridges", "sun", "clouds")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    @property
    def velocity(self) -> Tensor:
        """[B, 2] px a frame."""
        rows = [[step * SPEED_PX[SPEEDS.index(label.speed)] for step in STEP[label.direction]] for label in self.labels]
        return torch.tensor(rows, device=self.start.device)


def sample(labels: list[Label], rng: random.Random) -> Spec:
    """Worlds that show `labels`, all else drawn from `rng`; the same on every machine."""
    generator = torch.Generator().manual_seed(rng.getrandbits(63))

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    count = len(labels)
    start = torch.stack([uniform(count, low=60, high=132), uniform(count, low=34, high=96)], dim=1)
    facing = torch.where(uniform(count) < 0.5, -1.0, 1.0)
    for row, label in enumerate(labels):
        step_x, step_y = STEP[label.direction]
        start[row, 0] -= 32 * step_x
        if step_y:
            start[row, 1] = 64 - 26 * step_y
        elif label.subject in ("car", "sailboat"):
            start[row, 1] = start[row, 1] * 0.2 + 74
        if step_x:
            facing[row] = step_x
    ridges = torch.cat([uniform(count, 2, 2, high=6.2832), uniform(count, 2, 2, low=0.7, high=2.2)], dim=2)
    sun = torch.stack([uniform(count, low=20, high=172), uniform(count, low=16, high=34)], dim=1)
    place = uniform(count, CLOUDS, 2) * torch.tensor([252.0, 38.0]) + torch.tensor([0.0, 10.0])
    clouds = torch.cat([place, uniform(count, CLOUDS, 1, low=0.1, high=0.3)], dim=2)
    return Spec(tuple(labels), start, facing, uniform(count, low=0.95, high=1.15), ridges, sun, clouds)


def relabel(spec: Spec, labels: list[Label], frame: Tensor) -> Spec:
    """The same worlds under other labels, every subject going on from where it is at `frame` [B]."""
    here = centres(spec, frame[:, None])[:, 0]
    changed = replace(spec, labels=tuple(labels))
    facing = spec.facing.clone()
    for row, label in enumerate(labels):
        if STEP[label.direction][0]:
            facing[row] = STEP[label.direction][0]
    return replace(changed, start=here - changed.velocity * frame[:, None], facing=facing)


def centres(spec: Spec, frames: Tensor) -> Tensor:
    """Middle of each subject without its bobbing.

    Args:
        spec: B worlds.
        frames: [B, F] frame numbers.

    Returns:
        [B, F, 2] px; x in [-MARGIN_PX, WIDTH_PX + MARGIN_PX), y likewise with HEIGHT_PX.
    """
    span = torch.tensor([WIDTH_PX, HEIGHT_PX], device=frames.device) + 2 * MARGIN_PX
    free = spec.start[:, None] + spec.velocity[:, None] * frames[..., None]
    return torch.remainder(free + MARGIN_PX, span) - MARGIN_PX


def _per_scene(spec: Spec, table: dict[str, float]) -> Tensor:
    return torch.tensor([table[label.scene] for label in spec.labels], device=spec.start.device)


def _palette(spec: Spec) -> list[Tensor]:
    """Seven tensors [B, 3, 1, 1] in the order of SCENE_RGB."""
    table = torch.tensor([SCENE_RGB[label.scene] for label in spec.labels], device=spec.start.device)
    return [table[:, i, :, None, None] for i in range(table.shape[1])]


def ridge_alpha(spec: Spec, x: Tensor, y: Tensor, layer: int, base_px: float) -> Tensor:
    """Coverage [B, h, w] of everything below one ridge."""
    phase, waves = spec.ridges[:, layer, :2], spec.ridges[:, layer, 2:]
    angle = 6.2832 * waves[:, :, None] * x / WIDTH_PX + phase[:, :, None]
    line = base_px - _per_scene(spec, RIDGE_PX)[:, None] * (angle[:, 0].sin() + 0.5 * angle[:, 1].sin())
    return torch.sigmoid((y[None, :, None] - line[:, None, :]) * 2.0)


def cloud_alpha(spec: Spec, frames: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Coverage [B, F, h, w] of the drifting clouds; each puff is a product of a row and a column."""
    puffs = torch.tensor(PUFFS, device=x.device)
    span = WIDTH_PX + 60.0
    drift = spec.clouds[:, None, :, 0] + spec.clouds[:, None, :, 2] * frames[..., None]
    middle_x = (torch.remainder(drift, span) - 30.0)[..., None] + puffs[:, 0]  # [B, F, CLOUDS, puffs]
    middle_y = spec.clouds[:, :, 1, None] + puffs[:, 1]  # [B, CLOUDS, puffs]
    columns = torch.exp(-(((x - middle_x.flatten(2)[..., None]) / puffs[:, 2].repeat(CLOUDS)[:, None]) ** 2))
    rows = torch.exp(-(((y - middle_y.flatten(1)[..., None]) / (0.45 * puffs[:, 2].repeat(CLOUDS)[:, None])) ** 2))
    density = torch.einsum("bfpx,bpy->bfyx", columns, rows)
    return 0.85 * torch.sigmoid((density - 0.55) * 9.0)


def glow(spec: Spec, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Sun or moon: its disc and the shine around it, [B, h, w] each."""
    dx, dy = x - spec.sun[:, 0, None], y - spec.sun[:, 1, None]
    square = dx[:, None, :] ** 2 + dy[:, :, None] ** 2
    return torch.sigmoid(9.0 - square.sqrt()), torch.exp(-square / 900.0)


def _sky(spec: Spec, x: Tensor, y: Tensor) -> Tensor:
    """[B, 3, h, w]"""
    top, low, _, _, _, light, _ = _palette(spec)
    sky = torch.lerp(top, low, (y / HORIZON_PX).clamp(0, 1)[:, None])
    disc, shine = glow(spec, x, y)
    sky = torch.lerp(sky, light, 0.35 * shine[:, None])
    night = torch.tensor([label.scene == "night" for label in spec.labels], device=x.device)
    stars = STARS.to(x.device)
    columns = torch.exp(-((x - stars[:, 0, None]) ** 2) / 2.0)
    rows = torch.exp(-((y - stars[:, 1, None]) ** 2) / 2.0) * (0.2 + stars[:, 2, None])
    constellation = (rows.T @ columns) * night[:, None, None]
    return torch.lerp((sky + 0.6 * constellation[:, None]).clamp(0, 1), light, disc[:, None])


def _ground(spec: Spec, frames: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Colour of the nearest ground with its ripples, [B, F, 3, h, w]."""
    _, _, _, near, bottom, _, _ = _palette(spec)
    depth = ((y - HORIZON_PX) / (HEIGHT_PX - HORIZON_PX)).clamp(0, 1)
    ground = torch.lerp(near, bottom, depth[:, None])
    wave_y = 26.0 / (0.35 + depth)  # waves look closer together near the horizon
    moving = torch.tensor([float(label.scene == "sea") for label in spec.labels], device=x.device)
    # Worlds without waves need only one frame's ground.
    time = (frames * moving[:, None] if moving.any() else frames[:, :1] * 0)[..., None, None]
    pattern = torch.sin(wave_y[:, None] + 0.07 * x + 0.26 * time) + torch.sin(
        1.7 * wave_y[:, None] - 0.11 * x + 1.0 + 0.20 * time
    )
    ripple = pattern * (depth + 0.25)[:, None] * _per_scene(spec, RIPPLE)[:, None, None, None]
    return (ground[:, None] + ripple[:, :, None]).clamp(0, 1)


def subject(spec: Spec, row: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Alpha [...] and rgb [..., 3] of world `row`'s subject at points `x`, `y` px from its middle, which broadcast."""
    x, y = torch.broadcast_tensors(x, y)
    label = spec.labels[row]
    rgb = torch.tensor(SUBJECT_RGB[label.colour], device=x.device)
    size = spec.size[row]
    return subjects.paint(label.subject, x * spec.facing[row] / size, y / size, rgb)


def bobbing_centres(spec: Spec, frames: Tensor) -> Tensor:
    bobs = torch.tensor([float(label.subject != "car") for label in spec.labels], device=frames.device)
    middle = centres(spec, frames)
    wave = BOB_PX * bobs[:, None] * torch.sin(6.2832 * frames / BOB_FRAMES + spec.ridges[:, 0, 0, None])
    return torch.stack([middle[..., 0], middle[..., 1] + wave], dim=-1)


def draw(spec: Spec, frames: Tensor) -> Tensor:
    """Pictures of the worlds.

    Args:
        spec: B worlds.
        frames: [B, F] frame numbers, any order, on the spec's device.

    Returns:
        uint8 [B, F, 3, HEIGHT_PX, WIDTH_PX].
    """
    device = frames.device
    frames = frames.float()
    x, y = torch.arange(WIDTH_PX, device=device) + 0.5, torch.arange(HEIGHT_PX, device=device) + 0.5
    palette = _palette(spec)
    video = _sky(spec, x, y)[:, None].repeat(1, frames.shape[1], 1, 1, 1)
    low = int(HORIZON_PX) - 24  # no cloud reaches below it, no ridge above it
    alpha = cloud_alpha(spec, frames, x, y[: low + 8])
    video[..., : low + 8, :] = torch.lerp(video[..., : low + 8, :], palette[6][:, None], alpha[:, :, None])
    far = ridge_alpha(spec, x, y[low:], 0, HORIZON_PX - 6.0)[:, None, None]
    near = ridge_alpha(spec, x, y[low:], 1, HORIZON_PX + 4.0)[:, None, None]
    below = torch.lerp(video[..., low:, :], palette[2][:, None], far)
    video[..., low:, :] = torch.lerp(below, _ground(spec, frames, x, y[low:]), near)
    _stamp(spec, frames, video)
    return (video * 255.0 + 0.5).to(torch.uint8)


def _stamp(spec: Spec, frames: Tensor, video: Tensor) -> None:
    """Draw the subjects into `video` [B, F, 3, H, W] in place, each only in the square around it."""
    reach = int(subjects.HALF_WIDTH_PX * 1.15) + 3
    middle = bobbing_centres(spec, frames)
    corner = middle.floor().long() - reach
    span = torch.arange(2 * reach, device=frames.device)
    for row in range(len(spec)):
        pixel_x = corner[row, :, 0, None, None] + span  # [F, 1, S]
        pixel_y = corner[row, :, 1, None, None] + span[:, None]  # [F, S, 1]
        dx = pixel_x + 0.5 - middle[row, :, 0, None, None]
        dy = pixel_y + 0.5 - middle[row, :, 1, None, None]
        alpha, rgb = subject(spec, row, dx, dy)
        inside = (pixel_x >= 0) & (pixel_x < WIDTH_PX) & (pixel_y >= 0) & (pixel_y < HEIGHT_PX)
        frame, i, j = torch.nonzero(inside & (alpha > 1e-3), as_tuple=True)
        at = (frame, slice(None), pixel_y[frame, i, 0], pixel_x[frame, 0, j])
        weight = alpha[frame, i, j][:, None]
        video[row][at] = torch.lerp(video[row][at], rgb[frame, i, j], weight)

"""The places of the drawn world: sky, far ridge, ground and landmarks, and how fast each passes a panning camera.

Nearer things pass faster: far ridges and clouds at FAR_SHARE of the landmarks' speed, rows of the ground in between.
Shapes: `B` worlds, `F` frames, `h` rows, `C` or `w` columns. Layers are alpha [h, C] and rgb [h, C, 3], not
premultiplied. `ridges` [..., 4] are two phases and two wave numbers, `seed` [...] int64 keys what is hashed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from engine.semantic.world_maps import HEIGHT_PX, WIDTH_PX
from engine.text.world_tables import TABLES
from engine.training.world import landmarks
from engine.training.world.landmarks import chance
from engine.training.world.subjects import Layer, coverage

Rgb = tuple[float, float, float]

TURN = 6.2832
FAR_SHARE, EDGE_SHARE = 1 / 6, 1 / 3  # speed of the far ridge and of the ground's far edge, of the landmarks' speed
HOUSE_PX, HOUSE_LOW_PX, HOUSE_HIGH_PX = 20.0, 14.0, 46.0
WINDOW_PX = (5.0, 6.0)  # from one window to the next, across and down
LIT_SHARE, LIT_RGB, HOUSE_RGB = 0.42, (0.98, 0.82, 0.45), (0.20, 0.20, 0.36)
CLOUDS, DRIFT_PX = 3, 0.25  # how many, and their drift per frame
CLOUD_SPAN_PX = WIDTH_PX + 60.0  # from where a cloud leaves to where the next one comes
HAZE_PX = 26.0  # below its top a far ridge fades into the sky's lower colour


@dataclass(frozen=True, slots=True)
class Place:
    """Colours of a scene, and heights in px from the top of the picture."""

    sky: tuple[Rgb, Rgb]  # at the top, and at `near_px`
    far: Rgb
    ground: tuple[Rgb, Rgb]  # at its far edge, at the bottom
    light: Rgb  # sun or moon
    cloud: Rgb
    far_px: float  # middle of the far ridge
    far_wave_px: float
    near_px: float  # middle of the ground's far edge
    near_wave_px: float
    foot_px: float  # where landmarks stand
    ripple: float  # contrast of the ground's pattern
    seed: int  # of what stands where
    shape: str = "waves"  # of the far ridge: waves, mesas, peaks or houses
    clouds: float = 0.85  # their coverage
    sun_px: float = 9.0  # radius
    low_sun_px: float = 0.0  # how much deeper it stands
    top_px: int = 48  # no ridge and no landmark reaches above it


PLACES = {name: Place(**fields) for name, fields in TABLES["places"].items()}


@dataclass(frozen=True, slots=True)
class Layouts:
    """Positions in B places. They are the same in all videos, so that a small model can learn them."""

    ridges: Tensor  # [B, 2, 4] far and near: two phases, two wave numbers per picture width
    sun: Tensor  # [B, 2] px
    clouds: Tensor  # [B, CLOUDS] x at frame 0 in px
    seed: Tensor  # [B] int64, of what is hashed: landmarks, houses, heights of clouds


@lru_cache(256)
def layouts(scenes: tuple[str, ...], device: torch.device) -> Layouts:
    """The layouts of B keys of `PLACES`."""
    seeds = [PLACES[scene].seed for scene in scenes]
    numbers = torch.stack([torch.rand(11, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    phases, waves = numbers[:, :4].view(-1, 2, 2) * TURN, numbers[:, 4:8].view(-1, 2, 2) * 1.5 + 0.7
    sun = numbers[:, 8:10] * torch.tensor([152.0, 18.0]) + torch.tensor([20.0, 16.0])
    start = (numbers[:, 10:11] + torch.arange(CLOUDS) / CLOUDS) * CLOUD_SPAN_PX
    made = torch.cat([phases, waves], dim=2), sun, start, torch.tensor(seeds)
    return Layouts(*(one.to(device) for one in made))


def far_line(scenes: Sequence[str], ridges: Tensor, seed: Tensor, x: Tensor) -> Tensor:
    """Heights [B, F, C] of the far ridges, in px from the top of the picture, at `x` [B, F, C] px of scenery."""
    one, two = _angles(ridges, x)
    bend = one.sin() + 0.5 * two.sin()
    mesas, peaks, houses = (each(x, scenes, "shape", shape) for shape in ("mesas", "peaks", "houses"))
    bend = torch.where(mesas, (3 * bend).clamp(-1, 1) + 0.1 * two.sin(), bend)
    bend = torch.where(peaks, 1.4 - 1.6 * (one / 2).sin().abs() - (1.3 * two).sin().abs(), bend)
    middle = each(x, scenes, "far_px")
    tall = chance(seed[:, None, None], (x / HOUSE_PX).floor().long(), 4)
    height = HOUSE_LOW_PX + (HOUSE_HIGH_PX - HOUSE_LOW_PX) * tall
    return torch.where(houses, middle - height, middle - each(x, scenes, "far_wave_px") * bend)


def near_line(scenes: Sequence[str], ridges: Tensor, x: Tensor) -> Tensor:
    """Height of the ground's far edge; arguments and result as for `far_line`."""
    one, two = _angles(ridges, x)
    return each(x, scenes, "near_px") - each(x, scenes, "near_wave_px") * (one.sin() + 0.5 * two.sin())


def each(like: Tensor, scenes: Sequence[str], name: str, wanted: str | None = None) -> Tensor:
    """A field of B places as [B, 1, 1]; with `wanted`, whether it is that."""
    values = [getattr(PLACES[scene], name) for scene in scenes]
    return torch.tensor([value == wanted for value in values] if wanted else values, device=like.device)[:, None, None]


def _angles(ridges: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    angle = TURN / WIDTH_PX * ridges[:, 2:, None, None] * x[:, None] + ridges[:, :2, None, None]
    return angle[:, 0], angle[:, 1]


def below(line: Tensor, y: Tensor, pitch_px: float = 1.0) -> Tensor:
    """Coverage [..., h, C] of everything below a line [..., C], its edge as wide as for points of 1 px or closer."""
    return torch.sigmoid((y[:, None] - line[..., None, :]) * (2.0 / min(1.0, pitch_px)))


def far(scene: str, ridges: Tensor, seed: Tensor, x: Tensor, y: Tensor, pitch_px: float) -> Layer:
    """The far ridge of one world, at `x` [C] px of scenery and `y` [h] px of the picture, `pitch_px` apart."""
    place = PLACES[scene]
    line = far_line([scene], ridges[None], seed[None], x[None, None])[0, 0]
    rgb, low = x.new_tensor(place.far), x.new_tensor(place.sky[1])
    if place.shape == "houses":
        return _houses(seed, x, y, line, rgb, pitch_px)
    haze = ((y[:, None] - line) / HAZE_PX).clamp(0, 1).unsqueeze(-1)
    return below(line, y, pitch_px), torch.lerp(rgb, low, 0.55 * haze)


def _houses(seed: Tensor, x: Tensor, y: Tensor, line: Tensor, rgb: Tensor, pitch_px: float) -> Layer:
    number = (x / HOUSE_PX).floor().long()
    across = torch.remainder(x, HOUSE_PX)
    wall = coverage((across - HOUSE_PX / 2).abs() - HOUSE_PX / 2 + 0.3, pitch_px)
    alpha = below(line, y, pitch_px) * torch.maximum(wall, (y[:, None] > PLACES["night"].far_px - HOUSE_LOW_PX).float())
    column, row = (across / WINDOW_PX[0]).floor().long(), ((y[:, None] - line) / WINDOW_PX[1]).floor().long()
    lit = chance(seed, number * 64 + column * 16 + row, 5) < LIT_SHARE
    left = torch.remainder(across, WINDOW_PX[0]) - WINDOW_PX[0] / 2
    down = torch.remainder(y[:, None] - line, WINDOW_PX[1]) - WINDOW_PX[1] / 2
    window = coverage(left.abs() - 1.3, pitch_px) * coverage(down.abs() - 1.7, pitch_px) * lit * (row >= 0)
    tone = chance(seed, number, 6)[None, :, None]
    return alpha, torch.lerp(torch.lerp(rgb, x.new_tensor(HOUSE_RGB), tone), x.new_tensor(LIT_RGB), window[..., None])


def ground(scene: str, x: Tensor, y: Tensor, pan: Tensor, frames: Tensor) -> Tensor:
    """Colour of the ground [F, 3, h, w] in 0..1, at `x` [w] and `y` [h] px of the picture.

    `pan` [F] are the px that landmarks have passed, `frames` [F] frame numbers, with which only the sea's waves move.
    """
    place = PLACES[scene]
    depth = ((y - place.near_px) / (HEIGHT_PX - place.near_px)).clamp(0, 1)
    edge, bottom = (x.new_tensor(rgb)[:, None] for rgb in place.ground)
    base = torch.lerp(edge, bottom, depth)  # [3, h]
    speed = EDGE_SHARE + (1 - EDGE_SHARE) * (y - place.near_px) / (place.foot_px - place.near_px)
    across = x + (pan[:, None] * speed)[..., None]  # [F, h, w]
    wave_y = (26.0 / (0.35 + depth))[:, None]  # waves look closer together near the far edge
    time = (frames if scene == "sea" else torch.zeros_like(frames))[:, None, None]
    waves = (wave_y + 0.07 * across + TURN / 24 * time, 1.7 * wave_y - 0.11 * across + 1.0 + TURN / 32 * time)
    pattern = waves[0].sin() + waves[1].sin()
    return (base[..., None] + (place.ripple * (depth + 0.25)[:, None] * pattern)[:, None]).clamp(0, 1)


def nearby(scene: str, seed: Tensor, x: Tensor, y: Tensor, pitch_px: float = 1.0) -> Layer:
    """The landmarks of one world; arguments as for `far`."""
    return landmarks.paint(scene, seed, x, y - PLACES[scene].foot_px, pitch_px)

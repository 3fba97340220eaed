"""The places of the drawn world: what lies behind its subjects, and how it passes when the camera pans.

A place has a sky, a far ridge, ground and landmarks on it. The camera moves the faster past what is nearer: far ridges
at FAR_SHARE of the landmarks' speed, the ground by its rows in between and beyond. Clouds move as far ridges do.
Shapes: `B` worlds, `F` frames, `h` rows, `C` or `w` columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from engine.training.world import landmarks
from engine.training.world.landmarks import chance
from engine.training.world.subjects import Layer, coverage

Rgb = tuple[float, float, float]

HEIGHT_PX, WIDTH_PX = 128, 192  # of the picture
TURN = 6.2832
FAR_SHARE, EDGE_SHARE = 1 / 6, 1 / 3  # speeds of the far ridge and of the ground's far edge, over the landmarks'
HOUSE_PX, HOUSE_LOW_PX, HOUSE_HIGH_PX = 20.0, 14.0, 46.0
WINDOW_PX = (5.0, 6.0)  # from one window to the next, across and down
LIT_SHARE, LIT_RGB, HOUSE_RGB = 0.42, (0.98, 0.82, 0.45), (0.20, 0.20, 0.36)
CLOUDS, DRIFT_PX = 3, 0.25  # how many, and their drift per frame
CLOUD_SPAN_PX = WIDTH_PX + 60.0  # from where a cloud leaves to where the next one comes
HAZE_PX = 26.0  # below its top a far ridge fades into the sky's lower colour


@dataclass(frozen=True, slots=True)
class Place:
    """Colours and heights of a scene. Heights are in px from the top of the picture."""

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


PLACES = {
    "hills": Place(
        ((0.30, 0.58, 0.93), (0.84, 0.93, 0.99)), (0.36, 0.56, 0.60), ((0.62, 0.78, 0.36), (0.30, 0.54, 0.20)),
        (1.00, 0.97, 0.80), (1.00, 1.00, 1.00), 72.0, 8.0, 84.0, 5.0, 99.0, 0.02, 3,
    ),
    "desert": Place(
        ((0.36, 0.66, 0.90), (0.98, 0.94, 0.82)), (0.76, 0.47, 0.33), ((0.95, 0.80, 0.54), (0.80, 0.57, 0.33)),
        (1.00, 0.98, 0.86), (1.00, 0.98, 0.95), 76.0, 9.0, 85.0, 4.0, 102.0, 0.022, 5, shape="mesas", clouds=0.4,
    ),
    "sea": Place(
        ((0.42, 0.70, 0.95), (0.90, 0.96, 0.99)), (0.45, 0.60, 0.66), ((0.30, 0.62, 0.76), (0.04, 0.26, 0.50)),
        (1.00, 0.98, 0.86), (1.00, 1.00, 1.00), 84.0, 7.0, 80.0, 0.0, 97.0, 0.05, 2,
    ),
    "night": Place(
        ((0.02, 0.03, 0.13), (0.25, 0.20, 0.44)), (0.10, 0.10, 0.22), ((0.15, 0.15, 0.24), (0.08, 0.08, 0.14)),
        (0.96, 0.95, 0.84), (0.30, 0.30, 0.48), 92.0, 0.0, 90.0, 0.0, 110.0, 0.01, 6, shape="houses", clouds=0.6,
        top_px=44,
    ),
    "sunset": Place(
        ((0.26, 0.20, 0.48), (1.00, 0.66, 0.42)), (0.42, 0.26, 0.48), ((0.36, 0.25, 0.36), (0.15, 0.11, 0.21)),
        (1.00, 0.88, 0.58), (0.97, 0.56, 0.52), 74.0, 13.0, 87.0, 4.0, 101.0, 0.014, 0, shape="peaks", sun_px=14.0,
        low_sun_px=33.0,
    ),
    "underwater": Place(
        ((0.30, 0.76, 0.84), (0.03, 0.25, 0.46)), (0.07, 0.36, 0.50), ((0.50, 0.62, 0.56), (0.80, 0.76, 0.56)),
        (0.80, 0.98, 0.98), (1.00, 1.00, 1.00), 88.0, 10.0, 102.0, 3.0, 116.0, 0.04, 0, clouds=0.0, sun_px=-9.0,
        top_px=64,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layouts:
    """What stands where in B places: the same in all videos, so that it can be known and drawn sharply."""

    ridges: Tensor  # [B, 2, 4] far and near: two phases, two wave numbers per picture width
    sun: Tensor  # [B, 2] px
    clouds: Tensor  # [B, CLOUDS] x at frame 0 in px
    seed: Tensor  # [B] int64, of what is hashed: landmarks, houses, heights of clouds


@lru_cache(256)
def layouts(scenes: tuple[str, ...], device: torch.device) -> Layouts:
    """Of these keys of `PLACES`, on a device."""
    seeds = [PLACES[scene].seed for scene in scenes]
    numbers = torch.stack([torch.rand(11, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    phases, waves = numbers[:, :4].view(-1, 2, 2) * TURN, numbers[:, 4:8].view(-1, 2, 2) * 1.5 + 0.7
    sun = numbers[:, 8:10] * torch.tensor([152.0, 18.0]) + torch.tensor([20.0, 16.0])
    start = (numbers[:, 10:11] + torch.arange(CLOUDS) / CLOUDS) * CLOUD_SPAN_PX
    made = torch.cat([phases, waves], dim=2), sun, start, torch.tensor(seeds)
    return Layouts(*(one.to(device) for one in made))


def far_line(scenes: Sequence[str], ridges: Tensor, seed: Tensor, x: Tensor) -> Tensor:
    """Height of the far ridges.

    Args:
        scenes: B keys of `PLACES`.
        ridges: [B, 4] two phases and two wave numbers.
        seed: [B] int64.
        x: [B, F, C] px of scenery.

    Returns:
        [B, F, C] px from the top of the picture.
    """
    places = [PLACES[scene] for scene in scenes]
    middle, wave = _each(x, [p.far_px for p in places]), _each(x, [p.far_wave_px for p in places])
    shape = [place.shape for place in places]
    one, two = _angles(ridges, x)
    bend = one.sin() + 0.5 * two.sin()
    if "mesas" in shape:
        bend = torch.where(_each(x, [s == "mesas" for s in shape]), (3 * bend).clamp(-1, 1) + 0.1 * two.sin(), bend)
    if "peaks" in shape:
        sharp = 1.4 - 1.6 * (one / 2).sin().abs() - (1.3 * two).sin().abs()
        bend = torch.where(_each(x, [s == "peaks" for s in shape]), sharp, bend)
    line = middle - wave * bend
    if "houses" in shape:
        height = house_heights(seed[:, None, None], (x / HOUSE_PX).floor().long())
        line = torch.where(_each(x, [s == "houses" for s in shape]), middle - height, line)
    return line


def near_line(scenes: Sequence[str], ridges: Tensor, x: Tensor) -> Tensor:
    """Height of the ground's far edge, arguments and result as for `far_line`."""
    places = [PLACES[scene] for scene in scenes]
    one, two = _angles(ridges, x)
    bend = one.sin() + 0.5 * two.sin()
    return _each(x, [p.near_px for p in places]) - _each(x, [p.near_wave_px for p in places]) * bend


def _each(like: Tensor, values: Sequence[float | bool]) -> Tensor:
    """[B, 1, 1], one of B values for each world."""
    return torch.tensor(values, device=like.device)[:, None, None]


def _angles(ridges: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    angle = TURN / WIDTH_PX * ridges[:, 2:, None, None] * x[:, None] + ridges[:, :2, None, None]
    return angle[:, 0], angle[:, 1]


def below(line: Tensor, y: Tensor) -> Tensor:
    """Coverage [..., h, C] of all that is below a line [..., C]."""
    return torch.sigmoid((y[:, None] - line[..., None, :]) * 2.0)


def house_heights(seed: Tensor, number: Tensor) -> Tensor:
    """Of the houses of these numbers, in px; arguments broadcast."""
    return HOUSE_LOW_PX + (HOUSE_HIGH_PX - HOUSE_LOW_PX) * chance(seed, number, 4)


def far(scene: str, ridges: Tensor, seed: Tensor, x: Tensor, y: Tensor) -> Layer:
    """The far ridge of one world.

    Args:
        scene: a key of `PLACES`.
        ridges: [4] two phases and two wave numbers.
        seed: [] int64.
        x: [C] px of scenery.
        y: [h] px of the picture.

    Returns:
        alpha [h, C] and rgb [h, C, 3], not premultiplied.
    """
    place = PLACES[scene]
    line = far_line([scene], ridges[None], seed[None], x[None, None])[0, 0]
    rgb, low = x.new_tensor(place.far), x.new_tensor(place.sky[1])
    if place.shape == "houses":
        return _houses(seed, x, y, line, rgb)
    haze = ((y[:, None] - line) / HAZE_PX).clamp(0, 1).unsqueeze(-1)
    return below(line, y), torch.lerp(rgb, low, 0.55 * haze)


def _houses(seed: Tensor, x: Tensor, y: Tensor, line: Tensor, rgb: Tensor) -> Layer:
    number = (x / HOUSE_PX).floor().long()
    across = torch.remainder(x, HOUSE_PX)
    wall = coverage((across - HOUSE_PX / 2).abs() - HOUSE_PX / 2 + 0.3)
    alpha = below(line, y) * torch.maximum(wall, (y[:, None] > PLACES["night"].far_px - HOUSE_LOW_PX).float())
    column, row = (across / WINDOW_PX[0]).floor().long(), ((y[:, None] - line) / WINDOW_PX[1]).floor().long()
    lit = chance(seed, number * 64 + column * 16 + row, 5) < LIT_SHARE
    left = torch.remainder(across, WINDOW_PX[0]) - WINDOW_PX[0] / 2
    down = torch.remainder(y[:, None] - line, WINDOW_PX[1]) - WINDOW_PX[1] / 2
    window = coverage(left.abs() - 1.3) * coverage(down.abs() - 1.7) * lit * (row >= 0)
    tone = chance(seed, number, 6)[None, :, None]
    return alpha, torch.lerp(torch.lerp(rgb, x.new_tensor(HOUSE_RGB), tone), x.new_tensor(LIT_RGB), window[..., None])


def ground(scene: str, x: Tensor, y: Tensor, pan: Tensor, frames: Tensor) -> Tensor:
    """Colour of the ground with its pattern.

    Args:
        scene: a key of `PLACES`.
        x, y: [w], [h] px of the picture.
        pan: [F] px that landmarks have passed.
        frames: [F] frame numbers; only waves of the sea move with them.

    Returns:
        [F, 3, h, w] in 0..1.
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


def nearby(scene: str, seed: Tensor, x: Tensor, y: Tensor) -> Layer:
    """The landmarks of one world, arguments and result as for `far`."""
    return landmarks.paint(scene, seed, x, y - PLACES[scene].foot_px)

"""Everything behind the subjects of a drawn world, as pictures and as coverage maps.

Shapes: `B` worlds, `F` frames, `H` x `W` pixels, `h` x `w` points at `x` [w] and `y` [h] px.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engine.semantic.world_maps import HEIGHT_PX, PERIOD_PX, WIDTH_PX
from engine.training.world import scenery
from engine.training.world.landmarks import REACH_PX, chance
from engine.training.world.scenery import CLOUD_SPAN_PX, CLOUDS, DRIFT_PX, PLACES, Place
from engine.training.world.spec import Spec
from engine.training.world.subjects import Layer

CLOUD_ROWS = 72  # no cloud reaches lower
PUFFS = ((-9.0, 1.0, 9.0), (0.0, -3.0, 11.0), (10.0, 1.0, 9.0))  # x, y, radius of a cloud's parts
STARS = torch.rand(30, 3, generator=torch.Generator().manual_seed(7)) * torch.tensor([192.0, 62.0, 0.8])
RAYS_PX = 60.0  # how far light reaches under water


def far_alpha(spec: Spec, frames: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Coverage [B, F, h, w] of everything below the far ridge."""
    across = x + spec.panned(frames)[..., None] * scenery.FAR_SHARE
    return scenery.below(scenery.far_line(spec.scenes, spec.layouts.ridges[:, 0], spec.layouts.seed, across), y)


def near_alpha(spec: Spec, frames: Tensor, x: Tensor, y: Tensor, pitch_px: float = 1.0) -> Tensor:
    """Coverage [B, F, h, w] of the ground."""
    across = x + spec.panned(frames)[..., None] * scenery.EDGE_SHARE
    return scenery.below(scenery.near_line(spec.scenes, spec.layouts.ridges[:, 1], across), y, pitch_px)


def scroll(spec: Spec, frames: Tensor, x: Tensor) -> Tensor:
    """Position of each column between two landmarks, as an angle [B, F, w]: half a turn where a landmark stands."""
    return 6.2832 / PERIOD_PX * torch.remainder(x + spec.panned(frames)[..., None], PERIOD_PX)


def cloud_alpha(spec: Spec, frames: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Coverage [B, F, h, w] of the drifting clouds; each puff is a product of a row and a column."""
    puffs = torch.tensor(PUFFS, device=x.device)
    drift = spec.layouts.clouds[:, None] + DRIFT_PX * frames[..., None]
    drift = drift - scenery.FAR_SHARE * spec.panned(frames)[..., None]
    lap = (drift / CLOUD_SPAN_PX).floor().long() * CLOUDS + torch.arange(CLOUDS, device=x.device)
    middle_x = (torch.remainder(drift, CLOUD_SPAN_PX) - 30.0)[..., None] + puffs[:, 0]  # [B, F, CLOUDS, puffs]
    middle_y = (10.0 + 38.0 * chance(spec.layouts.seed[:, None, None], lap, 7))[..., None] + puffs[:, 1]
    radius = puffs[:, 2].repeat(CLOUDS)[:, None]
    columns = torch.exp(-(((x - middle_x.flatten(2)[..., None]) / radius) ** 2))
    rows = torch.exp(-(((y - middle_y.flatten(2)[..., None]) / (0.45 * radius)) ** 2))
    density = torch.einsum("bfpx,bfpy->bfyx", columns, rows)
    return scenery.each(x, spec.scenes, "clouds")[..., None] * torch.sigmoid((density - 0.55) * 9.0)


def glow(spec: Spec, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Sun or moon: its disc and the shine around it, [B, h, w] each."""
    radius, low = (scenery.each(x, spec.scenes, name)[..., 0] for name in ("sun_px", "low_sun_px"))
    dx, dy = x - spec.layouts.sun[:, 0, None], y - spec.layouts.sun[:, 1, None] - low
    square = dx[:, None, :] ** 2 + dy[:, :, None] ** 2
    return torch.sigmoid(radius[..., None] - square.sqrt()), torch.exp(-square / (900.0 + 40 * low[..., None]))


def draw(spec: Spec, frames: Tensor, video: Tensor) -> None:
    """Draws 1 world without its subjects into `video`, float32 [F, 3, H, W] in 0..1; `frames` [F] are numbers.

    H is a whole multiple of HEIGHT_PX.
    """
    [label] = spec.labels
    place = PLACES[label.scene]
    scale = video.shape[-2] // HEIGHT_PX
    x, y = ((torch.arange(size * scale, device=frames.device) + 0.5) / scale for size in (WIDTH_PX, HEIGHT_PX))
    clouds, top = CLOUD_ROWS * scale, place.top_px * scale
    video.copy_(_sky(spec, place, x, y))
    if place.clouds:
        alpha = cloud_alpha(spec, frames[None], x, y[:clouds])[0, :, None]
        video[:, :, :clouds].lerp_(x.new_tensor(place.cloud)[:, None, None], alpha)
    moves = label.camera != "fixed" or label.scene == "sea"
    rgb, alpha = _behind(spec, frames if moves else frames[:1], x, y[top:], scale)
    video[:, :, top:].mul_(1 - alpha).add_(rgb)


def _sky(spec: Spec, place: Place, x: Tensor, y: Tensor) -> Tensor:
    """[3, H, W]"""
    top, low, light = (x.new_tensor(rgb)[:, None, None] for rgb in (*place.sky, place.light))
    sky = torch.lerp(top, low, (y / place.near_px).clamp(0, 1)[:, None])
    disc, shine = glow(spec, x, y)
    sky = torch.lerp(sky, light, 0.35 * shine)
    if spec.scenes == ["night"]:
        stars = STARS.to(x.device)
        columns = torch.exp(-((x - stars[:, 0, None]) ** 2) / 2.0)
        rows = torch.exp(-((y - stars[:, 1, None]) ** 2) / 2.0) * (0.2 + stars[:, 2, None])
        sky = (sky + 0.6 * (rows.T @ columns)).clamp(0, 1)
    if spec.scenes == ["underwater"]:
        slant = (x - spec.layouts.sun[0, 0]) / (y[:, None] + 50.0)
        rays = ((9.0 * slant + 1.0).sin() + (17.0 * slant).sin()).clamp(min=0) * torch.exp(-y / RAYS_PX)[:, None]
        sky = torch.lerp(sky, light, 0.3 * rays)
    return torch.lerp(sky, light, disc)


def _behind(spec: Spec, frames: Tensor, x: Tensor, y: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """Ridge, ground and landmarks in one, `scale` points a px: premultiplied rgb [F, 3, h, w], alpha [F, 1, h, w]."""
    [scene], pitch_px = spec.scenes, 1 / scale
    place, ridges, seed = PLACES[scene], spec.layouts.ridges[0], spec.layouts.seed[0]
    pan = spec.panned(frames[None])[0]
    far = scenery.FAR_SHARE * pan
    rgb, alpha = _passing(lambda across: scenery.far(scene, ridges[0], seed, across, y, pitch_px), x, far)
    rgb, alpha = (part.expand(len(frames), -1, -1, -1).clone() for part in (rgb * alpha, alpha))
    start = scale * (int(place.near_px - 2 * place.near_wave_px) - place.top_px - 2)
    soil = scenery.ground(scene, x, y[start:], pan, frames)
    near = near_alpha(spec, frames[None], x, y[start:], pitch_px)[0, :, None]
    rgb[:, :, start:].lerp_(soil, near)
    alpha[:, :, start:].lerp_(torch.ones_like(near), near)
    foot = int(place.foot_px) - place.top_px
    rows = slice(scale * max(0, foot - REACH_PX[0]), scale * (foot + REACH_PX[1]))
    marks, cover = _passing(lambda across: scenery.nearby(scene, seed, across, y[rows], pitch_px), x, pan)
    rgb[:, :, rows].lerp_(marks, cover)
    alpha[:, :, rows].lerp_(torch.ones_like(cover), cover)
    return rgb, alpha


def _passing(paint: Callable[[Tensor], Layer], x: Tensor, passed: Tensor) -> tuple[Tensor, Tensor]:
    """A layer that moves to the left by `passed` [F] px: rgb [F, 3, h, w] and alpha [F, 1, h, w].

    Each column of scenery is painted once, however often it is seen; F is 1 if nothing moves.
    """
    if bool((passed == passed[0]).all()):
        alpha, rgb = paint(x + passed[0])
        return rgb.permute(2, 0, 1)[None], alpha[None, None]
    columns, where = torch.unique(x + passed[:, None], return_inverse=True)
    alpha, rgb = paint(columns)
    whole = torch.cat([rgb.permute(2, 0, 1), alpha[None]])[..., where].movedim(2, 0)  # [F, 4, h, w]
    return whole[:, :3], whole[:, 3:]

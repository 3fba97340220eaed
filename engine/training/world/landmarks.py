"""The landmarks of the drawn world: one every PERIOD_PX of scenery, without end on both sides.

A landmark is drawn in its own coordinates: origin at its foot, y grows downwards. A hash of its number and the place's
seed chooses its kind, so any part of the scenery can be drawn without the rest. Shapes: `h` rows, `C` columns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from engine.semantic.world_maps import PERIOD_PX
from engine.training.world.subjects import Cover, Layer, box, coverage, ellipse, flat, part, shade, stack, union

JITTER_PX = 6.0  # from the middle of its period, to either side
SIZES = (0.85, 1.15)
REACH_PX = (44, 12)  # no landmark goes farther above and below its foot
_BITS = 0xFFFFFFFF


def chance(seed: Tensor, index: Tensor, salt: Tensor | int) -> Tensor:
    """A pseudo-random number in [0, 1) for each integer `index`, the same on every machine; arguments broadcast."""
    mixed = (index * 0x9E3779B1 + seed * 0x85EBCA77 + salt * 0xC2B2AE3D) & _BITS
    for factor, shift in ((0x2C1B3C6D, 15), (0x297A2D39, 12)):
        mixed = ((mixed ^ (mixed >> shift)) * factor) & _BITS
    return (mixed ^ (mixed >> 15)).double().div(_BITS + 1.0).float()


def trees(x: Tensor, y: Tensor, kind: Tensor, cover: Cover) -> list[Layer]:
    crown = torch.where(kind < 0.5, part("tree_crown", x, y), part("conifer", x, y))
    leaves = torch.where((kind < 0.5)[..., None], flat(x, "leaf"), flat(x, "needle"))
    return [
        (cover(box(x, y, 0, -5, 1.6, 6, 0.5)), flat(x, "wood")),
        (cover(crown), shade(leaves, x, y + 16, 0.35)),
    ]


def cacti(x: Tensor, y: Tensor, kind: Tensor, cover: Cover) -> list[Layer]:
    shape = torch.where(kind < 0.5, part("cactus", x, y), part("stone", x, y))
    skin = torch.where((kind < 0.5)[..., None], flat(x, "cactus"), flat(x, "stone"))
    return [(cover(torch.maximum(shape, y - 1.0)), shade(skin, x + 3, y + 8, 0.4))]


def rocks(x: Tensor, y: Tensor, kind: Tensor, cover: Cover) -> list[Layer]:
    lighthouse = (kind < 0.2).float()
    return [
        (cover(ellipse(x, y, 0, 0.5, 17, 2.4)), flat(x, "foam")),
        (cover(part("lighthouse", x, y)) * lighthouse, shade(flat(x, "tower"), 4 * x, y + 18, 0.3)),
        (cover(part("lighthouse_lamp", x, y)) * lighthouse, flat(x, "dark")),
        (cover(part("rock", x, y)), shade(flat(x, "rock"), x, y + 6, 0.5)),
    ]


def lamps(x: Tensor, y: Tensor, kind: Tensor, cover: Cover) -> list[Layer]:
    shine = torch.exp(-((x - 6) ** 2 + (y + 27) ** 2) / 90.0)
    pool = torch.exp(-(((x - 4) / 15) ** 2) - ((y - 2) / 4) ** 2)
    return [
        (0.75 * torch.maximum(shine, 0.6 * pool), flat(x, "lamp")),
        (cover(part("lamp_post", x, y)), flat(x, "pole")),
        (cover(ellipse(x, y, 6, -28, 2.6, 1.9)), flat(x, "bulb")),
    ]


def pines(x: Tensor, y: Tensor, kind: Tensor, cover: Cover) -> list[Layer]:
    fence = union(box(torch.remainder(x, 8.0), y, 4, -3, 0.8, 4, 0.3), box(x, y, 0, -4.5, 18, 0.7, 0.3))
    pine = union(part("conifer", x, y), box(x, y, 0, -3, 1.4, 4, 0.4))
    twins = union(part("conifer", x + 6, y), part("conifer", (x - 7) * 1.3, y * 1.3))
    shape = union(torch.where(kind < 0.5, pine, twins), fence.maximum(x.abs() - 18))
    return [(cover(shape), flat(x, "dusk"))]


def corals(x: Tensor, y: Tensor, kind: Tensor, cover: Cover) -> list[Layer]:
    blades, fingers = [], box(x, y, 0, -2, 9, 2.5, 2)
    for place, height in ((-7.0, 20.0), (0.0, 32.0), (7.0, 25.0)):
        bend = 2.5 * torch.sin(0.3 * y + place)
        blades.append(((x - place - bend).abs() - 2.4 * (1 + y / height).clamp(min=0).sqrt()).maximum(-height - y))
        fingers = union(fingers, box(x + 0.25 * y * place / 7, y, place, -height / 4, 2.2, height / 4, 2.2))
    growth = torch.where((kind < 0.6)[..., None], flat(x, "weed"), flat(x, "coral"))
    shape = torch.where(kind < 0.6, union(*blades), fingers).maximum(y - 1.5)
    return [(cover(shape), shade(growth, x, y + 12, 0.4))]


Painter = Callable[[Tensor, Tensor, Tensor, Cover], list[Layer]]
PAINTERS: dict[str, Painter] = {
    "hills": trees, "desert": cacti, "sea": rocks, "night": lamps, "sunset": pines, "underwater": corals
}  # fmt: skip


def paint(scene: str, seed: Tensor, x: Tensor, y: Tensor, pitch_px: float) -> Layer:
    """The landmarks of a key of `PAINTERS`, at `x` [C] px of scenery and `y` [h] px below their feet.

    `seed` [] int64 keys their kinds, `pitch_px` is the distance of neighbouring points. Returns alpha [h, C] and rgb
    [h, C, 3], not premultiplied.
    """
    number = (x / PERIOD_PX).floor().long()
    aside, large, turned, kind = chance(seed, number, torch.arange(4, device=x.device)[:, None])
    size = SIZES[0] + (SIZES[1] - SIZES[0]) * large
    across = torch.remainder(x, PERIOD_PX) - PERIOD_PX / 2 - JITTER_PX * (2 * aside - 1)
    across = across * torch.where(turned < 0.5, -1.0, 1.0) / size
    across, down, kind = torch.broadcast_tensors(across, y[:, None] / size, kind)
    return stack(PAINTERS[scene](across, down, kind, partial(coverage, pitch_px=pitch_px)))

"""What stands in the places of the drawn world, one landmark every PERIOD_PX of scenery, for ever to both sides.

A landmark is drawn in its own coordinates: origin at its foot, y grows downwards. Which one stands where follows from
a hash of its number and the world's seed, so any part of the scenery can be drawn without the rest.
Shapes: `h` rows, `C` columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engine.training.world.subjects import DARK_RGB, Layer, box, coverage, ellipse, flat, polygon, shade, stack

PERIOD_PX = 64.0
JITTER_PX = 6.0  # from the middle of its period, to either side
SIZES = (0.85, 1.15)
REACH_PX = (44, 12)  # above and below its foot, that no landmark passes
WOOD_RGB = (0.36, 0.25, 0.16)
LEAF_RGB, NEEDLE_RGB = (0.20, 0.50, 0.20), (0.10, 0.38, 0.28)
CACTUS_RGB, STONE_RGB = (0.24, 0.52, 0.30), (0.62, 0.45, 0.34)
ROCK_RGB, FOAM_RGB, TOWER_RGB = (0.36, 0.36, 0.40), (0.92, 0.97, 1.0), (0.94, 0.93, 0.90)
LAMP_RGB, POLE_RGB = (1.0, 0.86, 0.52), (0.25, 0.25, 0.32)
DUSK_RGB = (0.13, 0.10, 0.20)
WEED_RGB, CORAL_RGB = (0.10, 0.46, 0.34), (0.86, 0.42, 0.46)
_BITS = 0xFFFFFFFF


def chance(seed: Tensor, index: Tensor, salt: Tensor | int) -> Tensor:
    """A number in [0, 1) for each integer `index` of a world, the same on every machine; arguments broadcast."""
    mixed = (index * 0x9E3779B1 + seed * 0x85EBCA77 + salt * 0xC2B2AE3D) & _BITS
    for factor, shift in ((0x2C1B3C6D, 15), (0x297A2D39, 12)):
        mixed = ((mixed ^ (mixed >> shift)) * factor) & _BITS
    return (mixed ^ (mixed >> 15)).double().div(_BITS + 1.0).float()


def _either(first: Tensor, second: Tensor, kind: Tensor) -> Tensor:
    return torch.where(kind < 0.5, first, second)


def _conifer(x: Tensor, y: Tensor) -> Tensor:
    low = polygon(x, y, ((0, -24), (10, -4), (-10, -4)))
    return torch.minimum(low, polygon(x, y, ((0, -32), (8, -14), (-8, -14))))


def trees(x: Tensor, y: Tensor, kind: Tensor) -> list[Layer]:
    crown = torch.minimum(ellipse(x, y, 0, -20, 9, 9), ellipse(x, y, -6, -14, 7, 6))
    crown = torch.minimum(crown, ellipse(x, y, 6, -14, 7, 6))
    leaves = torch.where((kind < 0.5)[..., None], flat(x, LEAF_RGB), flat(x, NEEDLE_RGB))
    return [
        (coverage(box(x, y, 0, -5, 1.6, 6, 0.5)), flat(x, WOOD_RGB)),
        (coverage(_either(crown, _conifer(x, y), kind)), shade(leaves, x, y + 16, 0.35)),
    ]


def cacti(x: Tensor, y: Tensor, kind: Tensor) -> list[Layer]:
    cactus = box(x, y, 0, -13, 2.8, 14, 2.8)
    for side, reach, low in ((-1, 7.5, -10.0), (1, 7.0, -14.0)):
        arm = torch.minimum(
            box(x, y, side * reach / 2, low, reach / 2 + 1, 1.7, 1.7), box(x, y, side * reach, low - 4, 1.8, 5, 1.8)
        )
        cactus = torch.minimum(cactus, arm)
    stone = torch.minimum(ellipse(x, y, -2, -2, 11, 8), ellipse(x, y, 8, -1, 8, 5))
    skin = torch.where((kind < 0.5)[..., None], flat(x, CACTUS_RGB), flat(x, STONE_RGB))
    return [(coverage(torch.maximum(_either(cactus, stone, kind), y - 1.0)), shade(skin, x + 3, y + 8, 0.4))]


def rocks(x: Tensor, y: Tensor, kind: Tensor) -> list[Layer]:
    rock = torch.minimum(
        polygon(x, y, ((-13, 0), (-7, -9), (-2, -11), (4, 0))), polygon(x, y, ((-4, 0), (4, -7), (8, -6), (14, 0)))
    )
    tower = polygon(x, y, ((-4, -29), (0, -29), (2, -7), (-6, -7)))
    lamp = torch.minimum(box(x, y, -2, -31.5, 1.6, 2.5, 0.5), polygon(x, y, ((-2, -37), (1, -34), (-5, -34))))
    lighthouse = (kind < 0.2).float()
    return [
        (coverage(ellipse(x, y, 0, 0.5, 17, 2.4)), flat(x, FOAM_RGB)),
        (coverage(tower) * lighthouse, shade(flat(x, TOWER_RGB), 4 * x, y + 18, 0.3)),
        (coverage(lamp) * lighthouse, flat(x, DARK_RGB)),
        (coverage(rock), shade(flat(x, ROCK_RGB), x, y + 6, 0.5)),
    ]


def lamps(x: Tensor, y: Tensor, kind: Tensor) -> list[Layer]:
    post = torch.minimum(box(x, y, 0, -15, 0.9, 15, 0.5), box(x, y, 2.5, -29.5, 3.4, 0.8, 0.5))
    shine = torch.exp(-((x - 6) ** 2 + (y + 27) ** 2) / 90.0)
    pool = torch.exp(-(((x - 4) / 15) ** 2) - ((y - 2) / 4) ** 2)
    return [
        (0.75 * torch.maximum(shine, 0.6 * pool), flat(x, LAMP_RGB)),
        (coverage(post), flat(x, POLE_RGB)),
        (coverage(ellipse(x, y, 6, -28, 2.6, 1.9)), flat(x, (1.0, 0.96, 0.82))),
    ]


def pines(x: Tensor, y: Tensor, kind: Tensor) -> list[Layer]:
    fence = torch.minimum(box(torch.remainder(x, 8.0), y, 4, -3, 0.8, 4, 0.3), box(x, y, 0, -4.5, 18, 0.7, 0.3))
    pine = torch.minimum(_conifer(x, y), box(x, y, 0, -3, 1.4, 4, 0.4))
    twins = torch.minimum(_conifer(x + 6, y), _conifer((x - 7) * 1.3, y * 1.3))
    shape = torch.minimum(_either(pine, twins, kind), fence.maximum(x.abs() - 18))
    return [(coverage(shape), flat(x, DUSK_RGB))]


def corals(x: Tensor, y: Tensor, kind: Tensor) -> list[Layer]:
    weeds: Tensor | None = None
    fingers = box(x, y, 0, -2, 9, 2.5, 2)
    for place, height in ((-7.0, 20.0), (0.0, 32.0), (7.0, 25.0)):
        bend = 2.5 * torch.sin(0.3 * y + place)
        blade = ((x - place - bend).abs() - 2.4 * (1 + y / height).clamp(min=0).sqrt()).maximum(-height - y)
        weeds = blade if weeds is None else torch.minimum(weeds, blade)
        fingers = torch.minimum(fingers, box(x + 0.25 * y * place / 7, y, place, -height / 4, 2.2, height / 4, 2.2))
    assert weeds is not None
    growth = torch.where((kind < 0.6)[..., None], flat(x, WEED_RGB), flat(x, CORAL_RGB))
    shape = torch.where(kind < 0.6, weeds, fingers).maximum(y - 1.5)
    return [(coverage(shape), shade(growth, x, y + 12, 0.4))]


PAINTERS: dict[str, Callable[[Tensor, Tensor, Tensor], list[Layer]]] = {
    "hills": trees,
    "desert": cacti,
    "sea": rocks,
    "night": lamps,
    "sunset": pines,
    "underwater": corals,
}


def paint(scene: str, seed: Tensor, x: Tensor, y: Tensor) -> Layer:
    """The landmarks of a scene.

    Args:
        scene: a key of `PAINTERS`.
        seed: [] int64, the world's.
        x: [C] px of scenery.
        y: [h] px below their feet.

    Returns:
        alpha [h, C] and rgb [h, C, 3], not premultiplied.
    """
    number = (x / PERIOD_PX).floor().long()
    aside, large, turned, kind = chance(seed, number, torch.arange(4, device=x.device)[:, None])
    size = SIZES[0] + (SIZES[1] - SIZES[0]) * large
    across = torch.remainder(x, PERIOD_PX) - PERIOD_PX / 2 - JITTER_PX * (2 * aside - 1)
    across = across * torch.where(turned < 0.5, -1.0, 1.0) / size
    across, down, kind = torch.broadcast_tensors(across, y[:, None] / size, kind)
    return stack(PAINTERS[scene](across, down, kind))

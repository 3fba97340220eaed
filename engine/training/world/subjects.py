"""The shapes that move through the drawn world: signed distances and shading, in pixels.

A subject is drawn in its own coordinates: origin in its middle, x grows to where it faces, y grows downwards. Animals
move their wings or tail with a beat, an angle in radians that grows with the frames.
To add a subject, add a function here, its entry in `PAINTERS` and its words in `engine/data/world.toml`.
Shapes: `...` any leading dimensions, equal for all arguments after broadcasting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce

import torch
from torch import Tensor

from engine.text.world_tables import TABLES

EDGE_PX = 1.5  # width of the anti-aliased edge where points are 1 px apart
HALF_WIDTH_PX = 23.0  # no subject of size 1 reaches farther from its middle
PAINTS = TABLES["paints"]  # rgb in 0..1 by name
RIM = 0.45  # share by which an edge is darker than the body, so that a subject stands out from a sky of its colour

Layer = tuple[Tensor, Tensor]  # alpha [...] and rgb [..., 3]
Cover = Callable[[Tensor], Tensor]  # distance to an edge, negative inside -> coverage


def coverage(distance: Tensor, pitch_px: float) -> Tensor:
    """1 inside, 0 outside, smooth over `EDGE_PX` around distance 0, or over less where points lie closer than 1 px."""
    return torch.sigmoid(distance * (-4.0 / (EDGE_PX * min(1.0, pitch_px))))


def ellipse(x: Tensor, y: Tensor, cx: float, cy: float, rx: float, ry: float) -> Tensor:
    """Distance to an ellipse, good to first order near its edge."""
    u, v = (x - cx) / rx, (y - cy) / ry
    length = torch.sqrt(u * u + v * v + 1e-6)
    gradient = torch.sqrt((u / rx) ** 2 + (v / ry) ** 2 + 1e-6)
    return length * (length - 1.0) / gradient


def box(x: Tensor, y: Tensor, cx: float, cy: float, hx: float, hy: float, radius: float) -> Tensor:
    """Distance to a box of half sizes `hx`, `hy` with rounded corners."""
    dx, dy = (x - cx).abs() - (hx - radius), (y - cy).abs() - (hy - radius)
    outside = torch.sqrt(dx.clamp(min=0) ** 2 + dy.clamp(min=0) ** 2 + 1e-6)
    return outside + torch.maximum(dx, dy).clamp(max=0) - radius


def polygon(x: Tensor, y: Tensor, corners: Sequence[Sequence[float]]) -> Tensor:
    """Distance to a convex polygon, corners clockwise as seen on the screen."""
    sides = []
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        ex, ey = bx - ax, by - ay
        sides.append(((x - ax) * ey - (y - ay) * ex) / (ex * ex + ey * ey) ** 0.5)
    distance: Tensor = reduce(torch.maximum, sides)
    return distance


def union(*distances: Tensor) -> Tensor:
    """Distance to several shapes taken as one."""
    distance: Tensor = reduce(torch.minimum, distances)
    return distance


def part(name: str, x: Tensor, y: Tensor) -> Tensor:
    """Distance to a part of the table of shapes."""
    kinds: dict[str, Callable[..., Tensor]] = {"ellipse": ellipse, "box": box, "polygon": polygon}
    return union(*(kinds[kind](x, y, *numbers) for kind, *numbers in TABLES["shapes"][name]))


def shade(rgb: Tensor, x: Tensor, y: Tensor, depth: float = 0.25) -> Tensor:
    """`rgb` in light from the upper left over a body about 20 px in radius."""
    light = (1.0 - depth * torch.tanh((0.4 * x + y) / 14.0)).unsqueeze(-1)
    return (rgb * light).clamp(0, 1)


def flat(x: Tensor, paint: str) -> Tensor:
    """One colour of the table of paints, [..., 3], for points `x` [...]."""
    return torch.tensor(PAINTS[paint], device=x.device).expand(*x.shape, 3)


def stack(layers: list[Layer]) -> Layer:
    """Layers put over each other, the last on top: alpha [...] and rgb [..., 3], not premultiplied."""
    alpha, colour = layers[0]
    for layer_alpha, layer_rgb in layers[1:]:
        colour = torch.lerp(colour, layer_rgb, layer_alpha.unsqueeze(-1))
        alpha = torch.maximum(alpha, layer_alpha)
    return alpha, colour


def ball(x: Tensor, y: Tensor, rgb: Tensor, beat: Tensor, cover: Cover) -> list[Layer]:
    spot = torch.exp(-((x + 6) ** 2 + (y + 7) ** 2) / 40.0).unsqueeze(-1)
    body = shade(rgb, x, y, 0.4)
    return [(cover(ellipse(x, y, 0, 0, 19, 19)), body + (1.0 - body) * 0.6 * spot)]


def sailboat(x: Tensor, y: Tensor, rgb: Tensor, beat: Tensor, cover: Cover) -> list[Layer]:
    return [
        (cover(part("boat_sails", x, y)), shade(rgb, x, y)),
        (cover(part("boat_mast", x, y)), flat(x, "dark")),
        (cover(part("boat_hull", x, y)), shade(0.55 * rgb, x, y)),
    ]


def car(x: Tensor, y: Tensor, rgb: Tensor, beat: Tensor, cover: Cover) -> list[Layer]:
    return [
        (cover(part("car_body", x, y)), shade(rgb, x, y)),
        (cover(part("car_windows", x, y)), flat(x, "window")),
        (cover(part("car_wheels", x, y)), flat(x, "dark")),
        (cover(part("car_hubs", x, y)), flat(x, "metal")),
    ]


def fish(x: Tensor, y: Tensor, rgb: Tensor, beat: Tensor, cover: Cover) -> list[Layer]:
    bent = y + 4.0 * torch.sin(beat) * ((-8.0 - x) / 14.0).clamp(0, 1)
    fins = union(part("fish_tail", x, bent), part("fish_fin", x, y))
    stripe = 0.5 + 0.5 * torch.cos(0.55 * x)
    body = shade(rgb, x, y) * (0.80 + 0.2 * stripe).unsqueeze(-1)
    return [
        (cover(fins), shade(0.7 * rgb, x, y)),
        (cover(ellipse(x, y, 3, 0, 18, 12)), body),
        (cover(ellipse(x, y, 13, -3, 2.6, 2.6)), flat(x, "dark")),
    ]


def balloon(x: Tensor, y: Tensor, rgb: Tensor, beat: Tensor, cover: Cover) -> list[Layer]:
    around = torch.asin((x / (17.0 - 0.5 * (y - 3).clamp(min=0))).clamp(-0.99, 0.99))
    gores = torch.sigmoid(12.0 * torch.cos(5.0 * around)).unsqueeze(-1)
    return [
        (cover(box(x, y, 0, 15.5, 3.2, 2.5, 0.5)), flat(x, "dark")),
        (cover(part("balloon", x, y)), shade(rgb, x, y, 0.3) * (0.72 + 0.28 * gores)),
        (cover(box(x, y, 0, 19.5, 4.6, 3.2, 1.0)), flat(x, "basket")),
    ]


def bird(x: Tensor, y: Tensor, rgb: Tensor, beat: Tensor, cover: Cover) -> list[Layer]:
    scale = 0.125 + 0.875 * torch.sin(beat)  # of the wing, which beats through the body
    scale = torch.where(scale < 0, scale.clamp(max=-0.2), scale.clamp(min=0.2))
    wing = polygon(x, (y - 1) / scale, ((-9, 1), (-13, -21), (-4, -17), (6, 1))) * scale.abs()
    return [
        (cover(part("bird_beak", x, y)), flat(x, "beak")),
        (cover(part("bird_body", x, y)), shade(rgb, x, y)),
        (cover(wing), shade(0.68 * rgb, x, y)),
        (cover(ellipse(x, y, 14, -4.5, 1.7, 1.7)), flat(x, "dark")),
    ]


def airplane(x: Tensor, y: Tensor, rgb: Tensor, beat: Tensor, cover: Cover) -> list[Layer]:
    windows = ellipse(torch.remainder(x, 5.0), y, 2.5, -1.5, 1.4, 1.4).maximum((x - 2).abs() - 12.0)
    return [
        (cover(part("airplane_hull", x, y)), shade(rgb, x, y, 0.35)),
        (cover(union(windows, ellipse(x, y, 17.5, -1.5, 2.6, 1.8))), flat(x, "window")),
        (cover(part("airplane_wing", x, y)), shade(0.6 * rgb, x, y)),
    ]


def butterfly(x: Tensor, y: Tensor, rgb: Tensor, beat: Tensor, cover: Cover) -> list[Layer]:
    scale = 0.75 + 0.25 * torch.sin(beat)
    span = x.abs() / scale
    feelers = box(x.abs(), y + 0.8 * x.abs(), 4, -12, 3, 0.7, 0.5)
    return [
        (cover(part("butterfly_wings", span, y) * scale), shade(rgb, x, y)),
        (cover(part("butterfly_spots", span, y) * scale), shade(rgb + 0.55 * (1.0 - rgb), x, y)),
        (cover(union(ellipse(x, y, 0, 0, 2.4, 14), feelers)), flat(x, "dark")),
    ]


Painter = Callable[[Tensor, Tensor, Tensor, Tensor, Cover], list[Layer]]
PAINTERS: dict[str, Painter] = {
    painter.__name__: painter for painter in (ball, sailboat, car, fish, balloon, bird, airplane, butterfly)
}
BEAT_FRAMES = {"fish": 8.0, "bird": 8.0, "butterfly": 4.0}


def paint(name: str, x: Tensor, y: Tensor, rgb: Tensor, beat: Tensor, pitch_px: float) -> Layer:
    """One subject, a key of `PAINTERS`, at `x`, `y` [...] px in its coordinates: alpha [...] and rgb [..., 3].

    `rgb` [3] in 0..1 is its colour, `beat` its angle, broadcast with `x`, and `pitch_px` the distance of neighbouring
    points. The result is not premultiplied.
    """
    alpha, colour = stack(PAINTERS[name](x, y, rgb, beat, partial(coverage, pitch_px=pitch_px)))
    return alpha, colour * (1.0 - RIM * (1.0 - alpha)).unsqueeze(-1)

"""The shapes that move through the drawn world: signed distances and shading, in pixels.

A subject is drawn in its own coordinates: x grows to where it faces, y grows downwards, origin in its middle. What
lives moves with its beat, an angle in radians that grows with the frames.
Adding one means adding a function here, a word in `captions` and its entry in `PAINTERS`.
Shapes: `...` any leading dimensions, equal for all arguments after broadcasting.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

EDGE_PX = 1.5  # width of the anti-aliased edge
HALF_WIDTH_PX = 23.0  # no subject reaches farther than this from its middle, at size 1
WINDOW_RGB = (0.80, 0.92, 1.0)
DARK_RGB = (0.16, 0.14, 0.18)
BEAK_RGB = (0.98, 0.66, 0.16)
BASKET_RGB = (0.55, 0.36, 0.18)
METAL_RGB = (0.78, 0.79, 0.83)
RIM = 0.45  # how much darker an edge is than the body, so that a subject stands out from a sky of its colour

Layer = tuple[Tensor, Tensor]  # alpha [...] and rgb [..., 3]


def coverage(distance: Tensor) -> Tensor:
    """1 inside, 0 outside, smooth over `EDGE_PX` around distance 0."""
    return torch.sigmoid(distance * (-4.0 / EDGE_PX))


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


def polygon(x: Tensor, y: Tensor, corners: tuple[tuple[float, float], ...]) -> Tensor:
    """Distance to a convex polygon, corners clockwise as seen on the screen."""
    distance: Tensor | None = None
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = bx - ax, by - ay
        side = ((x - ax) * ey - (y - ay) * ex) / (ex * ex + ey * ey) ** 0.5
        distance = side if distance is None else torch.maximum(distance, side)
    assert distance is not None
    return distance


def shade(rgb: Tensor, x: Tensor, y: Tensor, depth: float = 0.25) -> Tensor:
    """`rgb` in light from the upper left over a body about 20 px in radius."""
    light = (1.0 - depth * torch.tanh((0.4 * x + y) / 14.0)).unsqueeze(-1)
    return (rgb * light).clamp(0, 1)


def flat(x: Tensor, rgb: tuple[float, float, float]) -> Tensor:
    """One colour, [..., 3], for points `x` [...]."""
    return torch.tensor(rgb, device=x.device).expand(*x.shape, 3)


def stack(layers: list[Layer]) -> Layer:
    """Layers put over each other, the last on top: alpha [...] and rgb [..., 3], not premultiplied."""
    alpha, colour = layers[0]
    for layer_alpha, layer_rgb in layers[1:]:
        colour = torch.lerp(colour, layer_rgb, layer_alpha.unsqueeze(-1))
        alpha = torch.maximum(alpha, layer_alpha)
    return alpha, colour


def _mirrored(y: Tensor, beat: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Coordinate of a flapping wing along its span, and its scale: from `low` through little to `high` and back."""
    scale = (low + high) / 2 + (high - low) / 2 * torch.sin(beat)
    scale = torch.where(scale < 0, scale.clamp(max=-0.2), scale.clamp(min=0.2))
    return y / scale, scale.abs()


def ball(x: Tensor, y: Tensor, rgb: Tensor, beat: Tensor) -> list[Layer]:
    spot = torch.exp(-((x + 6) ** 2 + (y + 7) ** 2) / 40.0).unsqueeze(-1)
    body = shade(rgb, x, y, 0.4)
    return [(coverage(ellipse(x, y, 0, 0, 19, 19)), body + (1.0 - body) * 0.6 * spot)]


def sailboat(x: Tensor, y: Tensor, rgb: Tensor, beat: Tensor) -> list[Layer]:
    hull = polygon(x, y, ((-20, 9), (20, 9), (12, 19), (-13, 19)))
    main = polygon(x, y, ((-1, -22), (-1, 6), (-18, 6)))
    jib = polygon(x, y, ((2, -17), (16, 6), (2, 6)))
    return [
        (coverage(torch.minimum(main, jib)), shade(rgb, x, y)),
        (coverage(box(x, y, 0.5, -6, 0.6, 16, 0.5)), flat(x, DARK_RGB)),
        (coverage(hull), shade(0.55 * rgb, x, y)),
    ]


def car(x: Tensor, y: Tensor, rgb: Tensor, beat: Tensor) -> list[Layer]:
    body = torch.minimum(box(x, y, 0, 4, 22, 7.5, 4), polygon(x, y, ((-10, -11), (5, -11), (13, 0), (-16, 0))))
    window = torch.minimum(
        polygon(x, y, ((-9, -8), (-3, -8), (-3, -1), (-12, -1))), polygon(x, y, ((0, -8), (4, -8), (9, -1), (0, -1)))
    )
    wheels = torch.minimum(ellipse(x, y, -12, 11, 6, 6), ellipse(x, y, 12, 11, 6, 6))
    hubs = torch.minimum(ellipse(x, y, -12, 11, 2, 2), ellipse(x, y, 12, 11, 2, 2))
    return [
        (coverage(body), shade(rgb, x, y)),
        (coverage(window), flat(x, WINDOW_RGB)),
        (coverage(wheels), flat(x, DARK_RGB)),
        (coverage(hubs), flat(x, METAL_RGB)),
    ]


def fish(x: Tensor, y: Tensor, rgb: Tensor, beat: Tensor) -> list[Layer]:
    bent = y + 4.0 * torch.sin(beat) * ((-8.0 - x) / 14.0).clamp(0, 1)
    tail = polygon(x, bent, ((-10, 0), (-22, 12), (-22, -12)))
    fin = polygon(x, y, ((-6, -8), (6, -17), (8, -6)))
    stripe = 0.5 + 0.5 * torch.cos(0.55 * x)
    body = shade(rgb, x, y) * (0.80 + 0.2 * stripe).unsqueeze(-1)
    return [
        (coverage(torch.minimum(tail, fin)), shade(0.7 * rgb, x, y)),
        (coverage(ellipse(x, y, 3, 0, 18, 12)), body),
        (coverage(ellipse(x, y, 13, -3, 2.6, 2.6)), flat(x, DARK_RGB)),
    ]


def balloon(x: Tensor, y: Tensor, rgb: Tensor, beat: Tensor) -> list[Layer]:
    skin = torch.minimum(ellipse(x, y, 0, -6, 17, 16.5), polygon(x, y, ((-14, 3), (14, 3), (4, 14), (-4, 14))))
    around = torch.asin((x / (17.0 - 0.5 * (y - 3).clamp(min=0))).clamp(-0.99, 0.99))
    gores = torch.sigmoid(12.0 * torch.cos(5.0 * around)).unsqueeze(-1)
    return [
        (coverage(box(x, y, 0, 15.5, 3.2, 2.5, 0.5)), flat(x, DARK_RGB)),
        (coverage(skin), shade(rgb, x, y, 0.3) * (0.72 + 0.28 * gores)),
        (coverage(box(x, y, 0, 19.5, 4.6, 3.2, 1.0)), flat(x, BASKET_RGB)),
    ]


def bird(x: Tensor, y: Tensor, rgb: Tensor, beat: Tensor) -> list[Layer]:
    body = torch.minimum(ellipse(x, y, 0, 2, 14, 7), ellipse(x, y, 12, -3, 6.5, 6))
    tail = polygon(x, y, ((-8, 0), (-8, 5), (-22, 8), (-22, -1)))
    span, scale = _mirrored(y - 1, beat, -0.75, 1.0)
    wing = polygon(x, span, ((-9, 1), (-13, -21), (-4, -17), (6, 1))) * scale
    return [
        (coverage(polygon(x, y, ((17, -6), (23, -2), (17, 0)))), flat(x, BEAK_RGB)),
        (coverage(torch.minimum(body, tail)), shade(rgb, x, y)),
        (coverage(wing), shade(0.68 * rgb, x, y)),
        (coverage(ellipse(x, y, 14, -4.5, 1.7, 1.7)), flat(x, DARK_RGB)),
    ]


def airplane(x: Tensor, y: Tensor, rgb: Tensor, beat: Tensor) -> list[Layer]:
    hull = torch.minimum(
        box(x, y, 2, 0, 20, 5.5, 5.5), polygon(x, y, ((-23, -14), (-17, -14), (-7, -3), (-14, 3), (-21, -1)))
    )
    windows = ellipse(torch.remainder(x, 5.0), y, 2.5, -1.5, 1.4, 1.4).maximum((x - 2).abs() - 12.0)
    wing = polygon(x, y, ((-3, 1), (7, 1), (-7, 15), (-13, 15)))
    return [
        (coverage(hull), shade(rgb, x, y, 0.35)),
        (coverage(torch.minimum(windows, ellipse(x, y, 17.5, -1.5, 2.6, 1.8))), flat(x, WINDOW_RGB)),
        (coverage(wing), shade(0.6 * rgb, x, y)),
    ]


def butterfly(x: Tensor, y: Tensor, rgb: Tensor, beat: Tensor) -> list[Layer]:
    scale = 0.75 + 0.25 * torch.sin(beat)
    span = x.abs() / scale
    upper, lower = ellipse(span, y, 11.5, -8, 10.5, 10), ellipse(span, y, 9, 9.5, 8, 8.5)
    light = torch.minimum(ellipse(span, y, 13, -9, 4.5, 4), ellipse(span, y, 10, 10, 3.2, 3.2))
    feelers = box(x.abs(), y + 0.8 * x.abs(), 4, -12, 3, 0.7, 0.5)
    return [
        (coverage(torch.minimum(upper, lower) * scale), shade(rgb, x, y)),
        (coverage(light * scale), shade(rgb + 0.55 * (1.0 - rgb), x, y)),
        (coverage(torch.minimum(ellipse(x, y, 0, 0, 2.4, 14), feelers)), flat(x, DARK_RGB)),
    ]


PAINTERS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], list[Layer]]] = {
    "ball": ball,
    "sailboat": sailboat,
    "car": car,
    "fish": fish,
    "balloon": balloon,
    "bird": bird,
    "airplane": airplane,
    "butterfly": butterfly,
}
BEAT_FRAMES = {"fish": 8.0, "bird": 8.0, "butterfly": 4.0}  # of what lives, per beat


def paint(name: str, x: Tensor, y: Tensor, rgb: Tensor, beat: Tensor) -> Layer:
    """One subject's layers put over each other.

    Args:
        name: a key of `PAINTERS`.
        x, y: [...] pixels in the subject's coordinates.
        rgb: [..., 3] in 0..1, its colour.
        beat: radians, broadcasts with `x`.

    Returns:
        alpha [...] and rgb [..., 3], not premultiplied.
    """
    alpha, colour = stack(PAINTERS[name](x, y, rgb, beat))
    return alpha, colour * (1.0 - RIM * (1.0 - alpha)).unsqueeze(-1)

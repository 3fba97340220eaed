"""The shapes that move through the drawn world: signed distances and shading, in pixels.

A subject is drawn in its own coordinates: x grows to where it faces, y grows downwards, origin in its middle.
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


def _shade(rgb: Tensor, x: Tensor, y: Tensor, depth: float = 0.25) -> Tensor:
    """Light from the upper left over a body about 20 px in radius."""
    light = (1.0 - depth * torch.tanh((0.4 * x + y) / 14.0)).unsqueeze(-1)
    return (rgb * light).clamp(0, 1)


def _flat(x: Tensor, rgb: tuple[float, float, float]) -> Tensor:
    return torch.tensor(rgb, device=x.device).expand(*x.shape, 3)


def ball(x: Tensor, y: Tensor, rgb: Tensor) -> list[Layer]:
    spot = torch.exp(-((x + 6) ** 2 + (y + 7) ** 2) / 40.0).unsqueeze(-1)
    body = _shade(rgb, x, y, 0.4)
    return [(coverage(ellipse(x, y, 0, 0, 19, 19)), body + (1.0 - body) * 0.6 * spot)]


def sailboat(x: Tensor, y: Tensor, rgb: Tensor) -> list[Layer]:
    hull = polygon(x, y, ((-20, 9), (20, 9), (12, 19), (-13, 19)))
    main = polygon(x, y, ((-1, -22), (-1, 6), (-18, 6)))
    jib = polygon(x, y, ((2, -17), (16, 6), (2, 6)))
    return [
        (coverage(torch.minimum(main, jib)), _shade(rgb, x, y)),
        (coverage(hull), _shade(0.55 * rgb, x, y)),
    ]


def car(x: Tensor, y: Tensor, rgb: Tensor) -> list[Layer]:
    body = torch.minimum(box(x, y, 0, 4, 22, 7.5, 4), polygon(x, y, ((-10, -11), (5, -11), (13, 0), (-16, 0))))
    window = torch.minimum(
        polygon(x, y, ((-9, -8), (-3, -8), (-3, -1), (-12, -1))), polygon(x, y, ((0, -8), (4, -8), (9, -1), (0, -1)))
    )
    wheels = torch.minimum(ellipse(x, y, -12, 11, 6, 6), ellipse(x, y, 12, 11, 6, 6))
    return [
        (coverage(body), _shade(rgb, x, y)),
        (coverage(window), _flat(x, WINDOW_RGB)),
        (coverage(wheels), _flat(x, DARK_RGB)),
    ]


def fish(x: Tensor, y: Tensor, rgb: Tensor) -> list[Layer]:
    tail = polygon(x, y, ((-10, 0), (-22, 12), (-22, -12)))
    fin = polygon(x, y, ((-6, -8), (6, -17), (8, -6)))
    stripe = 0.5 + 0.5 * torch.cos(0.55 * x)
    body = _shade(rgb, x, y) * (0.80 + 0.2 * stripe).unsqueeze(-1)
    return [
        (coverage(torch.minimum(tail, fin)), _shade(0.7 * rgb, x, y)),
        (coverage(ellipse(x, y, 3, 0, 18, 12)), body),
        (coverage(ellipse(x, y, 13, -3, 2.6, 2.6)), _flat(x, DARK_RGB)),
    ]


PAINTERS: dict[str, Callable[[Tensor, Tensor, Tensor], list[Layer]]] = {
    "ball": ball,
    "sailboat": sailboat,
    "car": car,
    "fish": fish,
}


def paint(name: str, x: Tensor, y: Tensor, rgb: Tensor) -> Layer:
    """One subject's layers put over each other.

    Args:
        name: a key of `PAINTERS`.
        x, y: [...] pixels in the subject's coordinates.
        rgb: [..., 3] in 0..1, its colour.

    Returns:
        alpha [...] and rgb [..., 3], not premultiplied.
    """
    layers = PAINTERS[name](x, y, rgb)
    alpha, colour = layers[0]
    for layer_alpha, layer_rgb in layers[1:]:
        colour = torch.lerp(colour, layer_rgb, layer_alpha.unsqueeze(-1))
        alpha = torch.maximum(alpha, layer_alpha)
    return alpha, colour

"""Layers that several stages share.

Shapes: `B` batch, `N` tokens, `D` width, `P` rotary pairs (half a head's width).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sinusoid(values: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding [cos | sin] with w_i = exp(-ln(10000) i / (dim/2)) (FACTS 2.3, 3.2).

    Args:
        values: [...], any real dtype.
        dim: even width of the embedding.

    Returns:
        [..., dim] float32.
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=values.device) / half)
    angles = values.float().unsqueeze(-1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding on interleaved pairs (x0, x1), (x2, x3), ... in float32 (FACTS 1.5, 2.5).

    Args:
        x: [..., N, 2P].
        cos, sin: [N, P] float32, broadcast over the leading dimensions.

    Returns:
        The rotated tensor, same shape and dtype as `x`.
    """
    pairs = x.float().unflatten(-1, (-1, 2))
    even, odd = pairs.unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


def rotary_angles(positions: Tensor, dim: int, theta: float = 10000.0) -> Tensor:
    """Angles p * theta^(-2i/dim), i = 0..dim/2-1.

    Args:
        positions: [N], any real dtype.
        dim: even number of rotated channels.

    Returns:
        [N, dim/2] float32.
    """
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=positions.device) / dim
    return positions.float()[:, None] * (1.0 / theta**exponents)[None, :]


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed and scaled in float32, then cast back (FACTS 2.5)."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D], same dtype."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (wide * self.weight.float()).to(x.dtype)

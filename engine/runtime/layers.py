"""Layers that several stages share.

Shapes: `B` batch, `N` tokens, `D` width, `P` rotary pairs (half a head's width).
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.rmsnorm import add_rms_norm, rms_norm

_TABLE_STEP = 256  # positions by which a kept table of rotations grows


def sinusoid(values: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding [cos | sin] with w_i = exp(-ln(10000) i / (dim/2)) (REFERENCE 2.3, 3.2).

    Args:
        values: [...], any real dtype.
        dim: even width of the embedding.

    Returns:
        [..., dim] float32.
    """
    angles = values.float().unsqueeze(-1) * _frequencies(dim // 2, values.device)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


@functools.cache
def _frequencies(count: int, device: torch.device) -> Tensor:
    """[count], made on the CPU: a GPU rounds exp() otherwise, which at time 999 is 1e-5 of the embedding."""
    # Kept tensors must also serve training, so none of them may be an inference tensor.
    with torch.inference_mode(False):
        places = torch.arange(count, dtype=torch.float32, device="cpu")
        return torch.exp(-math.log(10000.0) * places / count).to(device)


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the next matrix product of `x`: a kernel that writes it saves a pass to cast.

    That of `x` where gradients are wanted, so that their sums are not rounded.
    """
    device = x.device.type
    # There is no autocast for meta tensors, of which sizes are counted.
    if torch.is_grad_enabled() or x.is_meta or not torch.is_autocast_enabled(device):
        return x.dtype
    return torch.get_autocast_dtype(device)


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


def rotations(start: int, count: int, dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines [count, dim / 2] of positions from `start` on, out of a table that is kept."""
    cos, sin = rotation_table(start + count, dim, theta, device)
    return cos[start : start + count], sin[start : start + count]


def rotation_table(count: int, dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines [at least `count`, dim / 2] of positions from 0 on, kept."""
    return _rotation_table(-(-count // _TABLE_STEP) * _TABLE_STEP, dim, theta, device)


@functools.lru_cache(maxsize=16)
def _rotation_table(reach: int, dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    # A single token takes longer to make its own than to pass through a layer.
    with torch.inference_mode(False):
        angles = rotary_angles(torch.arange(reach, device=device), dim, theta)
        return angles.cos(), angles.sin()


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed and scaled in float32, then cast back (REFERENCE 2.5)."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D], in the dtype of the matrix product that follows."""
        return rms_norm(x, self.weight, self.eps, autocast_dtype(x))

    def add(self, x: Tensor, update: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of x + update, and the sum itself."""
        return add_rms_norm(x, update, self.weight, self.eps, autocast_dtype(x))


class Gated(nn.Module):
    """The product of two maps of each cell's channels, one of them through a SiLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.maps = nn.Conv2d(inputs, 2 * outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H, W]."""
        gate, value = self.maps(x).chunk(2, dim=1)
        product: Tensor = F.silu(gate) * value
        return product

"""Layers that several stages share; each runs a kernel where there is one, and is written out in torch elsewhere.

Shapes: `B` batch, `N` tokens, `D` width, `P` rotary pairs (half a head's width).
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import gelu, rmsnorm, rotary
from kernels.tools.launch import fuses

_TABLE_STEP = 256  # positions by which a kept table of rotations grows


def sinusoid(values: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding [cos | sin] with w_i = exp(-ln(10000) i / (dim/2)) (FACTS 2.3, 3.2).

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


def product_dtype(x: Tensor) -> torch.dtype:
    """What the next matrix product of `x` computes in: a kernel that writes this type saves a pass to cast."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding on interleaved pairs (x0, x1), (x2, x3), ... in float32 (FACTS 1.5, 2.5).

    Args:
        x: [..., N, 2P].
        cos, sin: [N, P] float32, broadcast over the leading dimensions.

    Returns:
        The rotated tensor, same shape and dtype as `x`.
    """
    # Tables that differ from row to row have no kernel.
    if x.ndim == 4 and cos.ndim == 2 and fuses(x):
        return rotary.rotate(x, cos, sin)
    pairs = x.float().unflatten(-1, (-1, 2))
    even, odd = pairs.unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


def rotate_both(pair: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """`rotate` of queries and keys, [2, ..., N, 2P], in as few passes as run here."""
    if fuses(pair):
        return rotate(pair[0], cos, sin), rotate(pair[1], cos, sin)
    query, key = rotate(pair, cos, sin)
    return query, key


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
    """Cosines and sines [count, dim / 2] for `rotate`, of positions from `start` on, out of a table that is kept."""
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
    """Root-mean-square norm, computed and scaled in float32, then cast back (FACTS 2.5)."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D], same dtype; on the way to a matrix product in its type where a kernel runs."""
        if fuses(x):
            return rmsnorm.rms_norm(x.contiguous(), self.weight, self.eps, product_dtype(x))
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)

    def add(self, x: Tensor, update: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of x + update, and the sum itself."""
        if fuses(x):
            dtype = product_dtype(x)
            return rmsnorm.add_rms_norm(x.contiguous(), update.contiguous(), self.weight, self.eps, dtype)
        total = x + update
        return self(total), total


def gated_gelu(gate: Tensor, up: Tensor) -> Tensor:
    """gelu_tanh(gate) up, all [..., D] (FACTS 2.5)."""
    if fuses(gate):
        return gelu.gated_gelu(gate.flatten(0, -2), up.flatten(0, -2)).view(gate.shape)
    return F.gelu(gate, approximate="tanh") * up


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

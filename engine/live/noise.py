"""Random numbers that depend on what they are for, not on what was drawn before.

Noise of one place in a video is the same however often, in whatever order and on whatever device it is needed.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def _generator(key: tuple[str | int, ...]) -> torch.Generator:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def normal(shape: tuple[int, ...], *key: str | int) -> Tensor:
    """Gaussian noise of `shape`, float32 on the CPU, the same for the same `key`."""
    return torch.randn(shape, generator=_generator(key), device="cpu")


def uniform(shape: tuple[int, ...], *key: str | int) -> Tensor:
    """Numbers in [0, 1) of `shape`, float32 on the CPU, the same for the same `key`."""
    return torch.rand(shape, generator=_generator(key), device="cpu")

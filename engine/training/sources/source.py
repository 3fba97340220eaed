"""Samples of captioned videos, drawn or read from files.

Samples depend only on the given random numbers. Held-out samples never occur in training.
Shapes: `B` samples, `F` frames, `T` semantic or latent frames, `D` feature channels, `h` x `w` feature grid.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def pixels(video: Tensor) -> Tensor:
    """uint8 -> -1..1 float32."""
    return video.float() / 127.5 - 1.0


def psnr(error: Tensor) -> float:
    """dB of squared errors over a range of 2."""
    return float(10 * torch.log10(4.0 / error.detach().mean()))


def crop_start(rng: random.Random, size: int, crop: int, middle: float | None) -> int:
    """First of `crop` pixels or cells of `size`, with `middle` in the middle if possible; random for None."""
    low = rng.uniform(0, size - crop) if middle is None else middle - crop / 2
    return int(min(max(low, 0), size - crop))


@dataclass(frozen=True, slots=True)
class CaptionedGops:
    """GOPs for the planner, all with contexts of one length."""

    context: Tensor | None  # [B, T, D, h, w] features of the GOP before or of its first frames; None: a video starts
    features: Tensor  # [B, T, D, h, w] of whole GOPs
    captions: list[str]


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a video with at most one caption change."""

    video: Tensor  # uint8 [1, F, 3, H, W], without frames of the segment that it continues
    features: Tensor  # [T, D, h, w] of the extractor or the teacher
    mask: Tensor  # [T, h, w] share of each cell covered by subjects; 0 if unknown
    captions: tuple[str, str]  # before and after the change
    change: int  # first latent under the second caption; T where nothing changes
    static: tuple[bool, bool]  # under each caption: only subjects move; False if unknown
    starts: bool  # it is the start of a video
    following: Any = None  # where the source continues the video; None at its end
    # Frame numbers [F], whole or between two, and a scale -> uint8 [F, 3, scale H, scale W]; None if it is not drawn.
    redraw: Callable[[Tensor, int], Tensor] | None = None

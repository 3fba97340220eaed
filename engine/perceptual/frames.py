"""Decoded video to I420 planes, on the device or on the host.

BT.601, limited range; luma rounds to nearest, chroma is the mean of 2x2 pixels, rounded to nearest.
Shapes: `F` frames, `H` x `W` picture size, both even.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kernels.planes import rgb_to_i420


def to_planes(video: Tensor) -> Tensor:
    """The planes of `to_host`, on the device: uint8 [F, 3H/2, W]."""
    if len(video) != 1:
        raise ValueError(f"{len(video)} videos given; frames of one go to the host at a time")
    return rgb_to_i420(video[0].transpose(0, 1))


def to_host(video: Tensor) -> npt.NDArray[np.uint8]:
    """Video [1, F, 3, H, W] in -1..1, clamped to that -> planes Y, U, V of each frame [F, 3H/2, W], new memory.

    Raises:
        ValueError: if H or W is odd, or there is more than one video.
    """
    return cast("npt.NDArray[np.uint8]", to_planes(video).cpu().numpy())


def shrunk(video: Tensor, scale: int) -> Tensor:
    """Pictures, uint8 [..., 3, scale H, scale W] -> [..., 3, H, W]: means of scale x scale pixels, rounded."""
    if scale == 1:
        return video
    blocks: Tensor = video.unflatten(-2, (-1, scale)).unflatten(-1, (-1, scale))
    return blocks.float().mean((-3, -1)).add_(0.5).to(torch.uint8)

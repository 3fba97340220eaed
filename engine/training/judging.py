"""Figures of finished videos: what they show, how they change, how far they are from true ones.

Shapes: `V` videos, `F` frames, `H` x `W` pixels, `D` features.
"""

from __future__ import annotations

import math

import av
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as nnf
from torch import Tensor

from engine.semantic.theia import Theia
from engine.training import reading
from engine.training.captions import Label

CLIP_FRAMES = 49  # what one reading looks at, about 6 s


def to_rgb(i420: npt.NDArray[np.uint8]) -> Tensor:
    """Planes [F, 3H/2, W] as a viewer gets them -> uint8 [F, 3, H, W]."""
    pictures = [av.VideoFrame.from_ndarray(frame, format="yuv420p").to_ndarray(format="rgb24") for frame in i420]
    stacked: Tensor = torch.from_numpy(np.stack(pictures))
    return stacked.permute(0, 3, 1, 2)


@torch.no_grad()
def features(theia: Theia, clip: Tensor) -> Tensor:
    """uint8 [F, 3, H, W] -> features [1, T, D, h, w] of every fourth frame."""
    seen: Tensor = theia(clip[None, :: reading.FRAMES_PER_STEP])
    return seen.float()


def shares(rows: list[dict[str, bool]]) -> dict[str, dict[str, float]]:
    """Share of right words of each kind, with the half width of its 95 % interval (Wilson)."""
    result = {}
    for name in rows[0]:
        n, right = len(rows), sum(row[name] for row in rows)
        share, z = right / n, 1.96
        half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
        result[name] = {"share": round(share, 4), "half_width_95": round(half, 4), "n": n}
    return result


def judge(theia: Theia, clip: Tensor, label: Label) -> dict[str, bool]:
    """Which words of a label a clip [F, 3, H, W] shows."""
    return reading.read(features(theia, clip))[0].right(label)


def sharpness(clip: Tensor) -> float:
    """Mean absolute Laplacian of the grey picture, in grey levels."""
    grey = clip.float().mean(1, keepdim=True)
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    return float(nnf.conv2d(grey, kernel).abs().mean())


def mean_colour(clip: Tensor) -> list[float]:
    """Mean red, green and blue, in levels of 255."""
    return clip.float().mean((0, 2, 3)).tolist()


def change_of_frames(clip: Tensor) -> Tensor:
    """Mean absolute change from each frame to the next, [F - 1]."""
    return (clip[1:].float() - clip[:-1].float()).abs().mean((1, 2, 3))


def summary(features_: Tensor) -> Tensor:
    """One vector [2 D] of a clip's features [1, T, D, h, w]: their mean and spread."""
    return torch.cat([features_.mean((0, 1, 3, 4)), features_.std((0, 1, 3, 4))])


def frechet(first: Tensor, second: Tensor) -> float:
    """Fréchet distance of two sets of vectors [V, D], each taken as a Gaussian."""
    means = [rows.double().mean(0) for rows in (first, second)]
    spreads = [torch.cov(rows.double().T) for rows in (first, second)]
    roots = torch.linalg.eigvals(spreads[0] @ spreads[1]).real.clamp(min=0).sqrt().sum()
    gap = (means[0] - means[1]).square().sum()
    return float(gap + spreads[0].trace() + spreads[1].trace() - 2 * roots)

"""The judge of finished videos: words that they show, changes from frame to frame, distance from true videos.

Figures come with the half width of their 95 % interval over videos.
Shapes: `V` videos, `F` frames, `H` x `W` pixels, `D` features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as nnf
from torch import Tensor

from engine.config import FRAMES_PER_LATENT
from engine.semantic import reading
from engine.semantic.reading import Reading
from engine.semantic.theia import Theia
from engine.training.world.captions import Label
from engine.video import video_file

CLIP_FRAMES = 49  # of one reading, about 6 s
Z_95 = 1.96  # standard errors in half a 95 % interval
RESAMPLES = 50  # for the interval of a Fréchet distance

Figure = dict[str, float]


def to_rgb(i420: npt.NDArray[np.uint8]) -> Tensor:
    """I420 frames [F, 3H/2, W], as a viewer gets them, to uint8 [F, 3, H, W]."""
    return torch.from_numpy(np.stack([video_file.to_rgb(frame) for frame in i420])).permute(0, 3, 1, 2)


@torch.no_grad()
def features(theia: Theia, clip: Tensor) -> Tensor:
    """Features [1, T, D, h, w] of every fourth frame of a clip, uint8 [F, 3, H, W]."""
    seen: Tensor = theia(clip[None, ::FRAMES_PER_LATENT])
    return seen.float()


def shares(rows: Sequence[dict[str, bool]]) -> dict[str, Figure]:
    """Share of right words of each kind, over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: share([row[name] for row in rows if name in row]) for name in names}


def share(right: Sequence[bool]) -> Figure:
    """Share of true values, with Wilson's interval."""
    n, part = len(right), sum(right) / len(right)
    half = Z_95 / (1 + Z_95**2 / n) * math.sqrt(part * (1 - part) / n + Z_95**2 / (4 * n * n))
    return {"share": round(part, 4), "half_width_95": round(half, 4), "n": n}


def mean(values: Sequence[float]) -> dict[str, float | None]:
    """Mean of one value a video; a single video has no interval."""
    rows = np.asarray(values, float)
    half = _half_width(rows) if len(rows) > 1 else None
    return {"mean": float(rows.mean()), "half_width_95": half, "n": len(rows)}


def ratio(tops: Sequence[float], bottoms: Sequence[float]) -> Figure:
    """Mean of `tops` over mean of `bottoms`, whose values belong together in pairs."""
    top, bottom = np.asarray(tops, float), np.asarray(bottoms, float)
    quotient = float(top.mean() / bottom.mean())
    half = _half_width(top - quotient * bottom) / abs(float(bottom.mean()))
    return {"ratio": quotient, "half_width_95": half, "n": len(top)}


def decibels(errors: Sequence[float]) -> Figure:
    """Peak signal-to-noise ratio in dB, of mean square errors of values in a range of 2."""
    rows = np.asarray(errors, float)
    half = 10 / math.log(10) * _half_width(rows) / float(rows.mean())
    return {"db": 10 * math.log10(4 / float(rows.mean())), "half_width_95": half, "n": len(rows)}


def _half_width(rows: npt.NDArray[np.float64]) -> float:
    """Half width of the 95 % interval of the mean of two rows or more."""
    return Z_95 * float(rows.std(ddof=1)) / math.sqrt(len(rows))


def judge(theia: Theia, clip: Tensor, label: Label) -> dict[str, bool]:
    """For each word of `label` whether a clip [F, 3, H, W] shows it."""
    return right(reading.read(features(theia, clip))[0], label)


def right(seen: Reading, label: Label) -> dict[str, bool]:
    """For each word of `label` whether it was seen."""
    return {name: seen[name.removeprefix("fixed_")] == word for name, word in label.words.items()}


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


def flicker(clip: Tensor) -> float:
    """Mean absolute difference of each frame from the mean of its neighbours, in levels of 255."""
    frames = clip.float()
    return float((frames[1:-1] - (frames[:-2] + frames[2:]) / 2).abs().mean())


def summary(features_: Tensor) -> Tensor:
    """Mean and standard deviation of a clip's features [1, T, D, h, w], as one vector [2 D]."""
    return torch.cat([features_.mean((0, 1, 3, 4)), features_.std((0, 1, 3, 4))])


def frechet(first: Tensor, second: Tensor) -> float:
    """Fréchet distance of two sets of vectors [V, D], each taken as Gaussian."""
    means = [rows.double().mean(0) for rows in (first, second)]
    spreads = [torch.cov(rows.double().T) for rows in (first, second)]
    roots = torch.linalg.eigvals(spreads[0] @ spreads[1]).real.clamp(min=0).sqrt().sum()
    gap = (means[0] - means[1]).square().sum()
    return float(gap + spreads[0].trace() + spreads[1].trace() - 2 * roots)


def frechet_figure(first: Tensor, second: Tensor, seed: int) -> Figure:
    """The Fréchet distance, with an interval from resampled videos."""
    generator = torch.Generator().manual_seed(seed)

    def resampled(rows: Tensor) -> Tensor:
        return rows[torch.randint(len(rows), (len(rows),), generator=generator)]

    values = [frechet(resampled(first), resampled(second)) for _ in range(RESAMPLES)]
    half = Z_95 * float(np.std(values, ddof=1))
    return {"distance": frechet(first, second), "half_width_95": half, "n": len(first)}

"""Long videos: their quality by the minute, and how much the seams between chunks show.

A *seam* is the change of the picture across a chunk's first frame, a *jump* the change across the first frame of a
latent inside a chunk, which the autoencoder alone can cause. Shapes: `F` frames, `H` x `W` pixels, `M` minutes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from engine.config import EngineConfig
from engine.live.generator import Generator
from engine.live.offline import generate_frames
from engine.semantic.theia import Theia
from engine.training.world import judge
from engine.training.world.captions import Label, caption

Values = npt.NDArray[np.float64]
Changes = tuple[Values, Values, Values]  # from frame to frame, in levels of 255: at seams, at jumps, elsewhere


def sort_changes(changes: Sequence[float], config: EngineConfig) -> Changes:
    """Sorts the mean changes to frames 1, 2, 3, ... of a video by where they lie."""
    frames, values = 1 + np.arange(len(changes)), np.asarray(changes, float)
    since = frames - config.first_chunk_frames
    seams = (since >= 0) & (since % config.chunk_frames == 0)
    jumps = ~seams & (frames % config.frames_per_latent == 1)
    return values[seams], values[jumps], values[~seams & ~jumps]


def seam_figures(videos: Sequence[Changes]) -> dict[str, judge.Figure]:
    """Seams over all other changes, and jumps over all but seams and jumps, with intervals over videos."""
    whole = [video for video in videos if len(video[0])]
    seams, jumps, others = ([float(part.mean()) for part in kind] for kind in zip(*whole, strict=True))
    inside = [float(np.concatenate(video[1:]).mean()) for video in whole]
    return {"seam_ratio": judge.ratio(seams, inside), "latent_jump_ratio": judge.ratio(jumps, others)}


@dataclass(frozen=True, slots=True)
class LongVideo:
    """A long video, judged clip by clip; one that is shorter than a minute has one."""

    prompt: str
    rows: list[list[dict[str, bool]]]  # of the clips of each minute: for each word, whether it is right
    sharpness: Values  # [M] means
    rgb: Values  # [M, 3] means, in levels of 255
    changes: Changes


def watch(generator: Generator, theia: Theia, label: Label, minutes: float, seed: int) -> LongVideo:
    """Makes and judges one video."""
    config, prompt = generator.model.config, caption(label, random.Random(0))
    rows, sharpness, rgb, changes = [], [], [], []
    before: list[Tensor] = []  # the last picture of the clip before
    clips = max(1, round(minutes * 60 * config.fps) // judge.CLIP_FRAMES)
    batches = generate_frames(generator, generator.open(prompt, seed), clips * judge.CLIP_FRAMES)
    pictures = (picture for batch in batches for picture in judge.to_rgb(batch.i420))
    for _ in tqdm(range(clips), unit="clip", desc="long video"):
        clip = torch.stack(list(islice(pictures, judge.CLIP_FRAMES)))
        rows.append(judge.judge(theia, clip, label))
        sharpness.append(judge.sharpness(clip))
        rgb.append(judge.mean_colour(clip))
        changes += judge.change_of_frames(torch.cat([*before, clip])).tolist()
        before = [clip[-1:]]
    by_minute = partial(np.array_split, indices_or_sections=max(1, round(minutes)))
    return LongVideo(
        prompt,
        [part.tolist() for part in by_minute(np.asarray(rows, object))],
        np.asarray([part.mean() for part in by_minute(np.asarray(sharpness))]),
        np.asarray([part.mean(axis=0) for part in by_minute(np.asarray(rgb))]),
        sort_changes(changes, config),
    )


def curve(videos: Sequence[LongVideo]) -> list[dict[str, Any]]:
    """Every minute over all videos of one length: right words, and changes since the first minute.

    Sharpness changes by a share of itself; of the colour channels the one that changed most counts, as a share of 255.
    """
    sharpness = [video.sharpness / video.sharpness[0] - 1 for video in videos]
    colours = [np.abs(video.rgb - video.rgb[0]).max(axis=1) / 255 for video in videos]
    return [
        {
            "minute": 1 + number,
            "words": judge.shares([row for video in videos for row in video.rows[number]]),
            "sharpness_drift": judge.mean([drift[number] for drift in sharpness]),
            "colour_drift": judge.mean([drift[number] for drift in colours]),
        }
        for number in range(len(videos[0].rows))
    ]

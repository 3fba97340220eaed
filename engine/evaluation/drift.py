"""Long videos: what becomes of them minute by minute, and how their seams look.

A *seam* is the change of the picture across a hop's first frame; a *jump* is the change across the first frame of a
latent inside a hop, which the autoencoder alone can cause and which explains part of the seams.
Shapes: `F` frames, `H` x `W` pixels.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from engine.config import FRAMES_PER_LATENT
from engine.live.generator import ChannelState, Generator
from engine.live.offline import film
from engine.semantic.theia import Theia
from engine.training.world import judge as judging
from engine.training.world.captions import Label, caption
from engine.wire.frames import FeatureFrames, FrameChunk

Without = Literal["prompt-half", "plan"]
WORDS = ("subject", "colour", "scene", "direction", "speed")
EDGES = tuple(round(0.1 * i, 1) for i in range(51))  # of the histogram, in units of the mean change inside hops


@dataclass(slots=True)
class Changes:
    """Changes from frame to frame of one video, in levels of 255, by where they lie."""

    seams: list[float] = field(default_factory=list)
    jumps: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)

    @property
    def inside(self) -> float:
        """Mean of all changes but the seams."""
        return float(np.mean(self.jumps + self.others))


class ChangeMeter:
    """Sorts a video's changes as its chunks come."""

    def __init__(self, forgetful: bool = False) -> None:
        """Every hop of a `forgetful` video begins with a latent that stands for one frame, else only the first."""
        self.changes = Changes()
        self._forgetful = forgetful
        self._last: Tensor | None = None
        self._hop, self._start, self._lone = -1, 0, 1

    def see(self, chunk: FrameChunk, rgb: Tensor) -> None:
        """Takes in a chunk and its pictures, uint8 [F, 3, H, W]."""
        begins = chunk.hop != self._hop
        if begins:
            self._lone = int(self._forgetful or self._hop < 0)
            self._hop, self._start = chunk.hop, chunk.index
        whole = rgb if self._last is None else torch.cat([self._last[None], rgb])
        first = chunk.index + chunk.frames - len(whole) + 1
        for frame, change in enumerate(judging.change_of_frames(whole).tolist(), start=first):
            if begins and frame == chunk.index:
                self.changes.seams.append(change)
            elif (frame - self._start) % FRAMES_PER_LATENT == self._lone:
                self.changes.jumps.append(change)
            else:
                self.changes.others.append(change)
        self._last = rgb[-1]


def seams(videos: Sequence[Changes]) -> dict[str, Any]:
    """Seam and jump ratios with their intervals over videos, and the histograms of all changes.

    The seam ratio compares seams with all other changes, the jump ratio compares jumps with all but seams and jumps.
    """
    whole = [video for video in videos if video.seams]
    seam = judging.ratio([float(np.mean(video.seams)) for video in whole], [video.inside for video in whole])
    jump = judging.ratio(
        [float(np.mean(video.jumps)) for video in whole], [float(np.mean(video.others)) for video in whole]
    )
    unit = float(np.mean([video.inside for video in whole]))
    histogram: dict[str, list[float]] = {"edges": list(EDGES)}
    for name in ("seams", "jumps", "others"):
        values = np.concatenate([getattr(video, name) for video in whole]) / unit
        counts = np.histogram(values.clip(max=EDGES[-1]), EDGES)[0]
        histogram[name] = (counts / len(values)).round(5).tolist()
    return {
        "seam_ratio": seam["ratio"],
        "seam_ratio_half_width_95": seam["half_width_95"],
        "latent_jump_ratio": jump["ratio"],
        "latent_jump_ratio_half_width_95": jump["half_width_95"],
        "seam_videos": seam["n"],
        "seam_histogram": histogram,
    }


@dataclass(frozen=True, slots=True)
class LongVideo:
    """One long video, judged clip after clip."""

    prompt: str
    minutes: float
    clips_a_minute: float
    rows: list[dict[str, bool]]
    sharpness: list[float]
    colours: list[list[float]]
    changes: Changes

    def minute(self, number: int) -> slice:
        """The clips of a minute, counted from 0."""
        return slice(round(number * self.clips_a_minute), max(1, round((number + 1) * self.clips_a_minute)))

    @property
    def minutes_seen(self) -> int:
        """Whole minutes, and one for a video that is shorter."""
        return max(1, int(len(self.rows) / self.clips_a_minute + 0.5))

    def figures(self) -> dict[str, Any]:
        """What becomes of it: its first and its last minute, and every one between."""
        curve = [self._of_minute(number) for number in range(self.minutes_seen)]
        first, last = curve[0], curve[-1]
        colours = np.abs(np.subtract(last["rgb"], first["rgb"]))
        return {
            "prompt": self.prompt,
            "minutes": self.minutes,
            "first_minute": {name: first[name] for name in WORDS},
            "last_minute": {name: last[name] for name in WORDS},
            "sharpness_drift": last["sharpness"] / first["sharpness"] - 1,
            "colour_drift": float(colours.max() / 255),
            "seam_ratio": self._seam_ratio(),
            "curve": curve,
        }

    def _of_minute(self, number: int) -> dict[str, Any]:
        part = self.minute(number)
        # The last minute may end within a clip that was not judged.
        rows = self.rows[part] or self.rows[-1:]
        return {
            "minute": number,
            **{word: float(np.mean([row[word] for row in rows])) for word in WORDS},
            "rgb": np.mean(self.colours[part] or self.colours[-1:], axis=0).round(2).tolist(),
            "sharpness": float(np.mean(self.sharpness[part] or self.sharpness[-1:])),
        }

    def _seam_ratio(self) -> float:
        return float(np.mean(self.changes.seams)) / self.changes.inside if self.changes.seams else math.nan


def forget(generator: Generator, channel: ChannelState) -> None:
    """Lets the next hop go on with the plan alone, as if nothing had been rendered before it."""
    channel.features, channel.prompt_half = channel.features[:, :0], channel.prompt_half[:, :0]
    channel.vae = generator.model.vae.new_state()


def chunks(
    generator: Generator, prompt: str, seed: int, frames: int, without: Without | None = None
) -> Iterator[FrameChunk]:
    """`frames` frames of a new video in order, or some more of one `without` a half of the method.

    Without prompt halves every hop is rendered as its first; without a plan the renderer sees features that are 0.
    """
    if without == "plan":
        yield from _unplanned(generator, prompt, seed, frames)
        return
    channel = generator.open(prompt, seed)
    if without is None:
        yield from film(generator, channel, frames)
        return
    while channel.frame < frames:
        forget(generator, channel)
        yield from film(generator, channel, generator.model.config.first_hop_frames)


def _unplanned(generator: Generator, prompt: str, seed: int, frames: int) -> Iterator[FrameChunk]:
    tokenizer, device = generator.model.config.tokenizer, generator.model.device
    with generator.model.computing():
        state = generator.start(generator.model.text.embed(prompt), seed)
    while state.frame < frames:
        count = generator.new_latents(state)
        nothing = torch.zeros(1, count, tokenizer.feature_dim, *tokenizer.grid, device=device)
        for unit in generator.render(state, FeatureFrames(nothing, state.latent)):
            unit.mark.wait()
            if unit.chunk is not None:
                yield unit.chunk


def watch(
    generator: Generator,
    theia: Theia,
    label: Label,
    minutes: float,
    seed: int,
    judged: Callable[[], object],
    without: Without | None = None,
) -> LongVideo:
    """Makes and judges one video, `without` as for `chunks`; `judged` is called after every clip."""
    prompt = caption(label, random.Random(0))
    fps = generator.model.config.fps
    meter = ChangeMeter(forgetful=without == "prompt-half")
    clips_a_minute = 60 * fps / judging.CLIP_FRAMES
    video = LongVideo(prompt, minutes, clips_a_minute, [], [], [], meter.changes)
    waiting: list[Tensor] = []
    frames = max(judging.CLIP_FRAMES, round(minutes * 60 * fps))
    for chunk in chunks(generator, prompt, seed, frames, without):
        rgb = judging.to_rgb(chunk.i420)
        meter.see(chunk, rgb)
        waiting += list(rgb)
        if len(waiting) >= judging.CLIP_FRAMES:
            clip = torch.stack(waiting[: judging.CLIP_FRAMES])
            waiting = waiting[judging.CLIP_FRAMES :]
            video.rows.append(judging.judge(theia, clip, label))
            video.sharpness.append(judging.sharpness(clip))
            video.colours.append(judging.mean_colour(clip))
            judged()
    return video


def curve(videos: Sequence[LongVideo]) -> list[dict[str, Any]]:
    """Every minute over all videos: words with their intervals over clips, sharpness and colour against minute 0.

    The drift of sharpness and colour of a minute is the mean of the videos' own, with its interval over videos.
    """
    each = [video.figures()["curve"] for video in videos]
    points = []
    for number in range(min(len(one) for one in each)):
        rows = [row for video in videos for row in video.rows[video.minute(number)] or video.rows[-1:]]
        first, now = [one[0] for one in each], [one[number] for one in each]
        gaps = [np.abs(np.subtract(b["rgb"], a["rgb"])).max() / 255 for a, b in zip(first, now, strict=True)]
        sharper = [b["sharpness"] / a["sharpness"] - 1 for a, b in zip(first, now, strict=True)]
        points.append(
            {
                "minute": number,
                **judging.shares(rows),
                "colour_drift": judging.mean(gaps),
                "sharpness_drift": judging.mean(sharper),
            }
        )
    return points

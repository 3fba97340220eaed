"""The drawn world as a source of training data: endless, with exact features.

Shapes: `B` samples, `F` frames, `T` semantic or latent frames, `D` feature channels, `h` x `w` feature grid.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from engine.config import FRAMES_PER_LATENT, EngineConfig
from engine.perceptual.frames import to_host
from engine.semantic import world_maps
from engine.text.world_tables import TABLES
from engine.training.sources.source import CaptionedGops, Segment, pixels
from engine.training.world import drawing as world
from engine.training.world import teacher
from engine.training.world.captions import Label, caption, hardest_label, random_label
from engine.training.world.spec import Spec
from engine.video.video_file import VideoFile

FPS = 8.0  # of a dataset
LATEST_LATENT = 150  # at which samples begin
CHANGE_SHARE = 0.3  # of the segments have a caption change
WEIGHED_GOPS = 200  # for the variance of maps
LEAST_VARIANCE = 1e-3  # of a map that few worlds have


def hard_to_plan(label: Label) -> int:
    """Hardness for the planner: two directions, two subjects, slow movement."""
    return 2 * label.two_ways + (label.relation is not None) + (label.moves and label.speed == "slow")


def hard_to_render(label: Label) -> int:
    """Hardness for the renderer: bounces, two subjects, a panning camera."""
    return (label.direction == "bounce") + (label.relation is not None) + (label.camera != "fixed")


def hard_to_sketch(label: Label) -> int:
    """Hardness for the sketch: two subjects, movement, wings."""
    return 2 * (label.relation is not None) + label.moves + (label.subject in ("bird", "airplane"))


class WorldSource:
    """Samples of the world; each training label is the hardest of some random ones."""

    kinds: ClassVar[dict[str, float]] = {"first": 0.25, "next": 0.35, "changed": 0.4}

    def __init__(self, config: EngineConfig, device: str) -> None:
        self.config, self.device = config, device
        self.hardness, self.draws = hard_to_render, 2  # for segments; number of random labels

    def clip(self, rng: random.Random, frames: int, held_out: bool = False) -> tuple[Tensor, tuple[float, float]]:
        """Consecutive frames, uint8 [1, F, 3, H, W], and x and y in px of the subject in the middle of the clip."""
        spec = world.sample([random_label(rng, held_out)], rng).to(self.device)
        numbers = rng.randrange(400) + torch.arange(frames, device=self.device)[None]
        x, y = world.centres(spec, numbers)[0, frames // 2].tolist()
        return world.draw(spec, numbers), (x, y)

    def features(self, rng: random.Random, count: int, frames: int, held_out: bool = False) -> Tensor:
        """[B, T, D, h, w] of consecutive semantic frames."""
        spec = world.sample([random_label(rng, held_out) for _ in range(count)], rng).to(self.device)
        return teacher.maps(spec, self._begin(rng, count, 0.7) + self._latents(frames))

    def channel_weights(self) -> Tensor:
        """Weights of the squared errors of feature channels, [D, 1, 1], by variance and share of the maps."""
        frames = self.config.tokenizer.frames
        variance = self.features(random.Random("channel weights"), WEIGHED_GOPS, frames).var(dim=(0, 1, 3, 4))
        weights = torch.empty_like(variance)
        shares: dict[str, float] = {name: row["share"] for name, row in TABLES["maps"].items()}
        for name, share in shares.items():
            maps = world_maps.channel(name)
            weights[maps] = share / (variance[maps].mean().clamp(min=LEAST_VARIANCE) * world_maps.WIDTHS[name])
        return (weights * len(weights) / sum(shares.values()))[:, None, None]

    def gops(self, rng: random.Random, kind: str, count: int, held_out: bool = False) -> CaptionedGops:
        """GOPs of one of the `kinds`; labels of "changed" ones change after a part of the context."""
        frames = self.config.tokenizer.frames
        length = {"first": 0, "next": frames, "changed": rng.randrange(1, frames)}[kind]
        before = [self._label(rng, held_out, hard_to_plan) for _ in range(count)]
        after = [self._label(rng, held_out, hard_to_plan) for _ in range(count)] if kind == "changed" else before
        spec = world.sample(before, rng).to(self.device)
        where = self._begin(rng, count, 0.5 if length else 0.0) + self._latents(length + frames)
        planned = spec
        if kind == "changed":
            # From the first video frame of the first latent of the GOP on.
            planned = world.relabel(spec, after, where[:, length].float() - (FRAMES_PER_LATENT - 1))
        context = teacher.maps(spec, where[:, :length]) if length else None
        captions = [caption(label, rng) for label in after]
        return CaptionedGops(context, teacher.maps(planned, where[:, length:]), captions)

    def segment(self, rng: random.Random, before: Segment | None = None, held_out: bool = False) -> Segment:
        """A window and two chunks, which overlap the segment `before` by `context_length` latents.

        Captions of training segments may change at the start of a chunk.
        """
        context, chunk = self.config.context_length, self.config.chunk_length
        length = context + 3 * chunk
        if before is None:
            label = self._label(rng, held_out, self.hardness)
            spec, text = world.sample([label], rng).to(self.device), caption(label, rng)
            seen, start = 0, 1 - FRAMES_PER_LATENT  # the first latent has one frame
        else:
            spec, seen = before.following
            label, text = spec.labels[0], before.captions[1]
            start = seen - context * FRAMES_PER_LATENT
        end, captions, change, after = start + length * FRAMES_PER_LATENT, (text, text), length, spec
        turn = end
        if not held_out and rng.random() < CHANGE_SHARE:
            new = self._label(rng, held_out, self.hardness)
            captions = text, caption(new, rng)
            change = rng.randrange(context, length, chunk)
            turn = start + change * FRAMES_PER_LATENT
            after = world.relabel(spec, [new], torch.tensor([turn], device=self.device))

        def shown(make: Callable[[Spec, Tensor], Tensor], numbers: Tensor) -> Tensor:
            parts = ((spec, numbers[numbers < turn]), (after, numbers[numbers >= turn]))
            return torch.cat([make(one, part[None]) for one, part in parts if len(part)], dim=1)

        def redraw(numbers: Tensor, scale: int) -> Tensor:
            return shown(partial(world.draw, scale=scale), numbers)[0]

        video = shown(world.draw, torch.arange(seen, end, device=self.device))
        last_frames = torch.arange(start + FRAMES_PER_LATENT - 1, end, FRAMES_PER_LATENT, device=self.device)
        maps = shown(teacher.maps, last_frames)[0]
        static = label.camera == "fixed", after.labels[0].camera == "fixed"
        masks, following = teacher.covered(maps), (after, end)
        return Segment(video, maps, masks, captions, change, static, before is None, following, redraw)

    def _label(self, rng: random.Random, held_out: bool, hardness: Callable[[Label], int]) -> Label:
        return random_label(rng, held_out) if held_out else hardest_label(rng, hardness, self.draws)

    def _begin(self, rng: random.Random, count: int, share: float) -> Tensor:
        """[B, 1] random first video frames; a `share` of them is not 0."""
        latents = [[rng.randrange(LATEST_LATENT) * (rng.random() < share)] for _ in range(count)]
        return torch.tensor(latents, device=self.device) * FRAMES_PER_LATENT

    def _latents(self, count: int) -> Tensor:
        """Video frames of semantic frames, [T], relative to the first."""
        return torch.arange(count, device=self.device) * FRAMES_PER_LATENT


def write_dataset(folder: Path, clips: int, frames: int, seed: int) -> None:
    """Writes clips of the world without held-out labels as a folder of captioned videos. Raises ValueError for none."""
    if min(clips, frames) < 1:
        raise ValueError(f"clips {clips} and frames {frames} must be at least 1")
    folder.mkdir(parents=True, exist_ok=True)
    for number in tqdm(range(clips), unit="clip", desc=folder.name):
        rng = random.Random(f"dataset {seed} {number}")
        label = random_label(rng)
        video = world.draw(world.sample([label], rng), torch.arange(frames)[None])
        with VideoFile(folder / f"{number:06d}.mp4", world_maps.WIDTH_PX, world_maps.HEIGHT_PX, FPS) as file:
            file.write(to_host(pixels(video)))
        (folder / f"{number:06d}.txt").write_text(caption(label, rng) + "\n", encoding="utf-8")

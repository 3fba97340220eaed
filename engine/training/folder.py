"""Folders of captioned videos as stages learn from them, for any preset, and stage `autoencoder` on them.

Nothing is known of these videos but pixels and captions, so features are the extractor's. A tenth of the videos is held
out where there are ten.
Shapes: `F` frames, `T` semantic or latent frames, `D` feature channels, `h` x `w` feature grid, `H` x `W` pixels.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as nnf
from torch import Tensor

from engine.config import FRAMES_PER_LATENT, EngineConfig
from engine.perceptual.mini.vae import TinyVAE, TinyVAEConfig
from engine.semantic.theia import Theia
from engine.training.stages.autoencoder import LATENTS, AutoencoderStage, pixels, psnr
from engine.training.video_folder import VideoFolder

HELD_OUT_EVERY = 10  # videos
HELD_OUT_SAMPLES = 4
START_STEP = 4  # frames from one place where a stretch may begin to the next: some come again, and are kept
KEPT_BYTES = 2 << 30  # of videos, and of each kind of what was made of the stretches seen last


def frames_of(semantic: int) -> int:
    """Video frames that so many semantic or latent frames from the start of a video stand for."""
    return 1 + (semantic - 1) * FRAMES_PER_LATENT


@dataclass(frozen=True, slots=True)
class Place:
    """A stretch of a video: its number, its first frame, and how many semantic frames long it is."""

    number: int
    start: int
    semantic: int


Key = TypeVar("Key")
Made = TypeVar("Made")


def kept(make: Callable[[Key], Made], item_bytes: int) -> Callable[[Key], Made]:
    """The same function, which makes nothing twice as long as KEPT_BYTES suffice for items of about `item_bytes`."""
    return lru_cache(max(1, KEPT_BYTES // item_bytes))(make)


class Footage:
    """Random stretches of a folder's videos, in a preset's size, and their features."""

    def __init__(self, folder: Path, config: EngineConfig, extractor: Theia | TinyVAE, device: str) -> None:
        """`extractor` has its weights, where features are needed. Raises ValueError as `VideoFolder` does."""
        least = frames_of(max(config.tokenizer.frames, config.prompt_latents + config.new_latents))
        self.videos = VideoFolder(folder, config.height_px, config.width_px, config.fps, least)
        self.extractor, self.device = extractor.requires_grad_(False).to(device).eval(), device
        tokenizer = config.tokenizer
        self.whole = kept(self._whole, 3 * config.height_px * config.width_px * max(self.videos.lengths))
        self.features = kept(self._features, 4 * tokenizer.frames * tokenizer.feature_dim * math.prod(tokenizer.grid))

    def pick(self, rng: random.Random, held_out: bool) -> int:
        """Number of a video; of any where there are too few to hold some out."""
        every = range(len(self.videos))
        chosen = [number for number in every if (number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == held_out]
        return rng.choice(chosen or list(every))

    def fits(self, number: int, semantic: int) -> bool:
        """Whether a video has so many semantic frames."""
        return self.videos.lengths[number] >= frames_of(semantic)

    def place(self, number: int, semantic: int, rng: random.Random) -> Place:
        """A random stretch of a video that is long enough."""
        starts = self.videos.lengths[number] - frames_of(semantic)
        return Place(number, START_STEP * rng.randrange(starts // START_STEP + 1), semantic)

    def caption(self, place: Place) -> str:
        return self.videos.entries[place.number].caption

    def video(self, place: Place) -> Tensor:
        """uint8 [1, F, 3, H, W]."""
        return self.stretch(place.number, place.start, frames_of(place.semantic))[None].to(self.device)

    def stretch(self, number: int, start: int, frames: int) -> Tensor:
        """uint8 [F, 3, H, W]. Videos that all fit into KEPT_BYTES are read once, others each time."""
        videos = self.videos
        if 3 * videos.height * videos.width * sum(videos.lengths) > KEPT_BYTES:
            return videos.cut(number, start, frames)
        return self.whole(number)[start : start + frames]

    def _whole(self, number: int) -> Tensor:
        """uint8 [F, 3, H, W]."""
        return self.videos.cut(number, 0, self.videos.lengths[number])

    @torch.no_grad()
    def _features(self, place: Place) -> Tensor:
        """[1, T, D, h, w] float32 of the first frame and every fourth after it.

        An autoencoder gives its latents, 2x2 neighbours side by side.
        """
        video = self.video(place)
        with torch.autocast(self.device, torch.bfloat16):
            if isinstance(self.extractor, TinyVAE):
                latents = self.extractor.encode(pixels(video), self.extractor.new_state())
                return nnf.pixel_unshuffle(latents[0], 2)[None].float()
            features: Tensor = self.extractor(video[:, ::FRAMES_PER_LATENT])
        return features.float()


class FootageAutoencoder(AutoencoderStage):
    """Trains `TinyVAE` on crops from anywhere in the videos."""

    def __init__(self, config: TinyVAEConfig, footage: Footage, seed: int, weights: Path) -> None:
        self.footage = footage
        super().__init__(config, seed, footage.device, weights, self.anywhere)

    def anywhere(self, rng: random.Random, count: int, held_out: bool = False) -> tuple[Tensor, Tensor]:
        """Frames uint8 [1, F, 3, H, W] of a random place, and where to look [2] in px, which is anywhere."""
        videos = self.footage.videos
        number = self.footage.pick(rng, held_out)
        video = self.footage.stretch(number, rng.randrange(videos.lengths[number] - count + 1), count)
        return video[None], torch.tensor([rng.uniform(0, videos.width), rng.uniform(0, videos.height)])

    def evaluate(self) -> dict[str, float]:
        """PSNR of held-out videos, in dB."""
        rng, errors = random.Random(f"autoencoder held out {self.seed}"), []
        for _ in range(HELD_OUT_SAMPLES):
            video = pixels(self.anywhere(rng, frames_of(LATENTS), held_out=True)[0].to(self.device))
            with torch.autocast(self.device, torch.bfloat16):
                again = self.vae.decode(self.vae.encode(video, self.vae.new_state()), self.vae.new_state())
            errors.append((again.float().clamp(-1, 1) - video).square().mean())
        return {"psnr_db": psnr(torch.stack(errors))}

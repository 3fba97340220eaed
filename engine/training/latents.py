"""A pool of encoded clips for the renderer's training: latents, features and captions of drawn worlds.

Drawing and encoding cost more than a training step, so clips stay in the pool for a while and are replaced one by one.
Shapes: `T` latent frames, `C` latent channels, `D` feature channels, `h` x `w` latent size, `g` x `k` feature grid.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from engine.config import FRAMES_PER_LATENT, EngineConfig
from engine.perceptual.tiny_vae import TinyVAE, TinyVAEState
from engine.semantic.tokenizer import SemanticTokenizer
from engine.training import teacher, world
from engine.training.autoencoder import pixels
from engine.training.captions import Label, caption, random_label

CLIP_LATENTS = 25
CHANGE_SHARE = 0.2  # of the clips change their label once

# Features [T, D, g, k] of a clip and the frame where its label changes -> the same through the tokenizer.
Quantise = Callable[[Tensor, int, random.Random], Tensor]


@dataclass(frozen=True, slots=True)
class Clip:
    """One encoded video."""

    latents: Tensor  # [T, C, h, w] float32
    features: Tensor  # [T, D, g, k], as the renderer will see them
    mask: Tensor  # [T, g, k] the subject's true coverage
    captions: tuple[str, str]  # before and after the change
    labels: tuple[Label, Label]
    change: int  # first latent under the second caption; CLIP_LATENTS where nothing changes


@dataclass(frozen=True, slots=True)
class Window:
    """What one sample of the renderer's training is cut from; `prompt` latents come first."""

    latents: Tensor  # [T, C, h, w]
    features: Tensor  # [T, D, g, k]
    mask: Tensor  # [T, g, k]
    caption: str
    label: Label


class LatentPool:
    """Clips, drawn from a seed, that a training run cuts its windows from."""

    def __init__(
        self,
        config: EngineConfig,
        vae: TinyVAE,
        quantise: Callable[[Tensor, int, random.Random], Tensor] | None,
        size: int,
    ) -> None:
        """`quantise` None leaves the features as the teacher gives them."""
        self.config, self.vae, self.quantise, self.size = config, vae, quantise, size
        self.clips: list[Clip] = []

    def refresh(self, rng: random.Random) -> None:
        """Add a clip, in place of the oldest when the pool is full."""
        self.clips.append(self.make(rng))
        del self.clips[: -self.size]

    @torch.no_grad()
    def make(self, rng: random.Random, held_out: bool = False, changes: bool = True) -> Clip:
        """Draw, describe and encode one clip."""
        device = next(self.vae.parameters()).device
        labels = (random_label(rng, held_out), random_label(rng, held_out))
        change = rng.randrange(self.config.prompt_latents, CLIP_LATENTS - self.config.new_latents)
        if not changes or rng.random() > CHANGE_SHARE:
            labels, change = (labels[0], labels[0]), CLIP_LATENTS
        start = rng.choice((0, rng.randrange(400)))
        frames = start + torch.arange(1 + (CLIP_LATENTS - 1) * FRAMES_PER_LATENT, device=device)[None]
        spec = world.sample([labels[0]], rng).to(device)
        cut = max(0, (change - 1) * FRAMES_PER_LATENT + 1)  # first video frame of latent `change`
        after = world.relabel(spec, [labels[1]], frames[:, min(cut, frames.shape[1] - 1)])
        parts = [(spec, frames[:, :cut]), (after, frames[:, cut:])]
        video = torch.cat([world.draw(s, f) for s, f in parts if f.shape[1]], dim=1)
        with torch.autocast(device.type, torch.bfloat16):
            latents = self.vae.encode(pixels(video), TinyVAEState())[0].float()
        semantic = frames[:, ::FRAMES_PER_LATENT]
        halves = [(spec, semantic[:, :change]), (after, semantic[:, change:])]
        true = torch.cat([teacher.maps(s, f) for s, f in halves if f.shape[1]], dim=1)[0]
        features = true if self.quantise is None else self.quantise(true, change, rng)
        words = (caption(labels[0], rng), caption(labels[1], rng))
        return Clip(latents, features, true[:, 0], words, labels, change)

    def window(self, rng: random.Random, prompted: bool) -> Window:
        """A random window: with its prompt half, or the first frames of a video without one."""
        clip = rng.choice(self.clips)
        config = self.config
        if not prompted:
            return cut(clip, 0, config.prompt_latents)
        length = config.prompt_latents + config.new_latents
        if clip.change < CLIP_LATENTS and rng.random() < 0.7:
            start = clip.change - config.prompt_latents
        else:
            start = rng.choice((0, rng.randrange(CLIP_LATENTS - length + 1)))
        return cut(clip, start, length)


def cut(clip: Clip, start: int, length: int) -> Window:
    """Latents `start` to `start + length` of a clip, with the caption that holds at the end."""
    part = slice(start, start + length)
    second = int(start + length > clip.change)
    return Window(clip.latents[part], clip.features[part], clip.mask[part], clip.captions[second], clip.labels[second])


def through_tokens(tokenizer: SemanticTokenizer) -> Quantise:
    """Features as the planner's codes would give them, in groups of a random phase that restart at a change."""

    @torch.no_grad()
    def quantise(features: Tensor, change: int, rng: random.Random) -> Tensor:
        whole = tokenizer.config.frames
        cuts = {0, min(change, len(features)), len(features)}
        cuts |= set(range(rng.randrange(1, whole + 1), change, whole))
        cuts |= set(range(change, len(features), whole))
        edges = sorted(cut for cut in cuts if cut <= len(features))
        groups = [features[None, start:end] for start, end in pairwise(edges)]
        return torch.cat([tokenizer.decode(tokenizer.encode(group))[0].float() for group in groups])

    return quantise

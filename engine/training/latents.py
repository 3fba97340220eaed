"""A pool of encoded clips for the renderer's training: latents, features and captions of drawn worlds.

Drawing and encoding cost more than a training step, so clips stay in the pool for a while and are replaced one by one,
many by the next part of a video: what the model itself made of it, hop by hop, grows old there, flaws included.
Shapes: `T` latent frames, `C` latent channels, `D` feature channels, `h` x `w` latent size, `g` x `k` feature grid.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from engine.config import FRAMES_PER_LATENT, EngineConfig
from engine.perceptual.tiny_vae import TinyVAE, TinyVAEState
from engine.semantic.tokenizer import SemanticTokenizer
from engine.training import teacher, world
from engine.training.autoencoder import pixels
from engine.training.captions import Label, caption, random_label
from engine.training.spec import Spec

CLIP_LATENTS = 25
CHANGE_SHARE = 0.3  # of the clips change their label once
GO_ON_SHARE = 0.7  # of the clips, once they are rendered, are the next part of a video in the pool
MADE_SHARE = 0.5  # of the windows of a rendered clip have the prompt half that the model made

# Features [T, D, g, k] of a clip and the frame where its label changes -> the same through the tokenizer.
Quantise = Callable[[Tensor, int, random.Random], Tensor]
# A window without its new latents -> those [T, C, h, w] by the model as it is.
Render = Callable[["Window", int], Tensor]


@dataclass(frozen=True, slots=True)
class Clip:
    """One encoded video."""

    latents: Tensor  # [T, C, h, w] float32
    features: Tensor  # [T, D, g, k], as the renderer will see them
    mask: Tensor  # [T, g, k] the subjects' true coverage
    captions: tuple[str, str]  # before and after the change
    labels: tuple[Label, Label]
    change: int  # first latent under the second caption; CLIP_LATENTS where nothing changes
    spec: Spec  # the world after the change
    end: int  # video frame after the last
    memory: TinyVAEState  # of the encoder, there
    made: Tensor | None = None  # [T, C, h, w] as rendered, each hop after the one before

    @property
    def starts(self) -> bool:
        """Whether its video begins with it."""
        return self.end == 1 + (CLIP_LATENTS - 1) * FRAMES_PER_LATENT


@dataclass(frozen=True, slots=True)
class Window:
    """What one sample of the renderer's training is cut from; `prompt` latents come first."""

    latents: Tensor  # [T, C, h, w]
    features: Tensor  # [T, D, g, k]
    mask: Tensor  # [T, g, k]
    caption: str
    label: Label
    flaw: Tensor | None = None  # [C, h, w] by which a prompt half that the model made ends off the truth; else None


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

    def refresh(self, rng: random.Random, render: Render | None = None) -> None:
        """Add a clip, in place of the oldest when the pool is full; with `render`, rendered too, and mostly one that
        goes on where one of the pool ends. One at least begins a video."""
        if render is None:
            clip = self.make(rng)
        elif any(clip.starts for clip in self.clips[1 - self.size :]) and rng.random() < GO_ON_SHARE:
            before = rng.choice(self.clips)
            clip = self.rendered(self.go_on(before, rng), render, before.made, rng)
        else:
            clip = self.rendered(self.make(rng), render, None, rng)
        self.clips.append(clip)
        del self.clips[: -self.size]

    @torch.no_grad()
    def make(self, rng: random.Random, held_out: bool = False, changes: bool = True) -> Clip:
        """Draw, describe and encode one clip."""
        device = next(self.vae.parameters()).device
        labels = (random_label(rng, held_out), random_label(rng, held_out))
        change = rng.randrange(self.config.prompt_latents, CLIP_LATENTS - self.config.new_latents)
        if not changes or rng.random() > CHANGE_SHARE:
            labels, change = (labels[0], labels[0]), CLIP_LATENTS
        frames = torch.arange(1 + (CLIP_LATENTS - 1) * FRAMES_PER_LATENT, device=device)[None]
        spec = world.sample([labels[0]], rng).to(device)
        cut = max(0, (change - 1) * FRAMES_PER_LATENT + 1)  # first video frame of latent `change`
        after = world.relabel(spec, [labels[1]], frames[:, cut]) if cut < frames.shape[1] else spec
        parts = [(spec, frames[:, :cut]), (after, frames[:, cut:])]
        video = torch.cat([world.draw(s, f) for s, f in parts if f.shape[1]], dim=1)
        memory = TinyVAEState()
        latents = self.encode(video, memory)
        semantic = frames[:, ::FRAMES_PER_LATENT]
        halves = [(spec, semantic[:, :change]), (after, semantic[:, change:])]
        true = torch.cat([teacher.maps(s, f) for s, f in halves if f.shape[1]], dim=1)[0]
        features = true if self.quantise is None else self.quantise(true, change, rng)
        words = (caption(labels[0], rng), caption(labels[1], rng))
        end = frames.shape[1]
        return Clip(latents, features, teacher.covered(true), words, labels, change, after, end, memory)

    @torch.no_grad()
    def go_on(self, clip: Clip, rng: random.Random) -> Clip:
        """The next part of a clip's video; it begins with the clip's last `prompt_latents` latents."""
        given = self.config.prompt_latents
        more = (CLIP_LATENTS - given) * FRAMES_PER_LATENT
        memory = replace(clip.memory)
        frames = clip.end + torch.arange(more, device=clip.latents.device)[None]
        latents = torch.cat([clip.latents[-given:], self.encode(world.draw(clip.spec, frames), memory)])
        first = clip.end - 1 - (given - 1) * FRAMES_PER_LATENT
        semantic = first + FRAMES_PER_LATENT * torch.arange(CLIP_LATENTS, device=clip.latents.device)[None]
        true = teacher.maps(clip.spec, semantic)[0]
        features = true if self.quantise is None else self.quantise(true, CLIP_LATENTS, rng)
        words, labels = (clip.captions[1],) * 2, (clip.labels[1],) * 2
        return Clip(
            latents, features, teacher.covered(true), words, labels, CLIP_LATENTS, clip.spec, clip.end + more, memory
        )

    def encode(self, video: Tensor, memory: TinyVAEState) -> Tensor:
        """Latents [T, C, h, w] of uint8 [1, F, 3, H, W]."""
        with torch.autocast(video.device.type, torch.bfloat16):
            latents: Tensor = self.vae.encode(pixels(video), memory)[0].float()
        return latents

    @torch.no_grad()
    def rendered(self, clip: Clip, render: Render, before: Tensor | None, rng: random.Random) -> Clip:
        """The clip with what `render` makes of it behind `before` [T, C, h, w], which ends where the clip begins.

        Without `before`, behind its true first latents or, as often, behind a first hop.
        """
        given, new = self.config.prompt_latents, self.config.new_latents
        if before is not None:
            made = before[-given:]
        elif rng.random() < 0.5:
            made = clip.latents[:given]
        else:
            made = render(cut(clip, 0, given), 0)
        for start in range(0, CLIP_LATENTS - given, new):
            window = cut(clip, start, given + new)
            window = replace(window, latents=torch.cat([made[-given:], window.latents[given:]]))
            made = torch.cat([made, render(window, given)])
        return replace(clip, made=made)

    def window(self, rng: random.Random, prompted: bool) -> Window:
        """A random window: with its prompt half, or the first frames of a video without one."""
        config = self.config
        if not prompted:
            # Elsewhere a video's first latent, which stands for one frame, is not to be seen.
            return cut(rng.choice([clip for clip in self.clips if clip.starts]), 0, config.prompt_latents)
        clip = rng.choice(self.clips)
        length = config.prompt_latents + config.new_latents
        if clip.change < CLIP_LATENTS and rng.random() < 0.7:
            start = clip.change - config.prompt_latents
        else:
            start = rng.choice((0, rng.randrange(CLIP_LATENTS - length + 1)))
        window = cut(clip, start, length)
        if clip.made is None or rng.random() > MADE_SHARE:
            return window
        given = config.prompt_latents
        flaw = clip.made[start + given - 1] - clip.latents[start + given - 1]
        # It may stay for a while where nothing moves: not at the subject, and nowhere while the camera pans or at a
        # change of the prompt.
        stays = clip.labels[1].camera == "fixed" and not start < clip.change < start + length
        near = window.mask[given - 1 :].amax(0).repeat_interleave(2, 0).repeat_interleave(2, 1) > 0.05
        flaw = flaw * ~near if stays else torch.zeros_like(flaw)
        return replace(window, latents=torch.cat([clip.made[start : start + given], window.latents[given:]]), flaw=flaw)


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

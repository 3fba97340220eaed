"""A pool of encoded clips for the renderer's training: latents, features and captions of drawn worlds.

Drawing and encoding cost more than a training step, so clips stay in the pool for a while and are replaced one by one,
many by the next part of a video: what the model itself made of it, hop by hop, grows old there, flaws included.
Shapes: `T` latent frames, `C` latent channels, `D` feature channels, `h` x `w` latent size, `g` x `k` feature grid.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from engine.config import FRAMES_PER_LATENT, EngineConfig
from engine.perceptual.mini.vae import TinyVAE, TinyVAEState
from engine.semantic.tokenizer import SemanticTokenizer
from engine.training.stages.autoencoder import pixels
from engine.training.world import drawing as world
from engine.training.world import teacher
from engine.training.world.captions import Label, caption, hardest_label, random_label
from engine.training.world.spec import Spec

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
        """`quantise` None leaves the features as the teacher gives them. Labels to learn from come from `draw`."""
        self.config, self.vae, self.quantise, self.size = config, vae, quantise, size
        self.draw: Callable[[random.Random], Label] = partial(hardest_label, hardness=hard_to_render)
        self.clips: list[Clip] = []

    def refresh(self, rng: random.Random, render: Render | None = None) -> None:
        """Add a clip, in place of the oldest when the pool is full; with `render`, rendered too, and mostly one that
        goes on where one of the pool ends. One at least begins a video."""
        if render is None:
            clip = self.make(rng)
        elif any(clip.starts for clip in self.clips[1 - self.size :]) and rng.random() < GO_ON_SHARE:
            before = rng.choice(self.clips)
            clip = self.rendered(self.make(rng, before), render, before.made, rng)
        else:
            clip = self.rendered(self.make(rng), render, None, rng)
        self.clips.append(clip)
        del self.clips[: -self.size]

    @torch.no_grad()
    def make(
        self, rng: random.Random, before: Clip | None = None, held_out: bool = False, changes: bool = True
    ) -> Clip:
        """Draw, describe and encode the beginning of a video or, with a clip `before`, the next part of that video.

        The next part begins with the last `prompt_latents` latents of the one before. Labels change between hops.
        """
        device, given = next(self.vae.parameters()).device, self.config.prompt_latents
        if before is None:
            label = self._label(rng, held_out)
            spec, words = world.sample([label], rng).to(device), caption(label, rng)
            known, memory, drawn = [], TinyVAEState(), 0
            start = 1 - FRAMES_PER_LATENT  # of the frames that the first latent stands for, one is seen
        else:
            label, spec, words = before.labels[1], before.spec, before.captions[1]
            known, memory, drawn = [before.latents[-given:]], replace(before.memory), before.end
            start = drawn - given * FRAMES_PER_LATENT
        labels, captions, change, after = (label, label), (words, words), CLIP_LATENTS, spec
        if changes and rng.random() < CHANGE_SHARE:
            labels = label, self._label(rng, held_out)
            captions = words, caption(labels[1], rng)
            change = rng.randrange(given, CLIP_LATENTS, self.config.new_latents)
        turn, end = (start + count * FRAMES_PER_LATENT for count in (change, CLIP_LATENTS))
        if turn < end:
            after = world.relabel(spec, [labels[1]], torch.tensor([turn], device=device))

        def both(of: Callable[[Spec, Tensor], Tensor], frames: Tensor) -> Tensor:
            parts = ((spec, frames[frames < turn]), (after, frames[frames >= turn]))
            return torch.cat([of(one, part[None]) for one, part in parts if len(part)], dim=1)

        video = both(world.draw, torch.arange(drawn, end, device=device))
        latents = torch.cat([*known, self.encode(video, memory)])
        semantic = torch.arange(start + FRAMES_PER_LATENT - 1, end, FRAMES_PER_LATENT, device=device)
        true = both(teacher.maps, semantic)[0]
        features = true if self.quantise is None else self.quantise(true, change, rng)
        return Clip(latents, features, teacher.covered(true), captions, labels, change, after, end, memory)

    def _label(self, rng: random.Random, held_out: bool) -> Label:
        return random_label(rng, held_out) if held_out else self.draw(rng)

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
            # The first hop under the new caption, or the second, whose prompt half is the first.
            start = clip.change - config.prompt_latents + rng.choice((0, config.new_latents))
            start = min(start, CLIP_LATENTS - length)
        else:
            start = rng.choice((0, rng.randrange(0, CLIP_LATENTS - length + 1, 2)))  # windows begin at even latents
        window = cut(clip, start, length)
        if clip.made is None or rng.random() > MADE_SHARE:
            return window
        given = config.prompt_latents
        flaw = clip.made[start + given - 1] - clip.latents[start + given - 1]
        # It may stay for a while where nothing moves: not at the subject, and nowhere while the camera pans or at a
        # change of the prompt.
        stays = window.label.camera == "fixed" and not start + given <= clip.change < start + length
        near = window.mask[given - 1 :].amax(0).repeat_interleave(2, 0).repeat_interleave(2, 1) > 0.05
        flaw = flaw * ~near if stays else torch.zeros_like(flaw)
        return replace(window, latents=torch.cat([clip.made[start : start + given], window.latents[given:]]), flaw=flaw)


def hard_to_render(label: Label) -> int:
    """The more, the harder."""
    return (label.direction == "bounce") + (label.relation is not None) + (label.camera != "fixed")


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

"""A pool of encoded segments that the renderer's training cuts its windows from.

Encoding a segment costs more than a training step, so segments stay for a while and are replaced one by one, often by
the next segment of the same video. The model renders them too, so that contexts have the errors of long videos.
Shapes: `T` latent frames, `C` latent channels, `D` feature channels, `h` x `w` latent size, `g` x `k` feature grid.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.loading.options import autocast
from engine.perceptual.base import Autoencoder
from engine.semantic.tokenizer import SemanticTokenizer
from engine.training.sources import VideoSource
from engine.training.sources.source import Segment, pixels

FOLLOWING_SHARE = 0.7  # of rendered segments, which continue the video of another segment
RENDERED_SHARE = 0.5  # of the windows of a rendered segment have the rendered context
CHANGE_SHARE = 0.7  # of the windows of a segment with a caption change are near the change
ERROR_COVERED = 0.05  # least share of a cell covered by a subject where a context error does not stay

# A window and the number of its context latents -> its new latents [T, C, h, w], rendered by the current model.
RenderWindow = Callable[["TrainingWindow", int], Tensor]


@dataclass(frozen=True, slots=True)
class TrainingWindow:
    """One sample for the renderer; the latents of the context come first."""

    latents: Tensor  # [T, C, h, w]
    features: Tensor  # [T, D, g, k]
    mask: Tensor  # [T, g, k]
    caption: str
    error: Tensor | None = None  # [C, h, w] error at the end of a rendered context; None if the context is true


@dataclass(frozen=True, slots=True)
class EncodedSegment:
    """A segment as latents."""

    segment: Segment  # with the features that the renderer reads
    latents: Tensor  # [T, C, h, w] float32
    memory: Any  # state of the encoder after the last frame
    rendered: Tensor | None = None  # [T, C, h, w], chunk by chunk

    def cut(self, start: int, length: int) -> TrainingWindow:
        """Latents `start` to `start + length`, with the caption at the end."""
        part, segment = slice(start, start + length), self.segment
        caption = segment.captions[int(start + length > segment.change)]
        return TrainingWindow(self.latents[part], segment.features[part], segment.mask[part], caption)


@dataclass(slots=True)
class LatentPool:
    """Segments of a source, and windows of them."""

    config: EngineConfig
    source: VideoSource
    vae: Autoencoder
    tokenizer: SemanticTokenizer | None  # without it features are not quantised
    size: int  # of a full pool, in segments
    held_out: bool
    keeps_videos: bool = False  # then no segment continues another, as it would lack the frames of its context
    segments: list[EncodedSegment] = field(default_factory=list)

    def fill(self, rng: random.Random, count: int, render: RenderWindow | None = None) -> None:
        """Adds segments until there are `count`, without an effect on torch's random numbers."""
        with torch.random.fork_rng():
            while len(self.segments) < min(count, self.size):
                self.refresh(rng, render)

    def refresh(self, rng: random.Random, render: RenderWindow | None = None) -> None:
        """Adds a segment; a full pool drops its oldest. With `render` it is rendered, and often continues another.

        At least one segment of the pool is the start of a video.
        """
        before, started = None, any(kept.segment.starts for kept in self.segments[1 - self.size :])
        if render is not None and started and not self.keeps_videos:
            continued = [kept for kept in self.segments if kept.segment.following is not None]
            before = rng.choice(continued) if continued and rng.random() < FOLLOWING_SHARE else None
        made = self.make(rng, before)
        if render is not None:
            made = self.render(made, render, None if before is None else before.rendered, rng)
        self.segments = [*self.segments, made][-self.size :]

    @torch.no_grad()
    def make(self, rng: random.Random, before: EncodedSegment | None = None) -> EncodedSegment:
        """Encodes a new segment, which continues the video of `before` if that is given."""
        segment = self.source.segment(rng, None if before is None else before.segment, self.held_out)
        memory = self.vae.new_state() if before is None else copy.copy(before.memory)
        with autocast(segment.video.device):
            latents = self.vae.encode(pixels(segment.video), memory)[0].float()
        if before is not None:
            latents = torch.cat([before.latents[-self.config.context_length :], latents])
        features = self.through_tokens(segment.features, segment.change, rng)
        video = segment.video if self.keeps_videos else torch.empty(0)
        return EncodedSegment(replace(segment, video=video, features=features), latents, memory)

    def through_tokens(self, features: Tensor, change: int, rng: random.Random) -> Tensor:
        """Features decoded from tokens of GOPs, which begin at a random frame and anew at a caption change."""
        if self.tokenizer is None:
            return features
        whole = self.tokenizer.config.frames
        edges = {0, change, len(features)} | set(range(change, len(features), whole))
        edges |= set(range(rng.randrange(1, whole + 1), change, whole))
        gops = [features[None, start:end] for start, end in pairwise(sorted(edges))]
        return torch.cat([self.tokenizer.decode(self.tokenizer.encode(gop))[0].float() for gop in gops])

    @torch.no_grad()
    def render(
        self, encoded: EncodedSegment, render: RenderWindow, before: Tensor | None, rng: random.Random
    ) -> EncodedSegment:
        """Renders a segment with the end of `before` [T, C, h, w] as context, the rendered segment that it continues.

        Without `before` the first context is the true one or, as often, a rendered first chunk.
        """
        context, chunk = self.config.context_length, self.config.chunk_length
        if before is None:
            before = encoded.latents[:context] if rng.random() < 0.5 else render(encoded.cut(0, context), 0)
        rendered = before[-context:]
        for start in range(0, len(encoded.latents) - context, chunk):
            window = encoded.cut(start, context + chunk)
            window = replace(window, latents=torch.cat([rendered[-context:], window.latents[context:]]))
            rendered = torch.cat([rendered, render(window, context)])
        return replace(encoded, rendered=rendered)

    def window(self, rng: random.Random, with_context: bool) -> TrainingWindow:
        """A random window with context, or the first chunk of a video."""
        context, chunk = self.config.context_length, self.config.chunk_length
        if not with_context:
            starting = [encoded for encoded in self.segments if encoded.segment.starts]
            return rng.choice(starting).cut(0, self.config.first_chunk_length)
        encoded = rng.choice(self.segments)
        change, last = encoded.segment.change, len(encoded.latents) - context - chunk
        if change < len(encoded.latents) and rng.random() < CHANGE_SHARE:
            # The first or the second chunk under the new caption.
            start = min(change - context + rng.choice((0, chunk)), last)
        else:
            start = rng.choice((0, rng.randrange(0, last + 1, 2)))  # windows begin at even latents
        window = encoded.cut(start, context + chunk)
        if encoded.rendered is None or rng.random() > RENDERED_SHARE:
            return window
        rendered = encoded.rendered[start : start + context]
        # The error may fade slowly where nothing moves: not at the subject, nor under a panning camera or at a caption
        # change.
        changes = start + context <= change < start + context + chunk
        static = encoded.segment.static[int(start + context + chunk > change)] and not changes
        far = window.mask[context - 1 :].amax(0).repeat_interleave(2, 0).repeat_interleave(2, 1) <= ERROR_COVERED
        error = (rendered[-1] - window.latents[context - 1]) * (far & static)
        return replace(window, latents=torch.cat([rendered, window.latents[context:]]), error=error)

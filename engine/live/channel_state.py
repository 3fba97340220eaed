"""The state of a video between two chunks: plain records of numbers and tensors.

Shapes: `T` latent or semantic frames, `C` latent channels, `H` x `W` latent size, `D` feature channels, `h` x `w` their
grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from engine.live.plan_writer import Plan
from engine.perceptual.base import VideoState
from engine.text.embedding import TextEmbedding


@dataclass(frozen=True, slots=True)
class Place:
    """The start of a chunk, counted since the video began."""

    chunk: int = 0
    frame: int = 0  # of its first video frame
    latent: int = 0  # of its first latent frame, and of the semantic frame with it


@dataclass(frozen=True, slots=True)
class PastChunk:
    """A chunk that the video can go back into: what it began with, and what was made of it. All tensors are float32."""

    start: Place
    features: Tensor  # [1, T, D, h, w] of the context
    context_latents: Tensor  # [1, T, C, H, W]
    vae: VideoState  # before its first latent
    new_features: Tensor  # [1, T, D, h, w] of its own frames
    new_latents: Tensor  # [1, T, C, H, W]
    threads: int  # that decode it: the last bits depend on them
    # Behind its slices, as far as they are decoded and where that is not too much to keep. No part of a snapshot.
    ends: list[VideoState] = field(default_factory=list)


@dataclass(slots=True)
class RenderState:
    """A video as far as rendering goes. It advances once a chunk, when the chunk is done. Constant in size."""

    text: TextEmbedding  # of chunks that have not begun
    seed: int
    steps: int  # denoising steps of a chunk
    next: Place  # of the next chunk; of the running one until that is done
    features: Tensor  # [1, T, D, h, w] float32 of the context; T = 0 before the first chunk
    context_latents: Tensor  # [1, T, C, H, W] float32, the last latents rendered
    vae: VideoState
    # Number of the first frame that may be made anew; None where none may, and no chunk is kept.
    open_from: int | None = field(default=None, kw_only=True)
    past: list[PastChunk] = field(default_factory=list, kw_only=True)  # those with such frames, oldest first
    # The renderer's condition of the context without details, [1, T, C, H, W], as the chunk before left it; None where
    # it is to be made again of the features, which gives the same bits. No part of a snapshot.
    condition: Tensor | None = field(default=None, kw_only=True)


@dataclass(slots=True)
class ChannelState(RenderState):
    """One endless video, which plans itself. The plan also grows while a chunk is made."""

    prompt: str
    plan: Plan

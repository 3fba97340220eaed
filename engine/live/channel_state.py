"""The state of a video between two chunks: plain records of numbers and tensors.

Shapes: `T` latent or semantic frames, `C` latent channels, `H` x `W` latent size, `D` feature channels, `h` x `w` their
grid.
"""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(slots=True)
class ChannelState(RenderState):
    """One endless video, which plans itself. The plan also grows while a chunk is made."""

    prompt: str
    plan: Plan

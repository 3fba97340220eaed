"""From the planner's logits to tokens (REFERENCE 2.6).

The caller draws the noise, so that it is keyed to its place in the video and the device never waits.
Shapes: `B` rows, `V` vocabulary, `K` tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.draw import draw_token, filter_logits, guide_logits


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """Settings for drawing tokens; `landiff` by default."""

    guidance: float = 7.5  # 0 and 1: none
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if self.temperature <= 0.0:
            raise ValueError(f"temperature {self.temperature} is not positive; top_k=1 takes the likeliest token")
        if self.top_k is not None and self.top_p is not None:
            raise ValueError(f"top_k {self.top_k} and top_p {self.top_p} exclude each other")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k {self.top_k} keeps no token")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p {self.top_p} is not in (0, 1]")

    @property
    def guided(self) -> bool:
        """True if sequences come in pairs, with and without their text."""
        return self.guidance > 0.0 and self.guidance != 1.0


def guided_logits(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """[2B, V], the rows with text first, or [B, V] unguided -> [B, V]."""
    return guide_logits(_paired(logits, sampling), sampling.guidance)


def filtered_logits(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """Guided logits [..., V] -> logits of the distribution to draw from, [..., V]."""
    return filter_logits(logits, sampling.temperature, *_filters(sampling))


def gumbel(uniform: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) -> Gumbel noise, finite, float32."""
    tiny = torch.finfo(torch.float32).tiny
    return -(-uniform.float().clamp(min=tiny).log()).clamp(min=tiny).log()


def sample_token(logits: Tensor, noise: Tensor, sampling: SamplingConfig) -> Tensor:
    """Draws one token a row from given noise; special tokens are never drawn. No host synchronisation.

    Args:
        logits: [2B, V] guided, the rows with text first, or [B, V]; float32.
        noise: [B, K] or [K] from `gumbel`.

    Returns:
        int64 [B].
    """
    pairs = _paired(logits, sampling)
    noise = noise.expand(pairs.shape[1], -1)
    return draw_token(pairs, noise, sampling.guidance, sampling.temperature, *_filters(sampling))


def _paired(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """[GB, V] -> [G, B, V], with text and without it, or with text alone."""
    return torch.unflatten(logits, 0, (1 + sampling.guided, -1))


def _filters(sampling: SamplingConfig) -> tuple[int, float]:
    """Top-k and top-p as `draw_token` takes them: 0 and 1 keep all."""
    return sampling.top_k or 0, 1.0 if sampling.top_p is None else sampling.top_p

"""From the planner's logits to tokens (FACTS 2.6).

Two ways: `generate_reference` draws as the release does, position by position from one running generator; `sample_code`
takes noise that the caller has drawn, so that it is keyed to its place in the video and the device never waits.
Shapes: `B` rows, `V` vocabulary, `K` codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.runtime.kv_cache import KVCache
from engine.semantic.planner import Planner, PlannerConfig
from kernels.draw import draw_code
from kernels.tools.launch import fuses


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How tokens are drawn; `landiff` by default."""

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
        """Whether sequences come in pairs, with and without their text."""
        return self.guidance > 0.0 and self.guidance != 1.0


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    """What the reference sampler gives for one video."""

    codes: Tensor  # [1, codes of all frames] int64, special tokens removed
    draws: Tensor  # [positions] int64: what was drawn at every position after the first START_OF_IFRAME, EOS included


def guide(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """[2B, V], the rows with text first, or [B, V] unguided -> [B, V]."""
    if not sampling.guided:
        return logits
    with_text, without = logits.chunk(2)
    return without + sampling.guidance * (with_text - without)


def keep_top_k(logits: Tensor, count: int) -> Tensor:
    """-inf for what is less than the `count`-th largest value. [..., V] -> [..., V]."""
    least = logits.topk(min(count, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < least, float("-inf"))


def keep_top_p(logits: Tensor, mass: float) -> Tensor:
    """-inf for tokens before which, likeliest first, the others already hold `mass`. [..., V] -> [..., V]."""
    ordered, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
    late = ordered.cumsum(dim=-1) - ordered >= mass
    return logits.masked_fill(torch.zeros_like(late).scatter(-1, order, late), float("-inf"))


def warp(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """Guided logits [..., V] -> logits of the distribution to draw from, [..., V]."""
    logits = logits / sampling.temperature
    if sampling.top_k is not None:
        return keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None:
        return keep_top_p(logits, sampling.top_p)
    return logits


def gumbel(uniform: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) -> Gumbel noise, finite, float32."""
    tiny = torch.finfo(torch.float32).tiny
    return -(-uniform.float().clamp(min=tiny).log()).clamp(min=tiny).log()


def sample_code(logits: Tensor, noise: Tensor, sampling: SamplingConfig) -> Tensor:
    """Draws one code a row from given noise; special tokens are never drawn. No host synchronisation.

    Args:
        logits: [2B, V] guided, the rows with text first, or [B, V]; float32.
        noise: [B, K] from `gumbel`.

    Returns:
        int64 [B].
    """
    if fuses(logits):
        pairs = logits.contiguous().unflatten(0, (1 + sampling.guided, -1))
        top_k, top_p = sampling.top_k or 0, 1.0 if sampling.top_p is None else sampling.top_p
        rows = noise.expand(pairs.shape[1], -1).contiguous()
        return draw_code(pairs, rows, sampling.guidance, sampling.temperature, top_k, top_p)
    codes = guide(logits, sampling)[:, : noise.shape[-1]]
    return (warp(codes, sampling) + noise).argmax(dim=-1)


def allowed_draws(config: PlannerConfig, frames: int) -> tuple[tuple[int, ...] | None, ...]:
    """Which tokens the reference sampler may draw at each position after the first START_OF_IFRAME; None = any."""
    allowed: list[tuple[int, ...] | None] = []
    group = 0
    for token in config.layout(frames):
        group += token == config.iframe_start
        if token == config.iframe_start:
            allowed.append((token,) if group < 3 else (token, config.eos))
        elif token == config.pframe_start:
            allowed.append((token,) if group < 2 else (token, config.eos))
        else:
            allowed.append(None)
    return (*allowed[1:], None if group < 2 else (config.eos,))


@torch.inference_mode()
def generate_reference(
    planner: Planner,
    text: Tensor,
    num_frames: int,
    motion: float,
    sampling: SamplingConfig,
    generator: torch.Generator | None = None,
    progress: Callable[[], object] = lambda: None,
) -> ReferencePlan:
    """Plans one video exactly as the release does.

    Every position runs the network and takes a draw; at the positions of special tokens the draw is thrown away. A
    special token drawn in place of a code is fed back as it is, and only the result is clamped to a code.

    Args:
        text: [1, L, text_dim], padding removed.
        num_frames: semantic frames to plan.
        generator: of the draws, on any device; None takes the global one.
        progress: called once a position.
    """
    config = planner.config
    prefix = planner.prefix(
        text.expand(1 + sampling.guided, -1, -1),
        float(num_frames),
        motion,
        torch.arange(1 + sampling.guided, device=text.device) > 0,
    )
    layout = (*config.layout(num_frames), config.eos)
    rows, length, _ = prefix.embeddings.shape
    cache = KVCache.allocate(
        config.layers, rows, config.heads, length + len(layout), config.head_dim, text.device, prefix.embeddings.dtype
    )
    first = torch.full((rows, 1), config.iframe_start, device=text.device)
    step = torch.cat([prefix.embeddings, planner.embed(first, prefix.pooled)], dim=1)
    position, draws, fed = 0, [], []
    for forced, allowed in zip(layout[1:], allowed_draws(config, num_frames), strict=True):
        logits = planner(step, cache, position)[:, -1]
        position += step.shape[1]
        chances = distribution(guide(logits, sampling)[0], allowed, sampling)
        drawn_on = chances.device if generator is None else generator.device
        draws.append(torch.multinomial(chances.to(drawn_on), 1, generator=generator).to(chances.device))
        progress()
        fed.append(draws[-1] if forced is None else torch.full_like(draws[-1], forced))
        step = planner.embed(fed[-1].expand(rows, 1), prefix.pooled)
    codes = [token for token, forced in zip(fed, layout[1:], strict=True) if forced is None]
    return ReferencePlan(torch.cat(codes)[None].clamp(max=config.codebook_size - 1), torch.cat(draws))


def distribution(logits: Tensor, allowed: tuple[int, ...] | None, sampling: SamplingConfig) -> Tensor:
    """What the reference sampler draws from: guided logits [V] -> probabilities [V].

    Where only some tokens are `allowed`, nothing is cut from those; None = any.
    """
    if allowed is None:
        return warp(logits, sampling).softmax(dim=-1)
    barred = torch.ones_like(logits, dtype=torch.bool)
    barred[list(allowed)] = False
    return (logits / sampling.temperature).masked_fill(barred, float("-inf")).softmax(dim=-1)

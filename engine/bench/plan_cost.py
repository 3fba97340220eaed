"""Planning: the engine as it runs, against transformers' LLaMA with a static cache, token by token with guidance.

Both plan the same places of a video without end, in calls of the same lengths, with the same noise and sampler, and
read prompt and context again at each group's beginning. Shapes: `B` rows of guidance, `N` tokens, `W` width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import StaticCache

from engine.bench import peers
from engine.bench.hop_cost import CAPTION, SEED
from engine.bench.rounds import TOTAL, Clock, Parts
from engine.live.generator import CODES_PER_UNIT, Generator
from engine.live.noise import normal, uniform
from engine.loading.model import Model
from engine.semantic.sampling import gumbel, sample_code


def codes_per_round(model: Model) -> int:
    """About a group: as many whole units as it has."""
    return max(1, model.config.tokenizer.group_tokens // CODES_PER_UNIT) * CODES_PER_UNIT


class OwnPlanning:
    """Plans on and on, a group's codes a round."""

    def __init__(self, generator: Generator, clock: Clock) -> None:
        self._generator = generator
        self._clock = clock
        self._channel = generator.open(CAPTION, SEED)
        self._units = codes_per_round(generator.model) // CODES_PER_UNIT
        # The first group has no context to read.
        for _ in range(self._units):
            generator.plan(self._channel)

    def __call__(self) -> Parts:
        return {TOTAL: self._clock.time(self._plan)}

    def _plan(self) -> None:
        for _ in range(self._units):
            self._generator.plan(self._channel)


class TheirPlanning:
    """The same codes by LLaMA; on CUDA its decoding is compiled."""

    def __init__(self, model: Model, clock: Clock) -> None:
        config = model.config.planner
        self._config = config
        self._clock = clock
        self._device = model.device
        self._sampling = model.config.sampling
        self._offsets = model.config.tokenizer.offsets
        self._rows = 1 + self._sampling.guided
        # The engine's cache is as long.
        length = config.max_len(model.config.text.planner_tokens)
        with model.device:
            peer = peers.llama(config, length)
        self.peer = peers.placed(peer, model.device, model.dtype)
        self._cache = StaticCache(self.peer.config, max_cache_len=length)
        on_cuda = model.device.type == "cuda"
        self._decode: Any = torch.compile(self.peer, mode="reduce-overhead") if on_cuda else self.peer
        with model.computing():
            text_tokens = model.text.embed(CAPTION).planner.shape[1]
        prefix = (self._rows, config.prefix_len(text_tokens), config.hidden)
        self._prefix = normal(prefix, "bench prefix").to(model.device, model.dtype)
        context = config.context_groups * config.code_len(config.group_frames)
        self._context = torch.zeros((self._rows, context + 1), dtype=torch.int64, device=model.device)
        # Frame of the group and place in the frame of each of a group's codes.
        self._places = [
            (frame, place)
            for frame in range(config.group_frames)
            for place in range(self._offsets[frame + 1] - self._offsets[frame])
        ]
        self._written = 0
        self._noise = self._last = torch.empty(0)
        self._count = codes_per_round(model)
        with torch.inference_mode():
            self._write(self._count)

    def __call__(self) -> Parts:
        with torch.inference_mode():
            return {TOTAL: self._clock.time(lambda: self._write(self._count))}

    def _write(self, count: int) -> None:
        for _ in range(count):
            group, code = divmod(self._written, len(self._places))
            frame, place = self._places[code]
            if place == 0:
                shape = (self._offsets[frame + 1] - self._offsets[frame], self._config.codebook_size)
                number = group * self._config.group_frames + frame
                self._noise = gumbel(uniform(shape, SEED, "plan", number)).to(self._device)
            logits = self._logits(frame, place)[:, -1].float()
            self._last = sample_code(logits, self._noise[place], self._sampling)
            self._written += 1

    def _logits(self, frame: int, place: int) -> Tensor:
        """Logits [B, 1, V] after everything since the last code, and that code."""
        embed = self.peer.model.embed_tokens
        if frame == place == 0:
            self._cache.reset()
            return self._run(self.peer, torch.cat([self._prefix, embed(self._context)], dim=1))
        tokens = self._last[None]
        if place == 0:
            borders = torch.tensor([[self._config.pframe_end, self._config.pframe_start]], device=self._device)
            tokens = torch.cat([tokens, borders], dim=1)
        return self._run(self._decode, embed(tokens.expand(self._rows, -1)))

    def _run(self, forward: Any, step: Tensor) -> Tensor:
        # By place, as mask, positions and cache come: since transformers 5.24 the cache has another name.
        given = None, None, None, self._cache, step
        logits: Tensor = forward(*given, use_cache=True, logits_to_keep=1, return_dict=False)[0]
        return logits

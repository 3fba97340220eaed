"""Prompts to text embeddings as the release makes them: two T5 encoders (REFERENCE 2.2, 3.4).

The release uses the slow T5 tokenizer, which is sentencepiece plus an end of sentence; so does this. Names of special
tokens in a prompt are text like any other.

Shapes: `L` tokens of a prompt, `N` tokens that the renderer reads, `K` text width.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    # They take as long to load as all that preset `mini` needs.
    from sentencepiece import SentencePieceProcessor
    from transformers import T5EncoderModel

from engine.text.embedding import TextEmbedding

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PublishedTextConfig:
    """Limits of prompts and of the cache of their embeddings."""

    planner_tokens: int = 512  # longest prompt for the planner; longer ones are cut
    renderer_tokens: int = 226  # every prompt for the renderer, filled up or cut
    cached_prompts: int = 16  # the least recently used embedding goes first
    reserve_bytes: int = 12 << 30  # of the device that must stay free beside an encoder, or it leaves after use

    def __post_init__(self) -> None:
        if min(self.planner_tokens, self.renderer_tokens, self.cached_prompts) < 1:
            raise ValueError(
                f"planner_tokens {self.planner_tokens}, renderer_tokens {self.renderer_tokens} and cached_prompts "
                f"{self.cached_prompts} must be positive"
            )


def _free_bytes(device: torch.device) -> int | None:
    """Free memory of a device; None where encoders and everything else share the host's."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


@dataclass(frozen=True, slots=True)
class TextModel:
    """An encoder and its vocabulary."""

    encoder: T5EncoderModel
    tokenizer: SentencePieceProcessor

    def ids(self, prompt: str, most: int) -> list[int]:
        """At most so many pieces of a prompt, the last of them the end of sentence."""
        return [*self.tokenizer.encode(prompt)[: most - 1], self.tokenizer.eos_id()]


class PublishedText:
    """Flan-T5-XXL for the planner and T5-v1.1-XXL for the renderer, or smaller models of the same family."""

    def __init__(
        self,
        config: PublishedTextConfig,
        planner: TextModel,
        renderer: TextModel,
        device: torch.device,
        free_bytes: Callable[[torch.device], int | None] = _free_bytes,
    ) -> None:
        """The encoders stay where they are until a prompt comes."""
        self.config = config
        self.device = device
        self.planner = planner
        self.renderer = renderer
        self._free_bytes = free_bytes
        self._cache: OrderedDict[str, TextEmbedding] = OrderedDict()

    def embed(self, prompt: str, seed: int = 0) -> TextEmbedding:
        """A prompt as planner [1, L, K], without padding, and renderer [1, N, K] read it, float32; cached."""
        if prompt in self._cache:
            self._cache.move_to_end(prompt)
            return self._cache[prompt]
        embedding = TextEmbedding(planner=self._for_planner(prompt), renderer=self._for_renderer(prompt))
        self._cache[prompt] = embedding
        if len(self._cache) > self.config.cached_prompts:
            self._cache.popitem(last=False)
        return embedding

    def unread(self, prompt: str) -> tuple[str, ...]:
        """Words behind the end of what planner and renderer read."""
        most = max(self.config.planner_tokens, self.config.renderer_tokens) - 1
        tokenizer = self.planner.tokenizer
        return tuple(tokenizer.decode(tokenizer.encode(prompt)[most:]).split())

    def understood(self, prompt: str, seed: int = 0) -> None:
        """It cannot say."""

    def _for_planner(self, prompt: str) -> Tensor:
        return self._run(self.planner, self.planner.ids(prompt, self.config.planner_tokens))

    def _for_renderer(self, prompt: str) -> Tensor:
        length, model = self.config.renderer_tokens, self.renderer
        ids = model.ids(prompt, length)
        # The release masks nothing: padding is attended to like any word.
        return self._run(model, ids + [model.tokenizer.pad_id()] * (length - len(ids)))

    @torch.inference_mode()
    def _run(self, model: TextModel, ids: list[int]) -> Tensor:
        encoder = model.encoder.to(self.device)
        numbers = torch.tensor([ids], device=self.device)
        with torch.autocast(self.device.type, enabled=False):
            hidden: Tensor = encoder(input_ids=numbers, attention_mask=torch.ones_like(numbers)).last_hidden_state
        free = self._free_bytes(self.device)
        if free is not None and free < self.config.reserve_bytes:
            logger.info("moving a text encoder off %s, which has %.1f GB free", self.device, free / 1e9)
            encoder.to("cpu")
        return hidden.float()

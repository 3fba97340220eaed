"""A prompt as the stages read it, and what makes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class TextEmbedding:
    """Shapes: `N` tokens of width `D`."""

    planner: Tensor  # [1, N, D] of the planner's text encoder, padding removed
    renderer: Tensor  # [1, N', D'] of the renderer's text encoder, as long as its configuration says


class TextEncoder(Protocol):
    """`SmallT5`, `PublishedText` or `FixedText`."""

    def embed(self, prompt: str) -> TextEmbedding:
        """A prompt as planner and renderer read it."""
        ...

    def unread(self, prompt: str) -> tuple[str, ...]:
        """Words of the prompt that neither of them reads."""
        ...


@dataclass(frozen=True, slots=True)
class FixedText:
    """Stands in for a text encoder: one embedding for every prompt."""

    embedding: TextEmbedding

    def embed(self, prompt: str) -> TextEmbedding:
        """The embedding, whatever the prompt."""
        return self.embedding

    def unread(self, prompt: str) -> tuple[str, ...]:
        """None of the prompt is read."""
        return tuple(prompt.split())

"""A prompt as the stages read it, and what makes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from engine.wire.understood import Understood


@dataclass(frozen=True, slots=True)
class TextEmbedding:
    """Shapes: `N` tokens of width `D`."""

    planner: Tensor  # [1, N, D] of the planner's text encoder, padding removed
    renderer: Tensor  # [1, N', D'] of the renderer's text encoder, as long as its configuration says


class TextEncoder(Protocol):
    """`ReadingText`, `SmallT5`, `PublishedText` or `FixedText`."""

    def embed(self, prompt: str, seed: int = 0) -> TextEmbedding:
        """A prompt as planner and renderer read it; `seed` draws what it leaves open."""
        ...

    def unread(self, prompt: str) -> tuple[str, ...]:
        """Words of the prompt that neither of them reads."""
        ...

    def understood(self, prompt: str, seed: int = 0) -> Understood | None:
        """What is shown of the prompt, in words; None for an encoder that cannot say."""
        ...


@dataclass(frozen=True, slots=True)
class FixedText:
    """Stands in for a text encoder: one embedding for every prompt."""

    embedding: TextEmbedding

    def embed(self, prompt: str, seed: int = 0) -> TextEmbedding:
        """The embedding, whatever the prompt."""
        return self.embedding

    def unread(self, prompt: str) -> tuple[str, ...]:
        """None of the prompt is read."""
        return tuple(prompt.split())

    def understood(self, prompt: str, seed: int = 0) -> None:
        """It cannot say."""

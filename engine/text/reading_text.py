"""Prompts as people type them to text embeddings: read, what is open drawn by seed, and said in a known caption."""

from __future__ import annotations

from collections import OrderedDict

from engine.text.asked import Asked
from engine.text.embedding import TextEmbedding
from engine.text.reader import PromptReader
from engine.text.small_t5 import SmallT5
from engine.wire.understood import Understood

KEPT = 16  # readings; the least recently used goes first


class ReadingText:
    """A reader before the small text encoder, whose captions planner and renderer were trained with."""

    def __init__(self, reader: PromptReader, encoder: SmallT5) -> None:
        self.reader, self.encoder = reader, encoder
        self._readings: OrderedDict[str, tuple[Asked, tuple[str, ...]]] = OrderedDict()

    def embed(self, prompt: str, seed: int = 0) -> TextEmbedding:
        """The embedding of what the prompt asks for, as `SmallT5.embed` gives it; the same for the same seed."""
        return self.encoder.embed(self._read(prompt)[0].drawn(seed).caption)

    def unread(self, prompt: str) -> tuple[str, ...]:
        """Words of the prompt without effect."""
        return self._read(prompt)[1]

    def understood(self, prompt: str, seed: int = 0) -> Understood:
        """What is shown of the prompt, in words."""
        asked, no_effect = self._read(prompt)
        return asked.understood(seed, no_effect)

    def _read(self, prompt: str) -> tuple[Asked, tuple[str, ...]]:
        if prompt not in self._readings:
            self._readings[prompt] = self.reader.read(prompt)
            if len(self._readings) > KEPT:
                self._readings.popitem(last=False)
        self._readings.move_to_end(prompt)
        return self._readings[prompt]

"""Prompts to text embeddings, by a small T5 encoder.

Shapes: `B` prompts, `L` tokens, `K` width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.text.embedding import TextEmbedding
from engine.text.t5 import T5Encoder
from engine.text.words import Reading, read_words

TOKENIZER_FOLDER = "text_tokenizer"  # beside the weights
END, PADDING = "</s>", "<pad>"  # pieces of every vocabulary


@dataclass(frozen=True, slots=True)
class SmallT5Config:
    """Preset `mini`'s own small T5, which planner and renderer share."""

    hidden: int
    layers: int
    heads: int
    mlp: int
    vocabulary: int
    max_length: int  # tokens; longer prompts are cut

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not divisible by {self.heads} heads")

    @property
    def planner_tokens(self) -> int:
        """The most that the planner reads."""
        return self.max_length


def text_encoder(config: SmallT5Config) -> T5Encoder:
    """The encoder without its vocabulary, weights at random."""
    return T5Encoder(config.vocabulary, config.hidden, config.layers, config.heads, config.mlp)


class SmallT5(nn.Module):
    """A T5 encoder trained with the planner, and its vocabulary of words. Case and unknown words do not matter."""

    def __init__(self, config: SmallT5Config, vocabulary: Mapping[str, int]) -> None:
        """`vocabulary`: number of each piece. Raises ValueError if there are more than the encoder has room for."""
        super().__init__()
        if len(vocabulary) > config.vocabulary:
            raise ValueError(f"the tokenizer has {len(vocabulary)} pieces, the encoder only {config.vocabulary}")
        self.config = config
        self.encoder = text_encoder(config)
        self._numbers = dict(vocabulary)

    def encode(self, prompts: list[str]) -> Tensor:
        """Prompts -> [B, max_length, K] of the weights' dtype; rows behind a prompt's end are zero."""
        shape = len(prompts), self.config.max_length
        ids, mask = torch.full(shape, self._numbers[PADDING]), torch.zeros(shape, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            numbers = [*(self._numbers[piece] for piece in self._read(prompt).pieces), self._numbers[END]]
            ids[row, : len(numbers)] = torch.tensor(numbers)
            mask[row, : len(numbers)] = 1
        device = self.encoder.shared.weight.device
        ids, mask = ids.to(device), mask.to(device)
        hidden: Tensor = self.encoder(ids, mask)
        masked: Tensor = hidden * mask.unsqueeze(-1).to(hidden.dtype)
        return masked

    def embed(self, prompt: str, seed: int = 0) -> TextEmbedding:
        """A prompt as planner and renderer read it: the same [1, max_length, K] float32 for both."""
        encoded = self.encode([prompt]).float()
        return TextEmbedding(planner=encoded, renderer=encoded)

    def unread(self, prompt: str) -> tuple[str, ...]:
        """Words of the prompt that are left out: unknown ones, and those that are too many."""
        return self._read(prompt).unread

    def understood(self, prompt: str, seed: int = 0) -> None:
        """It cannot say."""

    def _read(self, prompt: str) -> Reading:
        return read_words(prompt, self._numbers, self.config.max_length - 1)


def load_vocabulary(folder: Path) -> dict[str, int]:
    """The number of each piece of the text tokenizer in a weights folder.

    Raises:
        ValueError: if it is not there, or damaged.
    """
    path = folder / TOKENIZER_FOLDER / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{path.parent} holds no tokenizer.json: give a folder with complete weights")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        pieces = {str(piece): number for number, (piece, _) in enumerate(facts["model"]["vocab"])}
        return pieces | {str(added["content"]): int(added["id"]) for added in facts["added_tokens"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): give a folder with complete weights") from error


@torch.no_grad()
def scaled_embeddings(encoder: SmallT5, std: float) -> None:
    """Start word embeddings at `std`: with T5's own start a small planner does not read its caption."""
    nn.init.normal_(encoder.encoder.shared.weight, std=std)

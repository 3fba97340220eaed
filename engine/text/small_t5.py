"""Prompts to text embeddings, by T5 encoders of transformers.

Shapes: `B` prompts, `L` tokens, `K` width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from engine.text.embedding import TextEmbedding
from engine.text.words import Reading, read_words

TOKENIZER_FOLDER = "text_tokenizer"  # beside the weights


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


def text_encoder(config: SmallT5Config) -> T5EncoderModel:
    """The encoder without its tokenizer, weights at random."""
    return T5EncoderModel(
        T5Config(
            vocab_size=config.vocabulary,
            d_model=config.hidden,
            d_kv=config.hidden // config.heads,
            d_ff=config.mlp,
            num_layers=config.layers,
            num_heads=config.heads,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        )
    )


class SmallT5(nn.Module):
    """A T5 encoder trained with the planner, and its vocabulary of words. Case and unknown words do not matter."""

    def __init__(self, config: SmallT5Config, tokenizer: T5Tokenizer) -> None:
        """Raises ValueError if the tokenizer has more pieces than the encoder's vocabulary."""
        super().__init__()
        if len(tokenizer) > config.vocabulary:
            raise ValueError(f"the tokenizer has {len(tokenizer)} pieces, the encoder only {config.vocabulary}")
        self.config = config
        self.encoder = text_encoder(config)
        self._numbers: dict[str, int] = tokenizer.get_vocab()
        self._end: int = tokenizer.eos_token_id
        self._padding: int = tokenizer.pad_token_id

    def encode(self, prompts: list[str]) -> Tensor:
        """Prompts -> [B, max_length, K] of the weights' dtype; rows behind a prompt's end are zero."""
        shape = len(prompts), self.config.max_length
        ids, mask = torch.full(shape, self._padding), torch.zeros(shape, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            numbers = [*(self._numbers[piece] for piece in self._read(prompt).pieces), self._end]
            ids[row, : len(numbers)] = torch.tensor(numbers)
            mask[row, : len(numbers)] = 1
        device = self.encoder.shared.weight.device
        ids, mask = ids.to(device), mask.to(device)
        hidden: Tensor = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
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


def load_tokenizer(folder: Path) -> T5Tokenizer:
    """The tokenizer saved in a weights folder.

    Raises:
        ValueError: if it is not there.
    """
    path = folder / TOKENIZER_FOLDER
    if not (path / "tokenizer.json").exists():
        raise ValueError(f"{path} holds no tokenizer.json: give a folder with complete weights")
    return T5Tokenizer.from_pretrained(str(path))


@torch.no_grad()
def scaled_embeddings(encoder: SmallT5, std: float) -> None:
    """Start word embeddings at `std`: with T5's own start a small planner does not read its caption."""
    nn.init.normal_(encoder.encoder.shared.weight, std=std)

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
    """A T5 encoder trained with the planner, and its tokenizer. Case and unknown characters do not matter."""

    def __init__(self, config: SmallT5Config, tokenizer: T5Tokenizer) -> None:
        """Raises ValueError if the tokenizer has more pieces than the encoder's vocabulary."""
        super().__init__()
        if len(tokenizer) > config.vocabulary:
            raise ValueError(f"the tokenizer has {len(tokenizer)} pieces, the encoder only {config.vocabulary}")
        self.config = config
        self.tokenizer = tokenizer
        self.encoder = text_encoder(config)

    def encode(self, prompts: list[str]) -> Tensor:
        """Prompts -> [B, max_length, K] of the weights' dtype; rows behind a prompt's end are zero."""
        encoded = self.tokenizer(
            [prompt.lower() for prompt in prompts],
            max_length=self.config.max_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        )
        device = self.encoder.shared.weight.device
        ids, mask = encoded["input_ids"].to(device), encoded["attention_mask"].to(device)
        hidden: Tensor = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        masked: Tensor = hidden * mask.unsqueeze(-1).to(hidden.dtype)
        return masked

    def embed(self, prompt: str) -> TextEmbedding:
        """A prompt as planner and renderer read it: the same [1, max_length, K] float32 for both."""
        encoded = self.encode([prompt]).float()
        return TextEmbedding(planner=encoded, renderer=encoded)


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

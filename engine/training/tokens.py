"""Stage `tokenizer`: semantic features to tokens and back (paper Eq. 1-3), on the teacher's maps, without pixels.

Loss: mean squared error of the features, every map in units of its variance, plus the commitment of the codes.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from engine.semantic.tokenizer import SemanticTokenizer, TokenizerConfig
from engine.training import reading, teacher, world
from engine.training.captions import Label, random_label
from engine.weights import save_component

COMMITMENT = 0.25
CONTINUOUS_STEPS = 2700  # before the codebook starts, from clusters of what the encoder has learned by then
SHORT_FRAMES = 5  # length of most training groups; attention costs the square of it, and frames are causal
LONG_EVERY = 3  # every so many steps the groups have full length
SHARES = {
    "mask": 2.0,
    "depth": 0.5,
    "class": 2.0,
    "colour": 3.0,
    "offset": 3.0,
    "scene": 3.0,
    "ground": 1.0,
    "glow": 0.3,
    "cloud": 0.3,
}
HELD_OUT = 200
READOUT = 0.3  # weight of the words' cross-entropy
READ_MAPS = ("class", "colour", "scene")


def groups(rng: random.Random, size: int, frames: int, held_out: bool = False) -> tuple[Tensor, list[Label]]:
    """Teacher features [size, frames, D, h, w] of stretches anywhere in the worlds' time, and their labels."""
    labels = [random_label(rng, held_out) for _ in range(size)]
    spec = world.sample(labels, rng)
    start = torch.tensor([[rng.randrange(400) if rng.random() < 0.7 else 0] for _ in labels])
    return teacher.maps(spec, start + torch.arange(0, frames * 4, 4)), labels


def channel_weights(features: Tensor) -> Tensor:
    """[D, 1, 1]: each map's error over its variance, times its share."""
    variance = features.var(dim=(0, 1, 3, 4))
    weights = torch.empty(teacher.FEATURE_DIM)
    for name, width in teacher.CHANNELS:
        maps = teacher.channel(name)
        weights[maps] = SHARES[name] / (variance[maps].mean() * width)
    return (weights * teacher.FEATURE_DIM / sum(SHARES.values()))[:, None, None]


class ReadTokenizer(nn.Module):
    """The tokenizer and, for its training only, a linear reader of words from the I frame's vectors.

    What is the same in every cell, like the colour, is otherwise learned very late: the encoder does not write it as
    long as the decoder does not read it, and the other way round.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.tokenizer = SemanticTokenizer(config)
        widths = dict(teacher.CHANNELS)
        self.readers = nn.ModuleDict({name: nn.Linear(config.quantizer.dim, widths[name]) for name in READ_MAPS})

    def word_loss(self, latents: Tensor, features: Tensor) -> Tensor:
        """Cross-entropy of the words of [B, T, D, h, w] teacher maps, read from [B, L, E] latents."""
        mean = latents[:, : self.tokenizer.config.i_tokens].float().mean(1)
        losses = []
        for name in READ_MAPS:
            words = features[:, 0, teacher.channel(name)].mean((-2, -1)).argmax(1)
            losses.append(nnf.cross_entropy(self.readers[name](mean), words))
        return torch.stack(losses).sum()


class TokenizerStage:
    """Trains `SemanticTokenizer`."""

    def __init__(self, config: TokenizerConfig, seed: int, device: str, weights: Path) -> None:
        torch.manual_seed(seed)
        self.seed, self.device, self.weights = seed, device, weights
        self.reading = ReadTokenizer(config).to(device)
        self.tokenizer = self.reading.tokenizer
        self.module: nn.Module = self.reading
        features, self.held_out_labels = groups(random.Random(f"tokens {seed}"), HELD_OUT, config.frames, held_out=True)
        self.held_out = features.to(device)
        self.scale = channel_weights(features).to(device)

    def hidden(self) -> list[nn.Parameter]:
        blocks = (*self.tokenizer.encoder.blocks.parameters(), *self.tokenizer.decoder.blocks.parameters())
        return [p for p in blocks if p.ndim == 2]

    def loss(self, step: int, batch: int) -> tuple[Tensor, dict[str, float]]:
        frames = self.tokenizer.config.frames if step % LONG_EVERY == 0 else SHORT_FRAMES
        features, _ = groups(random.Random(f"tokenizer {self.seed} {step}"), batch, frames)
        features = features.to(self.device)
        with torch.autocast(self.device, torch.bfloat16):
            output = self.tokenizer(features, quantize=step >= CONTINUOUS_STEPS)
        error = ((output.reconstruction.float() - features).square() * self.scale).mean()
        words = self.reading.word_loss(output.latents, features)
        figures = {"error": error.item(), "words": words.item(), "perplexity": output.perplexity.item()}
        return error + COMMITMENT * output.commitment + READOUT * words, figures

    def evaluate(self) -> dict[str, float]:
        again = torch.cat([self.tokenizer.decode(self.tokenizer.encode(part)) for part in self.held_out.split(20)])
        error = ((again - self.held_out).square() * self.scale).mean()
        gap = (reading.path(again)[0] - reading.path(self.held_out)[0]).norm(dim=-1)
        seen = reading.path(self.held_out)[1] > 1
        figures = {"error": float(error), "position_px": float(gap[seen].median())}
        return figures | reading.shares(reading.read(again), self.held_out_labels)

    def export(self) -> None:
        save_component(self.weights, "tokenizer", self.tokenizer)

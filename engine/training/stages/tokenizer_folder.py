"""Stage `tokenizer` on a folder of captioned videos, for any preset (paper Eq. 1-3).

Shapes: `B` batch, `T` semantic or latent frames, `D` feature channels, `h` x `w` feature grid, `L` latent tokens of T
frames, `E` token width.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.config import EngineConfig
from engine.loading.weights import save_component
from engine.semantic.tokenizer import SemanticTokenizer
from engine.training.folder import HELD_OUT_SAMPLES, Footage
from engine.training.stages.tokenizer import COMMITMENT, LONG_EVERY, SHORT_FRAMES, FrameReader

SPREAD_CLIPS = 64  # that the features' spread is measured on
LEAST_SPREAD = 0.25  # of the mean spread: what a few clips hardly show does not outweigh all they do
CONTINUOUS_STEPS = 1000  # of a small tokenizer pass vectors unrounded; its codebook starts from clusters of them
MEANS = 3.0  # weight of the means' error


class MeanReader(nn.Module):
    """A tokenizer and, for its training only, a linear reader of each frame's mean features."""

    def __init__(self, tokenizer: SemanticTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.means = FrameReader(tokenizer.config, tokenizer.config.feature_dim)

    def loss(self, latents: Tensor, features: Tensor, scale: Tensor) -> Tensor:
        """Squared error of the means [B, T, D] over the cells of features, read from [B, L, E] latents; as much for the
        I frame as for all others together."""
        error: Tensor = (self.means(latents) - features.mean((-2, -1))).square() * scale
        return error[:, 0].mean() + error[:, 1:].mean()


def channel_scale(spread: Tensor) -> Tensor:
    """What squared errors count, by standard deviations of channels [D]; those of the mean, taken for all, are 1."""
    unit = spread.mean().item()
    return 1 / (unit * spread.clamp(min=LEAST_SPREAD * unit))


class FootageTokenizer:
    """Trains `SemanticTokenizer`: squared error of the features plus the commitment.

    A channel's error counts by its spread: in units of variance what is seldom seen would be most of the loss, and if
    all counted alike none of it. A small tokenizer is learned together with a reader of means: what is the same in
    every cell is otherwise learned very late (`engine.training.build.tokenizer.ReadTokenizer` says why).
    """

    def __init__(self, config: EngineConfig, footage: Footage, seed: int, weights: Path) -> None:
        torch.manual_seed(seed)
        self.footage, self.seed, self.weights = footage, seed, weights
        self.frames, self.small = config.tokenizer.frames, not config.published
        self.tokenizer = SemanticTokenizer(config.tokenizer).to(footage.device)
        self.reader = MeanReader(self.tokenizer).to(footage.device) if self.small else None
        self.module: nn.Module = self.reader or self.tokenizer
        rng = random.Random(f"footage {seed}")
        # Clip by clip: at full size features of so many take gigabytes.
        clips = (self.sample(rng, held_out=False).double() for _ in range(SPREAD_CLIPS))
        moments = [torch.stack([x.mean((0, 1, 3, 4)) for x in (clip, clip.square())]) for clip in clips]
        mean, square = torch.stack(moments).mean(0)
        spread = (square - mean.square()).clamp(min=0).sqrt()
        if config.tokenizer.normalize:
            self.tokenizer.mean.copy_(mean)
            self.tokenizer.std.copy_(spread)
        self.scale = channel_scale(spread).float()
        self.held_out = torch.cat([self.sample(rng, held_out=True) for _ in range(HELD_OUT_SAMPLES)])

    def hidden(self) -> list[nn.Parameter]:
        blocks = (*self.tokenizer.encoder.blocks.parameters(), *self.tokenizer.decoder.blocks.parameters())
        return [p for p in blocks if p.ndim == 2]

    def sample(self, rng: random.Random, held_out: bool) -> Tensor:
        """Features [1, T, D, h, w] of a group."""
        return self.footage.features(self.footage.place(self.footage.pick(rng, held_out), self.frames, rng))

    def loss(self, step: int, batch: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(f"tokenizer {self.seed} {step}")
        torch.manual_seed(rng.getrandbits(63))
        # Mostly short groups: frames are causal, and attention is quadratic.
        length = SHORT_FRAMES if self.small and step % LONG_EVERY else self.frames
        features = torch.cat([self.sample(rng, held_out=False) for _ in range(batch)])[:, :length]
        with torch.autocast(self.footage.device, torch.bfloat16):
            output = self.tokenizer(features, quantize=not self.small or step >= CONTINUOUS_STEPS)
        error = self.error(output.reconstruction, features)
        figures = {"error": error.item(), "perplexity": output.perplexity.item()}
        if self.reader is None:
            return error + output.commitment, figures
        means = self.reader.loss(output.latents, features, self.scale)
        return error + COMMITMENT * output.commitment + MEANS * means, figures | {"means": means.item()}

    def error(self, again: Tensor, features: Tensor) -> Tensor:
        """Squared error of [B, T, D, h, w], 1 for the mean of all features."""
        error: Tensor = ((again.float() - features).square() * self.scale[:, None, None]).mean()
        return error

    def evaluate(self) -> dict[str, float]:
        """Squared error of held-out features through tokens."""
        return {"error": float(self.error(self.tokenizer.decode(self.tokenizer.encode(self.held_out)), self.held_out))}

    def export(self) -> None:
        save_component(self.weights, "tokenizer", self.tokenizer)

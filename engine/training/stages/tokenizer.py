"""Stage `tokenizer`: semantic features to tokens and back (paper Eq. 1-3), for any preset.

Loss: weighted squared error of the features plus the commitment of the tokens. A small tokenizer does not quantise at
first, mostly sees short GOPs, and is trained together with a reader (`readers`).
"""

from __future__ import annotations

import random

import torch
from torch import nn

from engine.loading.options import autocast
from engine.semantic.tokenizer import SemanticTokenizer
from engine.training.run import LossAndFigures, TrainingStage
from engine.training.setup import StageSetup
from engine.training.stages.readers import MeanReader, WorldReader

COMMITMENT = 0.25  # of a small tokenizer; 1 of the published one
# Steps before the codebook starts, from clusters of the vectors by then; fewer for videos, whose steps are slow.
CONTINUOUS_STEPS, CONTINUOUS_STEPS_OF_VIDEOS = 2700, 1000
SHORT_FRAMES = 5  # of most GOPs: attention is quadratic, and frames are causal
LONG_EVERY = 3  # steps with GOPs of full length


class TokenizerStage(TrainingStage):
    """Trains `SemanticTokenizer`."""

    def __init__(self, setup: StageSetup) -> None:
        self.source, config = setup.source(), setup.config.tokenizer
        torch.manual_seed(setup.seed)
        self.device, self.small = setup.device, not setup.config.published
        self.tokenizer = SemanticTokenizer(config).to(setup.device)
        self.channels = self.source.channel_weights().to(setup.device)
        self.reader: nn.Module | None = None
        self.continuous_steps = 0
        if self.small:
            videos = setup.data is not None
            self.reader = (MeanReader(config, self.channels) if videos else WorldReader(config)).to(setup.device)
            self.continuous_steps = CONTINUOUS_STEPS_OF_VIDEOS if videos else CONTINUOUS_STEPS
        parts = [self.tokenizer] if self.reader is None else [self.tokenizer, self.reader]
        super().__init__(setup.weights, nn.ModuleList(parts), tokenizer=self.tokenizer)

    def loss(self, step: int, rng: random.Random, batch: int, held_out: bool = False) -> LossAndFigures:
        frames = SHORT_FRAMES if self.small and step % LONG_EVERY and not held_out else self.tokenizer.config.frames
        features = self.source.features(rng, batch, frames, held_out)
        with autocast(self.device):
            output = self.tokenizer(features, quantize=held_out or step >= self.continuous_steps)
        error = ((output.reconstruction.float() - features).square() * self.channels).mean()
        losses = {"error": error, "commitment": (COMMITMENT if self.small else 1.0) * output.commitment}
        if self.reader is not None:
            losses |= self.reader(output, features)
        figures = {name: loss.item() for name, loss in losses.items()}
        return torch.stack(list(losses.values())).sum(), figures | {"perplexity": output.perplexity.item()}

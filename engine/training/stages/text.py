"""Stage `text`: the small T5 learns to bind the words of a caption, before a planner is trained with it.

"A bird flies to the left, the camera pans right": trained with the planner alone a text encoder stays a bag of words,
as few captions have exchangeable words and they hardly change the likelihood of a plan. Captions are cheap, so here a
step sees many that have, and every word of a label is read linearly from the pooled text.
Shapes: `B` captions, `L` tokens of width `K`.
"""

from __future__ import annotations

import random

import torch
import torch.nn.functional as nnf
from torch import nn

from engine.loading.options import autocast
from engine.text.asked import PAIR_WORDS, WORDS
from engine.training.run import LossAndFigures, TrainingStage
from engine.training.setup import StageSetup
from engine.training.world.captions import Label, caption, random_label

ANSWERS = {name: (*words, None) if name in PAIR_WORDS else words for name, words in WORDS.items()}


def hard_to_bind(label: Label) -> int:
    """Number of exchangeable pairs of words: directions of camera and subject, two subjects."""
    return label.two_ways + (label.relation is not None)


class TextStage(TrainingStage):
    """Trains `SmallT5`, and linear readers of the words, which are not exported."""

    def __init__(self, setup: StageSetup) -> None:
        setup.world()
        torch.manual_seed(setup.seed)
        self.device, self.text = setup.device, setup.new_text()
        width = self.text.config.hidden
        self.readers = nn.ModuleDict({name: nn.Linear(width, len(words)) for name, words in ANSWERS.items()})
        super().__init__(setup.weights, nn.ModuleList([self.text, self.readers]).to(setup.device), text=self.text)

    def loss(self, step: int, rng: random.Random, batch: int, held_out: bool = False) -> LossAndFigures:
        """Cross-entropy of the words; for `held_out` captions also the share of right words of each kind."""
        labels = [max((random_label(rng, held_out) for _ in range(2)), key=hard_to_bind) for _ in range(batch)]
        with autocast(self.device):
            text = self.text.encode([caption(label, rng) for label in labels])
        pooled = nnf.layer_norm(text.float().mean(1), text.shape[-1:])
        losses, right = [], {}
        for name, words in ANSWERS.items():
            answers = torch.tensor([words.index(getattr(label, name)) for label in labels], device=self.device)
            read = self.readers[name](pooled)
            losses.append(nnf.cross_entropy(read, answers))
            right[name] = float((read.argmax(1) == answers).float().mean())
        return torch.stack(losses).sum(), right if held_out else {}

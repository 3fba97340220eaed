"""Stage `text`: the small T5 learns which word of a caption belongs to what, before a planner is trained with it.

"A bird flies to the left, the camera pans right": a text encoder that is trained with the planner alone stays a bag of
words, since few captions have words that could change places, and a plan's likelihood loses little by them. Captions
cost nearly nothing to read, so here a step sees many of those, and every word of a label must be plain from the pooled
text.
Shapes: `B` captions, `L` tokens of width `K`.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from engine.loading.weights import save_component
from engine.text.small_t5 import SmallT5, scaled_embeddings
from engine.training.world.captions import PAIR_WORDS, WORDS, Label, caption, hardest_label, random_label

TEXT_STD = 0.3
HELD_OUT = 1200
ANSWERS = {name: (*words, None) if name in PAIR_WORDS else words for name, words in WORDS.items()}


def hard_to_bind(label: Label) -> int:
    """How many pairs of words could change places: the camera's way and the subject's, two subjects."""
    return label.two_ways + (label.relation is not None)


class TextStage:
    """Trains `SmallT5`, and linear readers of a label's words, which are not kept."""

    def __init__(self, text: SmallT5, seed: int, device: str, weights: Path) -> None:
        torch.manual_seed(seed)
        self.seed, self.device, self.weights = seed, device, weights
        scaled_embeddings(text, TEXT_STD)
        self.text = text
        width = text.config.hidden
        self.readers = nn.ModuleDict({name: nn.Linear(width, len(words)) for name, words in ANSWERS.items()})
        self.module: nn.Module = nn.ModuleList([text, self.readers]).to(device)
        rng = random.Random(f"text held out {seed}")
        labels = [random_label(rng, held_out=True) for _ in range(HELD_OUT)]
        self.held_out = [label for label in labels if hard_to_bind(label)]
        self.held_out_captions = [caption(label, rng) for label in self.held_out]

    def hidden(self) -> list[nn.Parameter]:
        return []

    def loss(self, step: int, batch: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(f"text {self.seed} {step}")
        labels = [hardest_label(rng, hard_to_bind) for _ in range(batch)]
        read = self.read([caption(label, rng) for label in labels])
        losses = [nnf.cross_entropy(read[name], self.answers(name, labels)) for name in WORDS]
        return torch.stack(losses).sum(), {}

    def read(self, captions: list[str]) -> dict[str, Tensor]:
        """Logits [B, words] of each kind of word, from the pooled text."""
        with torch.autocast(self.device, torch.bfloat16):
            text = self.text.encode(captions)
        pooled = nnf.layer_norm(text.float().mean(1), text.shape[-1:])
        return {name: reader(pooled) for name, reader in self.readers.items()}

    def answers(self, name: str, labels: list[Label]) -> Tensor:
        """Which of ANSWERS is right, int64 [B]."""
        return torch.tensor([ANSWERS[name].index(getattr(label, name)) for label in labels], device=self.device)

    def evaluate(self) -> dict[str, float]:
        """Share of right words in held-out captions some of whose words could change places."""
        read = self.read(self.held_out_captions)
        right = {name: read[name].argmax(1) == self.answers(name, self.held_out) for name in WORDS}
        return {name: float(found.float().mean()) for name, found in right.items()}

    def export(self) -> None:
        save_component(self.weights, "text", self.text)

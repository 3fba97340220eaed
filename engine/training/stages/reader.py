"""Stage `reader`: what prompts ask for, and which of their words have no effect.

Prompts are typed ones (`typed_prompts`) with exact answers. Embeddings of pieces are frozen, and noise of their own
size is laid on them, so that words near a known one are read as it is.
Shapes: `B` prompts, `L` pieces.
"""

from __future__ import annotations

import random
from collections import Counter

import torch
import torch.nn.functional as nnf
from torch import Tensor

from engine.loading.options import autocast
from engine.text.asked import swapped
from engine.text.reader import ANSWERS, PIECES_FILE, WORDS_FILE, PieceBatch, PromptReader, make_reader
from engine.training.run import LossAndFigures, TrainingStage
from engine.training.sentence_model import piece_embeddings
from engine.training.setup import StageSetup
from engine.training.world.phrasing import LEXICON
from engine.training.world.typed_prompts import TypedPrompt, typed_prompt

NOISE, NOISY_SHARE = 0.6, 0.6  # most noise, as a share of an embedding's length; prompts that have it
COUNTED = 20_000  # prompts that words are counted in
EFFECT_WEIGHT = 2.0  # of the loss of words without effect
NEAR = 0.42  # cosine of embeddings above which a word may mean the same


class ReaderStage(TrainingStage):
    """Trains `PromptReader`, whose embeddings come from the sentence model."""

    hidden = r"blocks\."

    def __init__(self, setup: StageSetup) -> None:
        setup.world()
        assert (config := setup.config.reader) is not None, "the drawn world's presets have a reader"
        torch.manual_seed(setup.seed)
        self.device = setup.device
        if setup.warm_start:
            setup.require("reader")
            # Known words are those of the present lexicon.
            self.reader = PromptReader(config, make_reader(config, setup.weights).pieces, known_words())
        else:
            pieces, embeddings = piece_embeddings(config.embedding)
            self.reader = PromptReader(config, pieces, known_words())
            self.reader.table.store(nnf.pad(embeddings, (0, 0, 0, config.vocabulary - len(pieces))))
        self.spare: list[str] = []
        super().__init__(setup.weights, self.reader.to(setup.device), reader=self.reader)

    def loss(self, step: int, rng: random.Random, batch: int, held_out: bool = False) -> LossAndFigures:
        """Cross-entropy of fields and of words without effect; of unseen words and templates also shares of right
        fields, and of prompts that are wholly right."""
        # Not before, as weights to begin with are loaded behind the constructor.
        self.spare = self.spare or spare_words(self.reader)
        prompts = [typed_prompt(rng, held_out, self.spare) for _ in range(2 * batch)]
        if not held_out:
            # Prompts of like length, so that little of a batch is padding.
            prompts = sorted(prompts, key=lambda one: len(one.text))[:: 1 if rng.random() < 0.5 else -1][:batch]
        pieces = self.reader.batch([prompt.text for prompt in prompts])
        embedded = self.reader.embed(pieces)
        if not held_out:
            embedded = noisy(embedded)
        with autocast(self.device):
            logits, effects = self.reader(embedded, pieces.mask)
        losses, right = [], {}
        said = [swapped(one.asked.words) if one.swapped else one.asked.words for one in prompts]
        for name, answers in ANSWERS.items():
            target = torch.tensor([answers.index(words[name]) for words in said], device=self.device)
            losses.append(nnf.cross_entropy(logits[name].float(), target))
            right[name] = logits[name].argmax(1) == target
        idle = no_effect(pieces, prompts).to(self.device)
        wrong = nnf.binary_cross_entropy_with_logits(effects.float(), idle, reduction="none")
        losses.append(EFFECT_WEIGHT * wrong[pieces.mask].mean())
        every = torch.stack(list(right.values())).all(0)
        figures = {name: float(one.float().mean()) for name, one in right.items()} if held_out else {}
        return torch.stack(losses).sum(), {"all": float(every.float().mean()), **figures}

    def export(self) -> None:
        super().export()
        for name, words in ((PIECES_FILE, self.reader.pieces), (WORDS_FILE, self.reader.known)):
            (self.weights / name).write_text("\n".join(words) + "\n", encoding="utf-8")


def known_words() -> list[str]:
    """Words of many prompts without typos, the most frequent first, and behind them the lexicon's other ones."""
    rng = random.Random("words")
    counts = Counter(word for _ in range(COUNTED) for word in typed_prompt(rng, typos=0.0).text.split())
    lexicon = (word for text in _texts(LEXICON) for word in text.lower().split())
    return list(
        dict.fromkeys(word for word in (*(word for word, _ in counts.most_common()), *lexicon) if word.isalpha())
    )


def noisy(embedded: Tensor) -> Tensor:
    """Embeddings [B, L, E] with noise, in some of the prompts."""
    share = NOISE * torch.rand(len(embedded), 1, 1, device=embedded.device)
    share = share * (torch.rand_like(share) < NOISY_SHARE)
    noise: Tensor = torch.randn_like(embedded) / embedded.shape[-1] ** 0.5
    noise *= share * embedded.norm(dim=-1, keepdim=True)
    return embedded + noise


def no_effect(pieces: PieceBatch, prompts: list[TypedPrompt]) -> Tensor:
    """1 at pieces [B, L] of characters without effect, else 0."""
    rows = [
        [float(any(start >= a and end <= b for a, b in prompt.no_effect) and end > start) for start, end in spans]
        for prompt, spans in zip(prompts, pieces.spans, strict=True)
    ]
    return torch.tensor(rows)


def spare_words(reader: PromptReader) -> list[str]:
    """Whole words of the vocabulary that the lexicon does not have and whose embeddings are not near its words."""
    known = {word for text in _texts(LEXICON) for word in text.lower().replace("-", " ").split()}
    numbers = {piece: number for number, piece in enumerate(reader.pieces)}
    table = nnf.normalize(reader.table.rows(torch.arange(len(reader.pieces))), dim=1)
    said = [text for name in ("nouns", "colours", "scenes", "directions", "speeds") for text in _texts(LEXICON[name])]
    near = table[sorted({numbers[word] for text in said for word in text.split() if word in numbers and len(word) > 3})]
    words = [piece for piece in reader.pieces if piece.isalpha() and len(piece) > 3 and piece not in known]
    closest = (table[[numbers[word] for word in words]] @ near.T).amax(1).tolist()
    return [word for word, closeness in zip(words, closest, strict=True) if closeness < NEAR]


def _texts(table: object) -> list[str]:
    if isinstance(table, dict):
        return [text for value in table.values() for text in _texts(value)]
    return [text for value in table for text in _texts(value)] if isinstance(table, list) else [str(table)]

"""Reads what a prompt asks for, in whatever English: a small transformer over pieces of words, with a head a field.

The embeddings of pieces are those of a public sentence model (docs/MODEL_CARD.md), in 8 bits, so that it knows words by
their neighbours.
Shapes: `B` prompts, `L` pieces, `D` width, `V` pieces of the vocabulary.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as nnf
from tokenizers.implementations import BertWordPieceTokenizer
from torch import Tensor, nn

from engine.text.asked import REVERSED, WORDS, Asked, swapped
from engine.text.spelling import Speller

# Beside the weights: pieces, and known words from the most frequent to the least, one a line.
PIECES_FILE, WORDS_FILE = "reader_pieces.txt", "reader_words.txt"
_PART = re.compile(r"[^\W_]+|\S")  # of a prompt: a word, or another character
# What is read, with subjects in the order in which a prompt names them; the last answer is "open".
ANSWERS = {name: (*words, *(REVERSED.values() if name == "relation" else ()), None) for name, words in WORDS.items()}
# Of no interest among words without effect.
_GLUE = frozenset("a an the of to in on at by with and or is are it its this that my i me you for".split())
_ANY_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


@dataclass(frozen=True, slots=True)
class PromptReaderConfig:
    """Sizes of preset `mini`'s reader."""

    hidden: int = 192
    layers: int = 3
    heads: int = 6
    mlp: int = 576
    embedding: int = 256  # width of a piece's embedding
    vocabulary: int = 27_648  # pieces at most
    max_length: int = 128  # pieces that are read; what is behind has no effect

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not divisible by {self.heads} heads")


class ByteMatrix(nn.Module):
    """A matrix [rows, columns] of 8-bit numbers, each row with a scale of its own."""

    numbers: Tensor
    scale: Tensor

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.register_buffer("numbers", torch.zeros(rows, columns, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(rows, 1))

    def store(self, matrix: Tensor) -> None:
        """Rounds a float matrix."""
        self.scale.copy_(matrix.detach().abs().amax(1, keepdim=True).clamp(min=1e-12) / 127)
        self.numbers.copy_((matrix.detach() / self.scale).round())

    def rows(self, index: Tensor) -> Tensor:
        """Rows [..., columns] of the index, float32."""
        return self.numbers[index].float() * self.scale[index]


class ReaderBlock(nn.Module):
    """Attention and MLP, normalised before each."""

    def __init__(self, config: PromptReaderConfig) -> None:
        super().__init__()
        width, self.heads = config.hidden, config.heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, config.mlp), nn.Linear(config.mlp, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[B, L, D]; `mask` [B, 1, 1, L] is true at pieces of the prompt."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # By hand: torch 2.13's fused attention takes ten times as long to learn on a CPU, in bfloat16.
        scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).float().masked_fill(~mask, -torch.inf)
        attended = scores.softmax(-1).to(v.dtype) @ v
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        added: Tensor = x + self.narrow(nnf.gelu(self.wide(self.norm2(x))))
        return added


@dataclass(frozen=True, slots=True)
class PieceBatch:
    """Prompts as pieces, [B, L] each."""

    ids: Tensor
    mask: Tensor  # true at pieces of the prompt
    spans: list[list[tuple[int, int]]]  # characters of the word of each piece; (0, 0) for marks and padding


class PromptReader(nn.Module):
    """Prompts to a word for each field, or to "open", and pieces without effect."""

    def __init__(self, config: PromptReaderConfig, pieces: Sequence[str], known: Sequence[str] = ()) -> None:
        """Mistyped words are taken for those of `known`, most frequent first.

        Raises ValueError if there are more pieces than the configuration has room for.
        """
        super().__init__()
        if len(pieces) > config.vocabulary:
            raise ValueError(f"the reader has {len(pieces)} pieces, its configuration room for {config.vocabulary}")
        self.config, self.pieces, self.known = config, pieces, known
        numbers = {piece: number for number, piece in enumerate(pieces)}
        self._tokenizer = BertWordPieceTokenizer(numbers, lowercase=True)
        self._tokenizer.enable_truncation(config.max_length)
        self._tokenizer.enable_padding()
        self._speller = Speller(known, numbers)
        width = config.hidden
        self.table = ByteMatrix(config.vocabulary, config.embedding)
        self.start = nn.Linear(config.embedding, width)
        self.positions = nn.Parameter(0.1 * torch.randn(config.max_length, width))
        self.blocks = nn.ModuleList(ReaderBlock(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Parameter(0.1 * torch.randn(len(WORDS), width))
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(words)) for name, words in ANSWERS.items()})
        self.effect = nn.Linear(width, 1)

    def batch(self, prompts: list[str]) -> PieceBatch:
        """Pieces of prompts; those behind `max_length` are cut."""
        parts = [list(_PART.finditer(prompt)) or list(_PART.finditer(".")) for prompt in prompts]
        words = [[self._speller(part[0]) for part in row] for row in parts]
        read = self._tokenizer.encode_batch(words, is_pretokenized=True)
        device = self.positions.device
        ids, mask = (
            torch.tensor([getattr(row, name) for row in read], device=device) for name in ("ids", "attention_mask")
        )
        spans = [
            [(0, 0) if place is None else row[place].span() for place in one.word_ids]
            for one, row in zip(read, parts, strict=True)
        ]
        return PieceBatch(ids, mask.bool(), spans)

    def embed(self, batch: PieceBatch) -> Tensor:
        """Embeddings [B, L, embedding] of pieces, float32."""
        return self.table.rows(batch.ids)

    def forward(self, embedded: Tensor, mask: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Logits [B, answers] of each field, and [B, L] of pieces that have no effect."""
        x = self.start(embedded) + self.positions[: embedded.shape[1]]
        for block in self.blocks:
            x = block(x, mask[:, None, None])
        x = self.norm(x)
        scores = (x @ self.queries.T).masked_fill(~mask[..., None], -torch.inf).softmax(1)
        fields = torch.einsum("blf,bld->bfd", scores, x)
        logits = {name: self.heads[name](fields[:, place]) for place, name in enumerate(ANSWERS)}
        return logits, self.effect(x)[..., 0]

    @torch.inference_mode()
    def read(self, prompt: str) -> tuple[Asked, tuple[str, ...]]:
        """What a prompt asks for, and its words without effect."""
        prompt = unicodedata.normalize("NFKC", prompt)
        batch = self.batch([prompt])
        # Always in float32: a word on the brink must not depend on who asks.
        with torch.autocast(self.positions.device.type, enabled=False):
            logits, effects = self(self.embed(batch), batch.mask)
        words = {name: ANSWERS[name][int(row.argmax())] for name, row in logits.items()}
        if words["subject"] is None or words["subject2"] is None:
            words |= {"relation": None, "subject2": None, "colour2": None}
        if words["relation"] in REVERSED.values():
            words = swapped(words)
        spans = [(start, end, idle) for (start, end), idle in zip(batch.spans[0], effects[0].tolist(), strict=True)]
        return Asked(**words), tuple(dict.fromkeys(_idle_words(prompt, spans)))


def _idle_words(prompt: str, spans: list[tuple[int, int, float]]) -> Iterator[str]:
    """Words whose pieces have no effect on the whole, or that were not read."""
    for word in _ANY_WORD.finditer(prompt):
        idle = [logit for start, end, logit in spans if start < word.end() and end > word.start()]
        if word[0].lower() not in _GLUE and (not idle or sum(idle) > 0):
            yield word[0].lower()


def make_reader(config: PromptReaderConfig, folder: Path) -> PromptReader:
    """The reader with the vocabulary of a weights folder. Raises ValueError if that is not there."""
    lists = []
    for name in (PIECES_FILE, WORDS_FILE):
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing: give a folder with complete weights")
        lists.append((folder / name).read_text(encoding="utf-8").splitlines())
    return PromptReader(config, *lists)

"""The words of a prompt that a small text encoder knows. All others are left out, and named."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

WORD_START = "▁"  # sentencepiece's mark of the beginning of a word
COMMA = ","
# What says least goes first where a prompt is too long.
FILLERS = (
    ("a", "an", "the", "one"),
    ("big", "little", "pretty", "round", "beach", "motor", "swimming", "flying", "sailing", "hot-air", "hot air"),
    ("by day", "on sunny day", "at steady pace", "fixed camera"),
)


@dataclass(frozen=True, slots=True)
class Reading:
    """What an encoder reads of a prompt."""

    pieces: list[str]  # of its vocabulary
    unread: tuple[str, ...]  # words that it does not read, each once


def read_words(prompt: str, vocabulary: Collection[str], most: int) -> Reading:
    """Reads a prompt word by word, whatever its case; words of several known parts, such as "car/boat", are read.

    Unknown words are left out first. If more than `most` pieces remain, so are those of FILLERS, kind by kind, and at
    last what comes after the first `most`, which counts as unread.
    """
    pieces: list[str] = []
    unread: list[str] = []
    # Compatible forms are one character: full-width letters, ligatures.
    for token in re.findall(rf"{COMMA}|[^\s{COMMA}]+", unicodedata.normalize("NFKC", prompt).lower()):
        if token == COMMA:
            # Where words were left out, several may come together.
            pieces += [COMMA] if COMMA in vocabulary and pieces and pieces[-1] != COMMA else []
            continue
        known, unknown = _parts(token, vocabulary)
        pieces += known
        unread += unknown
    if pieces and pieces[-1] == COMMA:
        pieces.pop()
    for fillers in FILLERS:
        if len(pieces) > most:
            pieces = list(_without(pieces, [_pieces(filler) for filler in fillers]))
    unread += [piece.removeprefix(WORD_START) for piece in pieces[most:] if piece != COMMA]
    return Reading(pieces[:most], tuple(dict.fromkeys(unread)))


def _parts(token: str, vocabulary: Collection[str]) -> tuple[list[str], list[str]]:
    """Known pieces of a token, and its unknown words."""
    bare = token.strip("".join(mark for mark in token if unicodedata.category(mark)[0] in "PC"))
    for word in (token, bare):
        if word and WORD_START + word in vocabulary:
            return [WORD_START + word], []
    parts = [part for part in re.split(r"[\W_]+", bare) if part]
    known = [WORD_START + part for part in parts if WORD_START + part in vocabulary]
    if not known:
        return [], [bare] if bare else []
    return known, [part for part in parts if WORD_START + part not in vocabulary]


def _without(pieces: Sequence[str], fillers: Sequence[Sequence[str]]) -> Iterator[str]:
    place = 0
    while place < len(pieces):
        filler = next((filler for filler in fillers if pieces[place : place + len(filler)] == filler), [])
        if not filler:
            yield pieces[place]
        place += len(filler) or 1


def _pieces(words: str) -> list[str]:
    return [WORD_START + word for word in words.split()]

"""Captions of the drawn world: labels, a small grammar that words them, and the text tokenizer of its words.

A `Label` is the content of a caption; `caption` puts it in one of many ways. A tenth of all labels is held out from
training.
"""

from __future__ import annotations

import hashlib
import math
import random
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.text.asked import (
    CAMERAS,
    COLOURS,
    DIRECTIONS,
    PAIR_WORDS,
    RELATIONS,
    SCENES,
    SPEEDS,
    SUBJECTS,
    WORDINGS,
    WORDS,
)
from engine.text.small_t5 import TOKENIZER_FOLDER
from engine.text.words import WORD_START

if TYPE_CHECKING:
    from transformers import T5Tokenizer

HELD_OUT_SHARE = 0.1
PAIR_SHARE = 0.15  # of labels have a second subject
PAN_SHARE = 0.25  # of labels have a panning camera
MOST_WORDS = 23  # of a caption, with commas: the text encoder reads 24 tokens, one of them its end mark
VOCABULARY_CAPTIONS = 20_000  # enough to have all words of the grammar
VOCABULARY = 256  # pieces of `mini`
SPECIAL_PIECES = ("<pad>", "</s>", "<unk>")
LETTER_SCORE = -20.0  # log probability, far below that of any word


@dataclass(frozen=True, slots=True)
class Label:
    """The content of one video, each field a word of the tuples above. A still subject has speed "slow".

    Directions are those on the screen, whatever the camera does. A second subject moves with the first, which stays
    `relation` (above or left of) it; without one the last three fields are None.
    """

    subject: str
    colour: str
    scene: str
    direction: str
    speed: str
    camera: str = "fixed"
    relation: str | None = None
    subject2: str | None = None
    colour2: str | None = None

    def __post_init__(self) -> None:
        pair = any(getattr(self, name) is not None for name in PAIR_WORDS)
        for name, allowed in WORDS.items():
            value = getattr(self, name)
            if value not in allowed and (pair or name not in PAIR_WORDS):
                raise ValueError(f"{value!r} is not one of {', '.join(allowed)}")

    @property
    def moves(self) -> bool:
        """Whether the subject leaves its place."""
        return self.direction not in ("still", "bounce")

    @property
    def two_ways(self) -> bool:
        """Whether camera and subject both move sideways, so that one direction could be taken for the other."""
        return self.camera != "fixed" and self.direction in ("left", "right")

    @property
    def held_out(self) -> bool:
        """Whether training never sees the label: a tenth of all combinations, chosen by hash."""
        key = f"{self.subject} {self.colour} {self.scene} {self.direction}".encode()
        return hashlib.sha256(key).digest()[0] < 256 * HELD_OUT_SHARE

    @property
    def words(self) -> dict[str, str]:
        """The words that a judge can find right or wrong, by kind. Fixed and panning cameras are kinds of their own,
        and only a label with a second subject has the three words of one."""
        names = [name for name in WORDS if self.relation or name not in PAIR_WORDS]
        kinds = ["fixed_camera" if name == "camera" and self.camera == "fixed" else name for name in names]
        return {kind: getattr(self, name) for kind, name in zip(kinds, names, strict=True)}


def random_label(rng: random.Random, held_out: bool = False) -> Label:
    """A label of the training combinations, or of the held-out ones. Second subjects differ in kind and colour."""
    while True:
        direction = rng.choice(DIRECTIONS)
        label = Label(
            subject=rng.choice(SUBJECTS),
            colour=rng.choice(COLOURS),
            scene=rng.choice(SCENES),
            direction=direction,
            speed="slow" if direction == "still" else rng.choice(SPEEDS),
            camera=rng.choice(CAMERAS[1:]) if rng.random() < PAN_SHARE else "fixed",
        )
        if rng.random() < PAIR_SHARE:
            label = replace(
                label,
                relation=rng.choice(RELATIONS),
                subject2=rng.choice([subject for subject in SUBJECTS if subject != label.subject]),
                colour2=rng.choice([colour for colour in COLOURS if colour != label.colour]),
            )
        if label.held_out == held_out:
            return label


def hardest_label(rng: random.Random, hardness: Callable[[Label], int], draws: int = 2) -> Label:
    """The label of the greatest hardness among `draws` training labels."""
    return max((random_label(rng) for _ in range(draws)), key=hardness)


def caption(label: Label, rng: random.Random) -> str:
    """A random wording of `label`, of at most MOST_WORDS words, without a full stop."""
    while True:
        text = _wording(label, rng)
        if len(text.replace(",", " ,").split()) <= MOST_WORDS:
            return text


def _wording(label: Label, rng: random.Random) -> str:
    thing = _thing(label.subject, label.colour, rng)
    if label.subject2 and label.colour2 and label.relation:
        thing += f" {rng.choice(WORDINGS['relations'][label.relation])} {_thing(label.subject2, label.colour2, rng)}"
    where = rng.choice(WORDINGS["scenes"][label.scene])
    camera = rng.choice(WORDINGS["cameras"][label.camera])
    clause = f"{thing} {_action(label, rng)} {where}"
    if rng.random() < 0.25:
        clause = f"{where}, {thing} {_action(label, rng)}"
    if not camera:
        return clause
    return f"{camera}, {clause}" if rng.random() < 0.25 else f"{clause}, {camera}"


def _thing(subject: str, colour: str, rng: random.Random) -> str:
    article = rng.choice(("a", "the", "one", "a")) if rng.random() < 0.8 else "a big"
    words = rng.choice(WORDINGS["subjects"][subject]["nouns"])
    if colour == "orange" and article == "a":
        article = "an"
    return f"{article} {colour} {words}"


def _action(label: Label, rng: random.Random) -> str:
    if label.direction == "still":
        return str(rng.choice(WORDINGS["still"]))
    speed = rng.choice(WORDINGS["speeds"][label.speed])
    if label.direction == "bounce":
        parts = [rng.choice(WORDINGS["bounce"]), speed]
    else:
        verb = rng.choice(WORDINGS["pair_verbs"] if label.subject2 else WORDINGS["subjects"][label.subject]["verbs"])
        direction = rng.choice(WORDINGS["directions"][label.direction])
        parts = [verb, speed, direction] if rng.random() < 0.5 else [verb, direction, speed]
    return " ".join(part for part in parts if part)


def make_tokenizer(folder: Path, vocabulary: int = VOCABULARY, captions: Sequence[str] | None = None) -> T5Tokenizer:
    """Makes a text tokenizer and saves it in `folder`: a known word is one piece.

    Args:
        vocabulary: number of pieces at most: letters, and the most frequent words.
        captions: texts whose words become pieces; those of the grammar if None.
    """
    from transformers import T5Tokenizer

    if captions is None:
        rng = random.Random("words")
        captions = [caption(random_label(rng), rng) for _ in range(VOCABULARY_CAPTIONS)]
    counts = Counter(word for text in captions for word in text.replace(",", " ,").split())
    spelling = (WORD_START, *string.ascii_lowercase, *string.digits, *".,!?'-")
    # Sorted, so that a word keeps its number when only frequencies change.
    words = sorted(counts.most_common(vocabulary - len(SPECIAL_PIECES) - len(spelling)))
    scores = dict.fromkeys(SPECIAL_PIECES, 0.0)
    scores |= {word if word == "," else WORD_START + word: math.log(n / counts.total()) for word, n in words}
    scores |= {piece: LETTER_SCORE for piece in spelling if piece not in scores}
    tokenizer = T5Tokenizer(vocab=list(scores.items()), extra_ids=0)
    tokenizer.save_pretrained(str(folder / TOKENIZER_FOLDER))
    return tokenizer

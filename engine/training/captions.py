"""Captions of the drawn world: a small grammar with paraphrases, and which combinations are held out.

A `Label` is what a caption says; `caption` words it in one of many ways. Held-out labels never occur in training.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

SUBJECTS = ("ball", "sailboat", "car", "fish")
COLOURS = ("red", "yellow", "green", "blue", "purple", "white")
SCENES = ("hills", "desert", "sea", "night")
DIRECTIONS = ("still", "left", "right", "up", "down")
SPEEDS = ("slow", "medium", "fast")

HELD_OUT_SHARE = 0.1

SUBJECT_WORDS = {
    "ball": ("ball", "round ball", "beach ball"),
    "sailboat": ("sailboat", "sailing boat", "little boat"),
    "car": ("car", "little car", "motor car"),
    "fish": ("fish", "little fish", "swimming fish"),
}
SCENE_WORDS = {
    "hills": ("over green hills", "over the hills on a sunny day", "across the meadows by day"),
    "desert": ("through the desert", "in the desert at sunset", "over the dunes at sunset"),
    "sea": ("on the sea", "over the blue sea", "by the sea with waves"),
    "night": ("at night", "under the night sky", "under the stars at night"),
}
DIRECTION_WORDS = {
    "left": ("to the left", "left", "leftwards", "towards the left"),
    "right": ("to the right", "right", "rightwards", "towards the right"),
    "up": ("up", "upwards", "up into the air"),
    "down": ("down", "downwards", "down to the ground"),
}
SPEED_WORDS = {
    "slow": ("slowly", "gently", "at a slow pace"),
    "medium": ("", "", "at a steady pace"),
    "fast": ("fast", "quickly", "at high speed"),
}
VERBS = {
    "ball": ("floats", "moves", "rolls"),
    "sailboat": ("sails", "moves", "drifts"),
    "car": ("drives", "moves", "goes"),
    "fish": ("swims", "moves", "glides"),
}
STILL_WORDS = ("stands still", "does not move", "rests", "stays in place")


@dataclass(frozen=True, slots=True)
class Label:
    """What one video shows, each field a word of the tuples above. A still subject has speed "slow"."""

    subject: str
    colour: str
    scene: str
    direction: str
    speed: str

    def __post_init__(self) -> None:
        for value, allowed in (
            (self.subject, SUBJECTS),
            (self.colour, COLOURS),
            (self.scene, SCENES),
            (self.direction, DIRECTIONS),
            (self.speed, SPEEDS),
        ):
            if value not in allowed:
                raise ValueError(f"{value!r} is not one of {', '.join(allowed)}")

    @property
    def held_out(self) -> bool:
        """True for the tenth of all combinations, chosen by hash, that training never sees."""
        key = f"{self.subject} {self.colour} {self.scene} {self.direction}".encode()
        return hashlib.sha256(key).digest()[0] < 256 * HELD_OUT_SHARE


def random_label(rng: random.Random, held_out: bool = False) -> Label:
    """A label drawn evenly from the training combinations, or from the held-out ones."""
    while True:
        direction = rng.choice(DIRECTIONS)
        label = Label(
            subject=rng.choice(SUBJECTS),
            colour=rng.choice(COLOURS),
            scene=rng.choice(SCENES),
            direction=direction,
            speed="slow" if direction == "still" else rng.choice(SPEEDS),
        )
        if label.held_out == held_out:
            return label


def caption(label: Label, rng: random.Random) -> str:
    """One of the grammar's wordings of `label`, without a final stop."""
    article = rng.choice(("a", "the", "one", "a")) if rng.random() < 0.8 else "a big"
    thing = f"{article} {label.colour} {rng.choice(SUBJECT_WORDS[label.subject])}"
    where = rng.choice(SCENE_WORDS[label.scene])
    if label.direction == "still":
        action = rng.choice(STILL_WORDS)
    else:
        speed = rng.choice(SPEED_WORDS[label.speed])
        verb = rng.choice(VERBS[label.subject])
        direction = rng.choice(DIRECTION_WORDS[label.direction])
        parts = [verb, speed, direction] if rng.random() < 0.5 else [verb, direction, speed]
        action = " ".join(part for part in parts if part)
    if rng.random() < 0.25:
        return f"{where}, {thing} {action}"
    return f"{thing} {action} {where}"

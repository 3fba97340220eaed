"""Captions of the drawn world: a small grammar with paraphrases, and which combinations are held out.

A `Label` is what a caption says; `caption` words it in one of many ways. Held-out labels never occur in training.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

# New words come last: their place is a feature channel of trained weights.
SUBJECTS = ("ball", "sailboat", "car", "fish", "balloon", "bird", "airplane", "butterfly")
COLOURS = ("red", "yellow", "green", "blue", "purple", "white", "orange", "pink")
SCENES = ("hills", "desert", "sea", "night", "sunset", "underwater")
DIRECTIONS = ("still", "left", "right", "up", "down", "bounce")
SPEEDS = ("slow", "medium", "fast")
CAMERAS = ("fixed", "left", "right")
RELATIONS = ("above", "left of")
# Of each field of a `Label`, what it may be; the last three are None without a second subject.
WORDS = {
    "subject": SUBJECTS,
    "colour": COLOURS,
    "scene": SCENES,
    "direction": DIRECTIONS,
    "speed": SPEEDS,
    "camera": CAMERAS,
    "relation": RELATIONS,
    "subject2": SUBJECTS,
    "colour2": COLOURS,
}
PAIR_WORDS = ("relation", "subject2", "colour2")

HELD_OUT_SHARE = 0.1
PAIR_SHARE = 0.15  # of labels with a second subject
PAN_SHARE = 0.25  # of labels whose camera pans
MOST_WORDS = 23  # of a caption, commas counted: the text encoder reads 24 tokens, its end mark among them

SUBJECT_WORDS = {
    "ball": ("ball", "round ball", "beach ball"),
    "sailboat": ("sailboat", "sailing boat", "little boat"),
    "car": ("car", "little car", "motor car"),
    "fish": ("fish", "little fish", "swimming fish"),
    "balloon": ("hot-air balloon", "hot air balloon", "balloon"),
    "bird": ("bird", "little bird", "flying bird"),
    "airplane": ("airplane", "plane", "little airplane"),
    "butterfly": ("butterfly", "little butterfly", "pretty butterfly"),
}
SCENE_WORDS = {
    "hills": ("over green hills", "over the hills on a sunny day", "across the meadows by day"),
    "desert": ("through the desert", "in the desert by day", "over the dunes in the desert"),
    "sea": ("on the sea", "over the blue sea", "by the sea with waves"),
    "night": ("at night", "under the night sky", "under the stars at night", "over the city at night"),
    "sunset": ("at sunset", "over the mountains at sunset", "under the evening sky"),
    "underwater": ("under water", "deep under water", "at the bottom of the sea"),
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
    "balloon": ("floats", "moves", "drifts"),
    "bird": ("flies", "moves", "glides"),
    "airplane": ("flies", "moves", "goes"),
    "butterfly": ("flutters", "moves", "flies"),
}
PAIR_VERBS = ("moves", "goes", "drifts")
STILL_WORDS = ("stands still", "does not move", "rests", "stays in place")
BOUNCE_WORDS = ("bounces", "hops", "bounces in place", "hops up and down", "bounces up and down")
RELATION_WORDS = {
    "above": ("above", "over", "right above"),
    "left of": ("left of", "to the left of", "on the left of"),
}
CAMERA_WORDS = {
    "fixed": ("", "", "", "", "", "fixed camera"),
    "left": ("the camera pans left", "panning left", "the camera moves to the left", "camera panning left"),
    "right": ("the camera pans right", "panning right", "the camera moves to the right", "camera panning right"),
}


@dataclass(frozen=True, slots=True)
class Label:
    """What one video shows, each field a word of the tuples above. A still subject has speed "slow".

    Directions are those on the screen, whatever the camera does. A second subject moves like the first, which stays
    `relation` it; without one its three fields are None.
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
        """Whether the camera pans and the subject goes left or right, so that one way could be taken for the other."""
        return self.camera != "fixed" and self.direction in ("left", "right")

    @property
    def held_out(self) -> bool:
        """True for the tenth of all combinations, chosen by hash, that training never sees."""
        key = f"{self.subject} {self.colour} {self.scene} {self.direction}".encode()
        return hashlib.sha256(key).digest()[0] < 256 * HELD_OUT_SHARE

    @property
    def words(self) -> dict[str, str]:
        """What a judge can find right or wrong. A camera that stands has another name than one that pans, so that
        each has a share of its own; only a label with a second subject has the three words of one."""
        names = ("subject", "colour", "scene", "direction", "speed")
        words = {name: getattr(self, name) for name in names}
        words["fixed_camera" if self.camera == "fixed" else "camera"] = self.camera
        if self.relation and self.subject2 and self.colour2:
            words |= {"relation": self.relation, "subject2": self.subject2, "colour2": self.colour2}
        return words


def random_label(rng: random.Random, held_out: bool = False) -> Label:
    """A label drawn evenly from the training combinations, or from the held-out ones.

    PAN_SHARE of the cameras pan and PAIR_SHARE of the labels have a second subject of another kind and colour.
    """
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
    """Of so many labels to learn from the one of the greatest hardness."""
    return max((random_label(rng) for _ in range(draws)), key=hardness)


def caption(label: Label, rng: random.Random) -> str:
    """One of the grammar's wordings of `label` of at most MOST_WORDS words, without a final stop."""
    while True:
        text = _wording(label, rng)
        if len(text.replace(",", " ,").split()) <= MOST_WORDS:
            return text


def _wording(label: Label, rng: random.Random) -> str:
    thing = _thing(label.subject, label.colour, rng)
    if label.subject2 and label.colour2 and label.relation:
        thing += f" {rng.choice(RELATION_WORDS[label.relation])} {_thing(label.subject2, label.colour2, rng)}"
    where = rng.choice(SCENE_WORDS[label.scene])
    camera = rng.choice(CAMERA_WORDS[label.camera])
    clause = f"{thing} {_action(label, rng)} {where}"
    if rng.random() < 0.25:
        clause = f"{where}, {thing} {_action(label, rng)}"
    if not camera:
        return clause
    return f"{camera}, {clause}" if rng.random() < 0.25 else f"{clause}, {camera}"


def _thing(subject: str, colour: str, rng: random.Random) -> str:
    article = rng.choice(("a", "the", "one", "a")) if rng.random() < 0.8 else "a big"
    words = rng.choice(SUBJECT_WORDS[subject])
    if colour == "orange" and article == "a":
        article = "an"
    return f"{article} {colour} {words}"


def _action(label: Label, rng: random.Random) -> str:
    if label.direction == "still":
        return rng.choice(STILL_WORDS)
    speed = rng.choice(SPEED_WORDS[label.speed])
    if label.direction == "bounce":
        parts = [rng.choice(BOUNCE_WORDS), speed]
    else:
        verb = rng.choice(PAIR_VERBS if label.subject2 else VERBS[label.subject])
        direction = rng.choice(DIRECTION_WORDS[label.direction])
        parts = [verb, speed, direction] if rng.random() < 0.5 else [verb, direction, speed]
    return " ".join(part for part in parts if part)

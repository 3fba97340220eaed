"""What a prompt asks of the drawn world, what a video shows where it leaves that open, and a caption in plain words."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from engine.text.world_tables import TABLES
from engine.wire.understood import Understood

WORDINGS = TABLES["captions"]
SUBJECTS, COLOURS, SCENES = tuple(WORDINGS["subjects"]), tuple(TABLES["colours"]), tuple(WORDINGS["scenes"])
DIRECTIONS = ("still", *WORDINGS["directions"], "bounce")
SPEEDS, CAMERAS, RELATIONS = (tuple(WORDINGS[name]) for name in ("speeds", "cameras", "relations"))
# Allowed words of each field; the last three are those of a second subject.
WORDS = {
    "subject": SUBJECTS, "colour": COLOURS, "scene": SCENES, "direction": DIRECTIONS, "speed": SPEEDS,
    "camera": CAMERAS, "relation": RELATIONS, "subject2": SUBJECTS, "colour2": COLOURS,
}  # fmt: skip
PAIR_WORDS = ("relation", "subject2", "colour2")
# What is said of the second subject where it comes first.
REVERSED = {"above": "below", "left of": "right of"}
# Words and fields that are said otherwise outside.
SPOKEN = {
    ("speed", "medium"): "normal", ("camera", "fixed"): "none", ("direction", "bounce"): "bouncing",
    ("relation", "left of"): "left",
}  # fmt: skip
SPOKEN_FIELDS = {name: {"subject2": "second_subject", "colour2": "second_colour"}.get(name, name) for name in WORDS}
_LIKELY = TABLES["open"]


def spoken(words: dict[str, str | None]) -> dict[str, str | None]:
    """The words as they are said outside, by the names of fields there."""
    return {SPOKEN_FIELDS[name]: SPOKEN.get((name, word or ""), word) for name, word in words.items()}


def swapped(words: dict[str, str | None]) -> dict[str, str | None]:
    """The words with the second subject first, and the relation said from there."""
    turned = {**REVERSED, **{back: forth for forth, back in REVERSED.items()}}
    pairs = {"subject": "subject2", "colour": "colour2", "subject2": "subject", "colour2": "colour"}
    relation = words["relation"]
    others = {name: words[other] for name, other in pairs.items()}
    return {**words, **others, "relation": turned[relation] if relation else None}


@dataclass(frozen=True, slots=True)
class Asked:
    """A word for each field, None for what is left open. Without a second subject its three fields are None.

    The first subject is the one above or on the left.
    """

    subject: str | None = None
    colour: str | None = None
    scene: str | None = None
    direction: str | None = None
    speed: str | None = None
    camera: str | None = None
    relation: str | None = None
    subject2: str | None = None
    colour2: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in WORDS.items():
            if (value := getattr(self, name)) is not None and value not in allowed:
                raise ValueError(f"{value!r} is no {name}: there are {', '.join(allowed)}")

    @property
    def words(self) -> dict[str, str | None]:
        """The words of each field."""
        return {name: getattr(self, name) for name in WORDS}

    @property
    def left_open(self) -> tuple[str, ...]:
        """Fields that a video needs and the prompt leaves open."""
        needed = [field.name for field in fields(self) if self.subject2 or field.name not in PAIR_WORDS]
        return tuple(name for name in needed if getattr(self, name) is None)

    def drawn(self, seed: int) -> Asked:
        """With a word for every field that a video needs, what is left open drawn by `seed`.

        Each field has a draw of its own, so that it stays as it is while the other words of a prompt change. What
        nobody mentions stands for itself: a camera that stands, and the usual speed.
        """

        def draw(name: str, words: Sequence[str]) -> str:
            return random.Random(f"{seed} {name}").choice(words)

        places = _LIKELY["scenes"]
        subject = self.subject or draw("subject", [one for one in SUBJECTS if self.scene in (None, *places[one])])
        colour = self.colour or draw("colour", [one for one in COLOURS if one != self.colour2])
        direction = self.direction or draw("direction", _LIKELY["directions"][subject])
        full = replace(
            self,
            subject=subject,
            colour=colour,
            scene=self.scene or draw("scene", places[subject]),
            direction=direction,
            speed="slow" if direction == "still" else self.speed or "medium",
            camera=self.camera or "fixed",
        )
        if not self.subject2:
            return replace(full, relation=None, colour2=None)
        others = [one for one in COLOURS if one != colour]
        relation = self.relation or draw("relation", RELATIONS)
        return replace(full, relation=relation, colour2=self.colour2 or draw("colour2", others))

    def understood(self, seed: int, no_effect: Sequence[str]) -> Understood:
        """The same in words for people, with those of the prompt that had no effect."""
        words: dict[str, Any] = spoken(self.drawn(seed).words)
        open_fields = tuple(SPOKEN_FIELDS[name] for name in self.left_open)
        return Understood(**words, open=open_fields, no_effect=tuple(no_effect))

    @property
    def caption(self) -> str:
        """A caption of the grammar that planner and renderer know. Every field that a video needs must have a word."""
        assert self.subject and self.colour and self.scene and self.direction and self.speed and self.camera
        thing = _thing(self.colour, self.subject)
        if self.subject2:
            assert self.relation and self.colour2
            thing += f" {WORDINGS['relations'][self.relation][0]} {_thing(self.colour2, self.subject2)}"
        speed = WORDINGS["speeds"][self.speed][0]
        if self.direction == "still":
            action = [WORDINGS["still"][0]]
        elif self.direction == "bounce":
            action = [WORDINGS["bounce"][0], speed]
        else:
            verb = WORDINGS["pair_verbs"][0] if self.subject2 else WORDINGS["subjects"][self.subject]["verbs"][0]
            action = [verb, speed, WORDINGS["directions"][self.direction][0]]
        words = [thing, *filter(None, action), WORDINGS["scenes"][self.scene][0]]
        camera = WORDINGS["cameras"][self.camera][0]
        return " ".join(words) + (f", {camera}" if camera else "")


def _thing(colour: str, subject: str) -> str:
    article = "an" if colour == "orange" else "a"
    return f"{article} {colour} {WORDINGS['subjects'][subject]['nouns'][0]}"

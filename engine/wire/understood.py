"""What a text encoder understood of a prompt, in words for people and clients."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Understood:
    """A word for each field, as it is shown; without a second subject its three fields are None."""

    subject: str
    colour: str
    scene: str
    direction: str  # left, right, up, down, still or bouncing
    speed: str  # slow, normal or fast
    camera: str  # left, right or none
    second_subject: str | None
    second_colour: str | None
    relation: str | None  # of the first subject to the second: above or left
    open: tuple[str, ...]  # names of fields that the prompt leaves open: the seed chose, or what is usual
    no_effect: tuple[str, ...]  # words of the prompt without effect, each once

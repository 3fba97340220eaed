"""Prompts as people may type them: a grammar far wider than the captions', with typos and words that have no effect.

Words stand in `engine/data/lexicon.toml`. Phrases are strings in which ASIDE and END enclose what has no effect.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from engine.text.asked import Asked
from engine.training.world.rejecting import NOT_DOING, REJECTING

LEXICON: dict[str, Any] = tomllib.loads((Path(__file__).parents[2] / "data/lexicon.toml").read_text(encoding="utf-8"))
ASIDE, END = "\x02", "\x03"
HELD_OUT = re.compile(rf"\b(?:{'|'.join(LEXICON['held_out']['words'])})")
_COUNTS = (
    "two",
    "three",
    "some",
    "many",
    "several",
    "lots of",
    "a flock of",
    "four",
    "a couple of",
    "five",
    "2",
    "a few",
)
SINGLE_SHARE = 0.35  # of phrases are single words, where there are some
PLAIN_SHARE = 0.22  # of nouns and colours are the plain word
_DETERMINERS = ("a", "a", "a", "the", "one", "this", "my", "")
_TONES = (
    "bright", "dark", "light", "deep", "pale", "vivid", "very", "all", "pastel", "neon", "rich", "soft", "faded",
    "metallic",
    "warm", "brilliant", "intense", "shiny", "glossy", "completely", "mostly", "a bit", "matte", "strong", "plain",
    "luminous",
)  # fmt: skip
_ENDINGS = ("-coloured", " coloured", "-colored", ", ", "-hued", "-tinted", " tinted", "-toned", " colored", "-painted")
FILLERS = (
    ", of course,",
    ", i'd say,",
    ", you know,",
    ", maybe,",
    ", let's say,",
    " just",
    " really",
    ", well,",
    " simply",
)
_COLOURED = (
    "{0} that is {1}", "{0} which is {1}", "{0} whose colour is {1}", "{0} in {1}", "{0}, {1},", "{0} coloured {1}",
    "{0} painted {1}", "{0} of {1} colour", "{0} ({1})", "{0} with {1} paint", "{0}, {1} in colour,", "{0}, it is {1},",
    "{0} the colour of {2}", "{0} as {1} as {2}", "{0}, {1} like {2},", "{0} with the colour of {2}",
)  # fmt: skip


@cache
def is_held_out(phrase: str) -> bool:
    """Whether training never says a phrase."""
    return bool(HELD_OUT.search(phrase))


def aside(text: str) -> str:
    """Text that has no effect."""
    return f"{ASIDE}{text}{END}"


def plural(noun: str) -> str:
    """Of the last word of a noun."""
    *first, last = noun.split(" ")
    if last in LEXICON["plurals"]:
        last = LEXICON["plurals"][last]
    elif re.search(r"[^aeiou]y$", last):
        last = last[:-1] + "ies"
    else:
        last += "es" if re.search(r"(?:s|x|ch|sh)$", last) else "s"
    return " ".join([*first, last])


_IRREGULAR = {"be": ("is", "are"), "have": ("has", "have"), "do": ("does", "do"), "whiz": ("whizzes", "whiz")}


def present(verb: str, many: bool = False) -> str:
    """ "glide by" -> "glides by"."""
    first, *rest = verb.split(" ")
    if first in _IRREGULAR:
        return " ".join([_IRREGULAR[first][many], *rest])
    if not many:
        first = first[:-1] + "ies" if re.search(r"[^aeiou]y$", first) else first
        first += "" if first.endswith("ies") else "es" if re.search(r"(?:s|x|ch|sh|[^o]o|zz)$", first) else "s"
    return " ".join([first, *rest])


def participle(verb: str) -> str:
    """ "glide by" -> "gliding by"."""
    first, *rest = verb.split(" ")
    if re.search(r"[^be]e$", first):
        first = first[:-1]
    elif re.fullmatch(r"[^aeiou]*[aeiou][bdgmnpt]", first):
        first += first[-1]
    return " ".join([first + "ing", *rest])


@dataclass(slots=True)
class Phraser:
    """Says parts of a prompt in one of many ways, drawn with `rng`; `held_out` says whether it may use the words that
    training never sees, which it then prefers."""

    rng: random.Random
    held_out: bool = False
    spare: Sequence[str] = ()  # more words without effect
    swapped: bool = False  # whether the second subject was said first

    def one(self, words: Sequence[str]) -> str:
        """Any of the words that may be used."""
        rare = [word for word in words if is_held_out(word)]
        if rare and self.held_out and self.rng.random() < 0.7:
            return self.rng.choice(rare)
        usual = [word for word in words if word not in rare] or list(words)
        if self.often(SINGLE_SHARE):
            usual = [word for word in usual if " " not in word] or usual
        return self.rng.choice(usual)

    def often(self, share: float) -> bool:
        return self.rng.random() < share

    def asides(self, kind: str) -> str:
        words = self.spare if self.spare and self.often(0.3) else LEXICON["asides"][kind]
        return aside(self.rng.choice(words))

    def words(self, table: str, key: str | None) -> list[str]:
        """Of a table of the lexicon, with those that training never sees; often the plain word alone."""
        if table in ("nouns", "colours") and key and not self.held_out and self.often(PLAIN_SHARE):
            return [key]
        return [*LEXICON[table][key], *LEXICON["held_out"].get(f"{table}_{key}", ())]

    def thing(self, subject: str | None, colour: str | None) -> tuple[str, bool]:
        """A noun phrase, and whether it is plural."""
        many = subject is not None and self.often(0.1)
        if subject:
            noun = self.one(self.words("nouns", subject))
        else:
            noun = self.one(("something", "a thing", "thing", "an object", "anything", self.asides("nouns")))
        noun = plural(noun) if many else noun
        if subject and self.often(0.03):
            noun += f", not {self.one(('a', 'the'))} {self.rng.choice(LEXICON['asides']['nouns'])},"
        before = [self.asides("adjectives") for _ in range(self.rng.choice((0, 0, 0, 1, 1, 2)))]
        named = self.coloured(colour) if colour else self.asides("colours") if self.often(0.08) else ""
        if not colour and self.often(0.04):
            named = self.rng.choice(("not {}", "no longer {}", "not really {}", "non-{}")).format(
                self.others("colours", "")[0]
            )
        first = self.one(_COUNTS) if many else self.one(_DETERMINERS)
        if colour and self.often(0.22):
            shape = self.rng.choice(_COLOURED)
            likeness = self.one(LEXICON["likenesses"][colour])
            text = shape.format(" ".join(filter(None, [first, *before, noun])), named, likeness)
        else:
            if colour and self.often(0.06):
                named += self.rng.choice(_ENDINGS)
            adjectives = [*before, named] if self.often(0.8) else [named, *before]
            text = " ".join(filter(None, [first, *adjectives, noun]))
        if self.often(0.04):
            text += self.rng.choice(FILLERS)
        return re.sub(r"\ba (\x02?)(?=[aeiou])", r"an \1", text), many

    def coloured(self, colour: str) -> str:
        """A colour, or what it is not."""
        named = self.one(self.words("colours", colour))
        if self.often(0.06):
            named = f"{self.rng.choice(_TONES)} {named}"
        if self.often(0.08):
            others = self.others("colours", colour)
            named = self.rejecting(
                named, *(others if self.often(0.8) else [self.rng.choice(LEXICON["asides"]["colours"])])
            )
        return named

    def rejecting(self, meant: str, *others: str) -> str:
        """Says something, and that one or two other things are not meant."""
        return self.rng.choice(REJECTING).format(meant, others[0], others[-1])

    def others(self, table: str, key: str, form: str = "") -> list[str]:
        """Words of two other entries of a table of the lexicon."""
        keys = self.rng.sample([one for one in LEXICON[table] if one != key], 2)
        return [self.one(LEXICON[table][one][form] if form else LEXICON[table][one]) for one in keys]

    def action(self, asked: Asked, form: str, many: bool = False) -> str:
        """A verb phrase: form "present" (moves left), "participle" (moving left) or "bare" (left). May be empty."""
        if form == "present" and not many and asked.direction and self.often(0.06):
            return self.rng.choice(NOT_DOING).format(self.other_movement(asked), self.action(asked, form))
        speed = self.one(self.words("speeds", asked.speed)) if asked.speed else ""
        if asked.direction == "still":
            return self.one(LEXICON["still"]["finite" if form == "present" else "ing"])
        if asked.direction == "bounce":
            verb, where = self.one(LEXICON["bounce"]["base"]), ""
        elif asked.direction in LEXICON["direction_verbs"] and self.often(0.55):
            verb, where = self.one(self.words("direction_verbs", asked.direction)), ""
        else:
            verb, speed = self.verb(asked, speed)
            where = self.one(self.words("directions", asked.direction)) if asked.direction else ""
            if asked.direction and self.often(0.08):
                where = self.rejecting(where, *self.others("directions", asked.direction))
        bare = form == "bare" and not (asked.direction == "bounce" or (asked.direction and not where))
        if form == "present":
            verb = f"{'are' if many else 'is'} {participle(verb)}" if self.often(0.25) else present(verb, many)
        else:
            verb = "" if bare else participle(verb)
        where = f"{self.asides('moods')} {where}" if self.often(0.05) else where
        parts = [verb, speed, where] if self.often(0.5) else [verb, where, speed]
        return " ".join([speed, verb, where] if self.often(0.1) else filter(None, parts)).strip()

    def other_movement(self, asked: Asked) -> str:
        """The base form of what is not done."""
        kinds = [kind for kind in ("up", "down", "bounce", "still", "left", "right") if kind != asked.direction]
        kind = self.rng.choice(kinds)
        if kind in LEXICON["direction_verbs"]:
            return self.one(LEXICON["direction_verbs"][kind])
        if kind == "bounce":
            return self.one(LEXICON["bounce"]["base"])
        if kind == "still":
            return self.rng.choice(
                ("stand still", "stop", "stay there", "rest", "wait", "hover", "stand around", "stay in place")
            )
        return f"{self.verb(asked, '')[0]} {self.one(LEXICON['directions'][kind])}"

    def verb(self, asked: Asked, speed: str) -> tuple[str, str]:
        """A verb, and what remains to be said of the speed."""
        kinds = {"fast": "fast_verbs", "slow": "slow_verbs"}
        if asked.speed in kinds and self.often(0.42):
            return self.one(LEXICON[kinds[asked.speed]]["any"]), speed if self.often(0.2) else ""
        own = LEXICON["verbs"].get(asked.subject or "any", [])
        return self.one([*own, *own, *LEXICON["verbs"]["any"]]), speed

    def scene(self, scene: str | None, form: str = "in") -> str:
        """Where it is: form "in" (in the desert) or "is" (desert). For an open scene empty, or elsewhere."""
        if not scene:
            return self.asides("scenes") if self.often(0.12) else ""
        text = self.place(scene, form)
        if form == "in" and scene in ("night", "sunset") and self.often(0.15):
            # Where it is besides: the hour shows.
            where = self.place(self.rng.choice(("hills", "desert", "sea")), form)
            text = self.rng.choice((f"{text} {where}", f"{where} {text}", f"{where}, {text}", f"{text}, {where}"))
        if self.often(0.08):
            text = self.rejecting(text, *self.others("scenes", scene, form))
        return f"{text} {self.asides('weather')}" if self.often(0.06) else text

    def place(self, scene: str, form: str) -> str:
        """A scene as a whole phrase, or as a preposition with a place."""
        rare = LEXICON["held_out"][f"scenes_{scene}"]
        if form != "in" or self.often(0.5):
            return self.one(
                [*LEXICON["scenes"][scene][form], *(f"at the {one}" if form == "in" else one for one in rare)]
            )
        places = LEXICON["places"][scene]
        before = (
            self.one(("the", "the", "the", "a", "some", "this", ""))
            if self.often(0.9)
            else f"the {self.asides('adjectives')}"
        )
        return f"{self.one(places['prepositions'])} {before} {self.one(places['nouns'])}".replace("  ", " ")

    def camera(self, camera: str | None) -> str:
        return self.one(self.words("cameras", camera)) if camera else ""

    def noun(self, subject: str | None) -> str:
        return self.one(self.words("nouns", subject)) if subject else "other"

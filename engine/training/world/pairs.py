"""Prompts with two subjects: which is where, which has what colour, and what they do.

Every shape names `a` first and `b` second. Each is written once, for either to be the one above or on the left.
"""

from __future__ import annotations

from dataclasses import replace

from engine.text.asked import Asked, swapped
from engine.training.world.phrasing import LEXICON, Phraser, plural, present

# Shapes of two things. {ab} says where a is from b, {ba} where b is from a; {at}, {bt} where a or b is, as seen from
# the other ("to its left"); {sa}, {sb} where each is in the picture; {na}, {nb} name them again.
PLAIN = (
    *["{a} {ab} {b}"] * 12,
    *("{a} with {b} {ba} it", "{a} with {b} {bt}", "{a} and {b} {bt}", "{a}, {b} {bt}") * 2,
    "{a} and {ba} it {b}", "{a}, and {ba} it {b}", "{a} and, {ba} it, {b}", "{a}, {ba} it {b}", "{a}; {b} {ba} it",
    "{a} that is {ab} {b}", "{a} which is {ab} {b}", "{a} placed {ab} {b}", "{a} is {ab} {b}", "{a}, {ab} {b}",
    "{a} just {ab} {b}", "{a} somewhere {ab} {b}", "{a} a bit {ab} {b}", "{a} exactly {ab} {b}",
    *("{a} {sa} and {b} {sb}", "{a} {sa}, {b} {sb}", "{sa} {a}, {sb} {b}", "{sa} {a} and {sb} {b}") * 2,
    "{a} ({sa}), {b} ({sb})", "{a} ({sa}) and {b} ({sb})", "{sa}: {a}, {sb}: {b}", "{sa}: {a}. {sb}: {b}",
    "{sa} is {a}, {sb} is {b}", "{sa} there is {a} and {sb} there is {b}", "{a} - {sa}, {b} - {sb}",
    "{sa} side: {a}, {sb} side: {b}", "{a} being {sa}, {b} {sb}", "{sa} i want {a}, {sb} {b}", "{a} {sa} / {b} {sb}",
    "{a} is {sa} and {b} is {sb}", "{a} {sa} with {b} {sb}", "{a} and {b} {sb}", "{sa} {a} with {b} {sb}",
    *("{a} and {b}, {na} {ab} {nb}", "{a} and {b}, {nb} {ba} {na}", "{a} and {b}, {na} {sa}", "{a} and {b}, {nb} {sb}")
    * 2,
    "{a} and {b}: {na} is {ab} {nb}", "{a} and {b}: {nb} is {ba} {na}", "{a} and {b} with {na} {sa}",
    "{a} and {b} with {nb} {sb}", "{a} and {b}. {na} is {sa}", "{a} and {b}. {nb} is {ba} {na}",
    "{a} next to {b}, {na} {sa}", "{a} beside {b}, {nb} {sb}", "{a} next to {b}, {na} is {sa}",
    "{a} and {b}; {na} {sa}, {nb} {sb}", "{a} & {b}, {na} {ab} {nb}", "{a} + {b}, {nb} {sb}",
    "{a}, {b}, {na} {ab} {nb}", "{a}, {b}. {na} {sa}. {nb} {sb}", "{a} and {b}, the first {ab} the second",
    *("{ba} {a} there is {b}", "{ba} {a} is {b}", "{ba} {a}, {b}", "{ba} {a} {b}") * 2,
    "{ba} {a} there's {b}", "{ba} {a} we see {b}", "{ba} {a} i want {b}", "{ba} {a} comes {b}",
    "{a}. {ba} {na} there is {b}", "{a}, and {ba} {na} {b}", "{a}, and {ba} {na} there is {b}", "{a}; {ba} {na}, {b}",
    "{a} and {ba} that {b}", "{a}, {ba} that {b}", "{a}, {b} {ba} that",
    "{a} has {b} {ba} it", "{a} has {b} {bt}", "{a}, {b} is {ba} {na}", "{a}. {b} is {ba} it", "{a}, then {ba} it {b}",
    "two things: {a} and {ba} it {b}", "two things, {a} {ab} {b}", "{a} together with {b}, {nb} {sb}",
)  # fmt: skip
# Without a word on which is where.
OPEN = (
    *("{a} {joint} {b}",) * 12, "{a}, {b}", "{a} and {b} side by side", "{a} and {b} together", "both {a} and {b}",
    "{a} with {b} beside it", "{a}, {b}, side by side", "{a} and {b} next to each other", "two things: {a}, {b}",
    "{a} and also {b}", "{a} and {b} close together", "one is {a}, the other is {b}", "{a} and {b}, both of them",
    "{a} / {b}", "{a} & {b}", "{a} + {b}", "two things: {a} and {b}", "{a}, another one is {b}", "{a} and then {b}",
)  # fmt: skip
# Colours behind the things: {x}, {y} are the things without colours, {ca}, {cb} the colours.
COLOURS_BEHIND = (
    "{xy}. {na} is {ca}, {nb} is {cb}", "{xy}. {nb} is {cb} and {na} is {ca}", "{xy}, {na} {ca}, {nb} {cb}",
    "{xy}; {na} is {ca} and {nb} is {cb}", "{xy}, {nb} {cb}, {na} {ca}", "{xy}, {na} in {ca} and {nb} in {cb}",
    "{xy}, {na} should be {ca}, {nb} {cb}", "{xy} ({na} {ca}, {nb} {cb})", "{xy}. {na} {ca}. {nb} {cb}",
    "{xy} - {na} is {ca}, {nb} is {cb}", "{xy}: {ca} {na}, {cb} {nb}",
)  # fmt: skip
# Two of a kind; {n} is its noun and {s} its plural.
TWINS = (
    "two {s}, one {ca} and one {cb}, the {ca} one {ab} the {cb} one", "two {s}, {ca} and {cb}, the {ca} one {sa}",
    "a {ca} and a {cb} {n}, the {cb} one {ba} the {ca} one", "a {ca} {n} {ab} a {cb} one",
    "a {ca} {n} {sa}, a {cb} {n} {sb}",
    "two {s}, the {ca} one is {ab} the {cb} one", "two {s}: {ca} {sa}, {cb} {sb}", "a {ca} {n} with a {cb} one {bt}",
    "two {s}, the one {sa} is {ca}, the one {sb} is {cb}", "a {ca} {n} and {ba} it a {cb} {n}",
    "one {ca} {n} {ab} another one in {cb}", "two {s}, {ca} {ab} {cb}",
)  # fmt: skip
OPEN_TWINS = (
    "two {s}, one {ca} and one {cb}", "a {ca} and a {cb} {n}", "{ca} and {cb} {s}", "a {ca} {n} and a {cb} one",
    "two {s}, {ca} and {cb}", "two {s}, one is {ca}, the other {cb}", "one {ca} and one {cb} {n}",
    "a {ca} {n} next to a {cb} one", "a {ca} {n}, a {cb} {n}, side by side",
)  # fmt: skip
# With what they do: {do} "flies left", {doing} "flying left", {dob} the same of b; {own} "flies" says nothing of where
# to; {it}, where it is.
STORIES = (
    *("{a} {do} {ab} {b} {it}", "{a} {doing} {ab} {b} {it}") * 4,
    *("{it} {a} {do} {ab} {b}", "{it}, {a} {doing} {ab} {b}", "{a} {do} {it} {ab} {b}",
    "{a} {doing} {it} {ab} {b}") * 2,
    *("{a} {do} {it} with {b} {ba} it", "{a} {do} {it} with {b} {bt}", "{a} {doing} {it} with {b} {bt}") * 2,
    *("{a} {do} {it} and {ba} it {ownb} {b}", "{a} {do} {it}, and {b} {ownb} {ba} it") * 2,
    "{a} {do} {it} while {b} {ownb} {ba} it", "{a} {do} {it} while {b} {ownb} {bt}", "{a} {do}; {b} {ownb} {bt}, {it}",
    "{a} {do}, {b} {ownb} {bt} {it}", "{a} {do} and {b} {ownb} {ba} it {it}", "{a} {do} {it}, {b} is {ba} it",
    "{ba} {a}, {b} {dob} {it}", "{ba} {a} {b} {dob} {it}", "{it}, {ba} {a}, {b} {dob}",
    "{ba} {a} {ownb} {b} {dobing} {it}",
    "{a} {owna} {ab} {b} {doing} {it}", "{a} {ab} {b} {dobing} {it}", "{a} with {b} {ba} it {doing} {it}",
    "{a} and {b} {both} {it}, {na} {ab} {nb}", "{a} and {b} {both} {it}, {na} {sa}",
    "{a} and {b} {both} {it}, {nb} {sb}",
    "{a} {sa} and {b} {sb}, both {doing} {it}", "{a} {sa}, {b} {sb}, they {both} {it}",
    "{a} {sa} {doing}, {b} {sb} {it}",
    "{a} {do} {it}. {b} {ownb} {ba} it", "{a} {do} {it}. {ba} it is {b}", "{a} is {ab} {b}, both {doing} {it}",
    "{it} {a} {do} and {ba} it {ownb} {b}", "{it}: {a} {doing}, {b} {ba} it", "{a} {doing} {it}, {b} {bt}",
)  # fmt: skip
IDLE_STORIES = (
    *("{a} {owna} {ab} {b} {it}", "{it}, {a} {owna} {ab} {b}", "{it} {a} {owna} {ab} {b}") * 3,
    "{a} {owna} {it} and {ba} it {ownb} {b}", "{ba} {a} {ownb} {b} {it}", "{a} {owna} {it} with {b} {bt}",
    "{a} {it}, {b} {ba} {na}", "{a} {it}, and {ba} {na} {b}", "{a} {owna} {it}, {b} {ba} {na}",
    "{a} {owna}, {b} {ownb} {bt} {it}", "{it}, {ba} {a}, {b} {ownb}", "{a} {it} with {b} {ba} it", "{a} {it}, {b} {bt}",
)  # fmt: skip
OPEN_STORIES = (
    "{a} and {b} {both} {it}", "{a} and {b} are {doing} {it}", "{it} {a} and {b} {both}", "{a} {do} {joint} {b} {it}",
    "{a} {doing} {joint} {b} {it}", "{a} and {b} {doing} together {it}", "{a} {do} and so does {b} {it}",
    "{a} {do} {it} and {b} too", "{a} {do} {it}, {b} as well", "{a} {do}, {b} follows {it}",
    "both {a} and {b} {both} {it}",
    "{it}, {a} {joint} {b}, both {doing}", "{a} {do} side by side with {b} {it}", "{a}, {b}, {it}, both {doing}",
)  # fmt: skip
NOUN_SHARE, BEHIND_SHARE, TWIN_SHARE = 0.75, 0.2, 0.6


def pair(phraser: Phraser, asked: Asked) -> tuple[str, bool]:
    """Two things, and whether the verb is plural."""
    said = _said(phraser, asked)
    phrases = _phrases(phraser, said)
    if said["subject"] == said["subject2"] and said["colour"] and said["colour2"] and phraser.often(TWIN_SHARE):
        return phraser.rng.choice(TWINS if said["relation"] else OPEN_TWINS).format(**phrases), False
    shape = phraser.rng.choice(PLAIN if said["relation"] else OPEN)
    if said["colour"] and said["colour2"] and said["subject"] != said["subject2"] and phraser.often(BEHIND_SHARE):
        phrases["xy"] = shape.format(**phrases | {"a": phrases["x"], "b": phrases["y"]})
        return phraser.rng.choice(COLOURS_BEHIND).format(**phrases), False
    return shape.format(**phrases), "{joint}" in shape and phrases["joint"] == "and"


def pair_story(phraser: Phraser, asked: Asked) -> str:
    """A sentence about two things that do something somewhere, in which these come in any order."""
    said = _said(phraser, asked)
    shapes: tuple[str, ...] = OPEN_STORIES
    if said["relation"]:
        shapes = STORIES if asked.direction or asked.speed else IDLE_STORIES
    alone, other = replace(asked, subject=said["subject"]), replace(asked, subject=said["subject2"])
    phrases = _phrases(phraser, said) | {
        "do": phraser.action(alone, "present"), "doing": phraser.action(alone, "participle"),
        "dob": phraser.action(other, "present"), "dobing": phraser.action(other, "participle"),
        "both": phraser.action(alone, "present", True), "it": phraser.scene(asked.scene),
        "owna": _own(phraser, said["subject"]), "ownb": _own(phraser, said["subject2"]),
    }  # fmt: skip
    return phraser.rng.choice(shapes).format(**phrases)


def _said(phraser: Phraser, asked: Asked) -> dict[str, str | None]:
    """The words in the order in which they are said."""
    phraser.swapped = asked.relation is not None and phraser.often(0.5)
    return swapped(asked.words) if phraser.swapped else asked.words


def _own(phraser: Phraser, subject: str | None) -> str:
    """What a thing does, without a word on where to."""
    if phraser.often(0.1):
        return phraser.rng.choice(("follows", "stays", "can be seen", "keeps", "moves along"))
    return "is" if phraser.often(0.2) else present(phraser.one(LEXICON["verbs"][subject or "any"]))


def _phrases(phraser: Phraser, said: dict[str, str | None]) -> dict[str, str]:
    """What the shapes are filled with."""
    found = {
        "a": phraser.thing(said["subject"], said["colour"])[0],
        "b": phraser.thing(said["subject2"], said["colour2"])[0],
    }
    found |= {"x": phraser.thing(said["subject"], None)[0], "y": phraser.thing(said["subject2"], None)[0]}
    for name, subject, colour in (("a", "subject", "colour"), ("b", "subject2", "colour2")):
        named = phraser.one(phraser.words("colours", said[colour])) if said[colour] else "other"
        noun = phraser.noun(said[subject])
        found[f"c{name}"] = named
        # Two of a kind are told apart by their colours.
        if said["subject"] == said["subject2"] or (said[colour] and phraser.often(0.15)):
            found[f"n{name}"] = f"the {named} one" if phraser.often(0.7) else f"the {named} {noun}"
        else:
            found[f"n{name}"] = f"the {noun}" if phraser.often(NOUN_SHARE) else noun
    noun = phraser.noun(said["subject"])
    found |= {"n": noun, "s": plural(noun), "joint": phraser.one(LEXICON["relations"]["open"]["forth"])}
    if not said["relation"]:
        return found
    places = {"above": "above", "below": "above", "left of": "left of", "right of": "left of"}
    forth = said["relation"] in ("above", "left of")
    table = LEXICON["relations"][places[said["relation"]]]
    ways = ("forth", "back") if forth else ("back", "forth")
    for name, other, way in zip(("a", "b"), ("b", "a"), ways, strict=True):
        found[f"{name}{other}"] = phraser.one(table[way])
        found[f"{name}t"] = phraser.one(table[f"{way}_alone"])
    return found | _sides(phraser, table, ways)


def _sides(phraser: Phraser, table: dict[str, list[str]], ways: tuple[str, str]) -> dict[str, str]:
    """Where each is in the picture, mostly in like words."""
    places = [phraser.rng.randrange(len(table["forth_side"]))] * 2
    if phraser.often(0.2):
        places[1] = phraser.rng.randrange(len(table["forth_side"]))
    return {f"s{name}": table[f"{way}_side"][place] for name, way, place in zip("ab", ways, places, strict=True)}

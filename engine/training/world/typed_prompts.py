"""Whole prompts as people may type them, with what they ask for and which of their characters have no effect."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.text.asked import Asked
from engine.training.world.captions import Label, caption, random_label
from engine.training.world.misspelling import misspelled
from engine.training.world.pairs import pair, pair_story
from engine.training.world.phrasing import ASIDE, END, LEXICON, Phraser, aside
from engine.training.world.rejecting import NOT_THIS

CAPTION_SHARE = 0.12  # of the prompts are captions of the grammar
NOTHING_SHARE = 0.04  # of the prompts ask for nothing that there is
# Share of the prompts that leave a field open.
OPEN = {
    "subject": 0.06, "colour": 0.12, "scene": 0.2, "direction": 0.3, "speed": 0.55, "relation": 0.15, "colour2": 0.1,
}  # fmt: skip
PAIR_SHARE, CAMERA_SHARE = 0.5, 0.35
ALONE_SHARE = 0.04  # of the prompts say one thing alone
TYPO_SHARE, TYPOS = 0.22, 0.2  # prompts with typos, and of their words
SEPARATORS = (", ", ", ", ". ", " ", " / ", " - ", "; ", ": ", " + ", ",", "! ", " and ")


@dataclass(frozen=True, slots=True)
class TypedPrompt:
    """A prompt, what it asks for, [start, end) of characters without effect, and whether it says the second subject
    first."""

    text: str
    asked: Asked
    no_effect: tuple[tuple[int, int], ...]
    swapped: bool = False


def random_asked(rng: random.Random) -> Asked:
    """What a prompt might ask for; much is left open."""
    label = random_label(rng)
    words = {name: getattr(label, name) for name in ("subject", "colour", "scene", "direction", "speed")}
    if rng.random() < CAMERA_SHARE:
        words["camera"] = rng.choice(("left", "right", "left", "right", "fixed"))
    if rng.random() < PAIR_SHARE:
        other = random_label(rng)
        words |= {"subject2": other.subject, "colour2": other.colour, "relation": rng.choice(("above", "left of"))}
    asked = Asked(**{name: word for name, word in words.items() if rng.random() >= OPEN.get(name, 0.0)})
    if asked.subject is None or asked.subject2 is None:
        asked = replace(asked, relation=None, subject2=None, colour2=None)
    if asked.direction == "still":
        asked = replace(asked, speed=None)
    if rng.random() < ALONE_SHARE:
        name = rng.choice(("subject", "colour", "scene"))
        asked = Asked(**{name: words[name]})
    # With less than this there is hardly a prompt.
    return asked if asked.subject or asked.colour or asked.scene else random_asked(rng)


def typed_prompt(
    rng: random.Random, held_out: bool = False, spare: Sequence[str] = (), typos: float = TYPO_SHARE
) -> TypedPrompt:
    """A random prompt. With `held_out` words and templates are those that training never sees, as far as they go."""
    share = rng.random()
    if not held_out and share < CAPTION_SHARE:
        label = random_label(rng)
        return _finished(caption(label, rng), of_label(label), rng, typos / 2)
    phraser = Phraser(rng, held_out, spare)
    if share > 1 - NOTHING_SHARE:
        salad = " ".join(rng.choice(spare) for _ in range(rng.randint(1, 9))) if spare else ""
        text = salad if salad and rng.random() < 0.6 else rng.choice(LEXICON["asides"]["prompts"])
        return _finished(aside(text), Asked(), rng)
    asked = random_asked(rng)
    templates = HELD_OUT_TEMPLATES if held_out else TEMPLATES
    text = rng.choice(templates)(phraser, asked)
    if not held_out or rng.random() < 0.5:
        text = _dressed(phraser, text)
    return replace(_finished(text, asked, rng, typos), swapped=phraser.swapped)


def of_label(label: Label) -> Asked:
    """What a caption of the grammar asks for; it says nothing of a camera that stands, or of the usual speed."""
    asked = Asked(**{name: getattr(label, name) for name in Asked.__slots__})
    speed = None if label.direction == "still" or label.speed == "medium" else label.speed
    return replace(asked, speed=speed, camera=None if label.camera == "fixed" else label.camera)


def _core(phraser: Phraser, asked: Asked) -> tuple[str, bool]:
    """The subject or both, and whether it is plural. A speed may stand before the subject."""
    return pair(phraser, asked) if asked.subject2 else phraser.thing(asked.subject, asked.colour)


def _sentence(phraser: Phraser, asked: Asked) -> str:
    """a red car drives left in the desert"""
    thing, many = _core(phraser, asked)
    moves = asked.direction or asked.speed or phraser.often(0.6)
    form = "participle" if phraser.often(0.45) else "present"
    action = phraser.action(asked, form, many) if moves else ""
    if asked.subject2 and action and phraser.often(0.2):
        action = phraser.rng.choice(("both ", "they ", "and both ", ", both ")) + phraser.action(asked, "present", True)
    scene = phraser.scene(asked.scene)
    parts = [thing, action, scene] if phraser.often(0.7) else [scene and scene + ",", thing, action]
    return _with_camera(phraser, " ".join(filter(None, parts)), asked)


def _story(phraser: Phraser, asked: Asked) -> str:
    """a red car drives left under a balloon in the desert"""
    if not asked.subject2:
        return _sentence(phraser, asked)
    return _with_camera(phraser, pair_story(phraser, asked), asked)


def _with_camera(phraser: Phraser, text: str, asked: Asked) -> str:
    camera = phraser.camera(asked.camera)
    if not camera:
        return text
    joint = phraser.rng.choice((", ", ", ", "; ", ". ", " and ", " while ", " - "))
    return f"{camera}{joint}{text}" if phraser.often(0.35) else f"{text}{joint}{camera}"


def _fragments(phraser: Phraser, asked: Asked) -> str:
    """red car, desert, left"""
    parts = [_core(phraser, asked)[0]]
    if asked.direction or asked.speed:
        parts.append(phraser.action(asked, "bare" if phraser.often(0.6) else "participle"))
    parts += [phraser.scene(asked.scene, "is" if phraser.often(0.6) else "in"), phraser.camera(asked.camera)]
    parts = [part for part in parts if part]
    if phraser.often(0.7):
        phraser.rng.shuffle(parts)
    separator = phraser.rng.choice(SEPARATORS)
    return separator.join(parts)


def _short(phraser: Phraser, asked: Asked) -> str:
    """red car left desert"""
    words = [asked.colour and phraser.coloured(asked.colour), asked.subject and phraser.noun(asked.subject)]
    if asked.subject2 or not any(words):
        return _fragments(phraser, asked)
    words += [phraser.action(asked, "bare")] if asked.direction or asked.speed else []
    words += [phraser.scene(asked.scene, "is"), phraser.camera(asked.camera)]
    if phraser.often(0.4):
        phraser.rng.shuffle(words)
    return phraser.rng.choice((" ", " ", ", ", "/", ". ", " - ")).join(filter(None, words))


def _statements(phraser: Phraser, asked: Asked) -> str:
    """There is a ball. It is red. It rolls left. It is night."""
    thing = _core(phraser, asked)[0] if asked.subject2 else phraser.thing(asked.subject, None)[0]
    it = phraser.rng.choice(("it", "it", f"the {phraser.noun(asked.subject)}")) if asked.subject else "it"
    parts = []
    if asked.colour and not asked.subject2:
        parts.append(
            f"{it} {phraser.rng.choice(('is', 'should be', 'must be', 'is all'))} {phraser.coloured(asked.colour)}"
        )
    if asked.direction or asked.speed:
        parts.append(f"{it} {phraser.action(asked, 'present')}")
    if asked.scene:
        opening = phraser.rng.choice(
            ("it is ", "it's ", "scene: ", "the place is ", "the scene is ", "place: ", "background: ", "")
        )
        parts.append(
            f"{opening}{phraser.scene(asked.scene, 'is')}"
            if phraser.often(0.6)
            else f"it is {phraser.scene(asked.scene)}"
        )
    parts.append(phraser.camera(asked.camera))
    parts = [part for part in parts if part]
    if phraser.often(0.5):
        phraser.rng.shuffle(parts)
    begin = phraser.rng.choice(("there is ", "there's ", "", "we see ", "i have ", "a video with ", "once there was "))
    return phraser.rng.choice((". ", ", ", ", and ", " and ", "; ", " ")).join([begin + thing, *parts])


def _scene_first(phraser: Phraser, asked: Asked) -> str:
    """It is night and a red car drives left."""
    if not asked.scene:
        return _sentence(phraser, asked)
    opening = phraser.rng.choice(
        (
            "it's {} and ",
            "it is {}, ",
            "{}: ",
            "{}. ",
            "{}, and ",
            "in a scene of {}, ",
            "at the {} there is ",
            "when it is {} ",
            "a {} scene with ",
            "{}, where ",
        )
    )
    rest = _sentence(phraser, replace(asked, scene=None))
    return opening.format(phraser.scene(asked.scene, "is")) + rest


def _movement_first(phraser: Phraser, asked: Asked) -> str:
    """Slowly to the left goes a red car in the desert."""
    if not (asked.direction or asked.speed):
        return _scene_first(phraser, asked)
    action = phraser.action(asked, phraser.rng.choice(("bare", "participle")))
    joint = phraser.rng.choice(
        (
            " goes ",
            ", ",
            " is ",
            ": ",
            " we see ",
            " comes ",
            " it goes, ",
            " and ",
            " flies ",
            " moves ",
            ": a video of ",
        )
    )
    thing, scene = _core(phraser, asked)[0], phraser.scene(asked.scene)
    return _with_camera(phraser, " ".join(filter(None, [f"{action}{joint}{thing}", scene])), asked)


def _relative(phraser: Phraser, asked: Asked) -> str:
    """a car that drives left and that is in the desert"""
    thing, many = _core(phraser, asked)
    that = phraser.rng.choice(("that", "which"))
    clauses = [phraser.action(asked, "present", many)] if asked.direction or asked.speed else []
    if asked.scene:
        clauses.append(f"is {phraser.scene(asked.scene)}")
    phraser.rng.shuffle(clauses)
    joint = phraser.rng.choice((f" and {that} ", " and ", f", {that} "))
    return _with_camera(phraser, f"{thing} {that} {joint.join(clauses)}" if clauses else thing, asked)


def _wish(phraser: Phraser, asked: Asked) -> str:
    """let the red car drive left"""
    thing, _ = _core(phraser, asked)
    action = phraser.action(asked, "participle") if asked.direction or asked.speed else ""
    shape = phraser.rng.choice(
        (
            "i want {} and i want it {}",
            "make {} and have it {}",
            "let {} be {}",
            "{} should be {}",
            "{} must be {}",
            "{}, and it should be {}",
            "put {}, {}",
        )
    )
    text = shape.format(thing, action) if action else thing
    return _with_camera(phraser, f"{text} {phraser.scene(asked.scene)}".strip(), asked)


def _not_this(phraser: Phraser, asked: Asked) -> str:
    """not a boat but a red car"""
    wrong = phraser.rng.choice([word for word in LEXICON["nouns"] if word not in (asked.subject, asked.subject2)])
    wrong = phraser.noun(wrong)
    shape = phraser.rng.choice(NOT_THIS)
    return shape.format(wrong, _sentence(phraser, asked)) if asked.subject else _sentence(phraser, asked)


TEMPLATES = (
    _sentence, _sentence, _sentence, _sentence, _fragments, _fragments, _fragments, _short, _statements, _statements,
    _scene_first, _movement_first, _not_this, _not_this, _story, _story, _story, _story,
)  # fmt: skip
HELD_OUT_TEMPLATES = (_relative, _wish)


def _dressed(phraser: Phraser, text: str) -> str:
    """With a request before or behind, and words of style and mood."""
    requests = LEXICON["requests"]
    if phraser.often(0.12):
        text = phraser.rng.choice(requests["question"]).format(text)
    elif phraser.often(0.25):
        text = f"{phraser.rng.choice(requests['before'])} {text}"
    if phraser.often(0.06):
        text = f"{text}{phraser.rng.choice((' ', ', '))}{phraser.rng.choice(requests['after'])}"
    for kind, share in (("styles", 0.16), ("moods", 0.06), ("weather", 0.06)):
        if phraser.often(share):
            words = ", ".join(phraser.asides(kind) for _ in range(phraser.rng.choice((1, 1, 2, 3))))
            text = f"{words}, {text}" if phraser.often(0.25) else f"{text}{phraser.rng.choice((', ', ' '))}{words}"
    return text


def _finished(text: str, asked: Asked, rng: random.Random, typos: float = 0.0) -> TypedPrompt:
    """Spells the text, and takes the marks of what has no effect out of it."""
    text = re.sub(r"\s+([,.;!?])", r"\1", re.sub(r" +", " ", re.sub(r",\s*([,.;!?])", r"\1", text))).strip(" ,;")
    if rng.random() < typos:
        text = re.sub(r"[a-z]{3,}", lambda word: misspelled(word[0], rng) if rng.random() < TYPOS else word[0], text)
    plain, spans, start = "", [], None
    for character in text:
        if character == ASIDE:
            start = len(plain)
        elif character == END:
            if start is not None:
                spans.append((start, len(plain)))
            start = None
        else:
            plain += character
    return TypedPrompt(plain, asked, tuple(spans))

"""The grammar of typed prompts: every answer belongs to its text."""

import random
import re
from collections.abc import Callable

import pytest

from engine.text.asked import COLOURS, REVERSED, SCENES, SUBJECTS, WORDS, Asked
from engine.training.world import pairs, phrasing, rejecting
from engine.training.world.pairs import pair, pair_story
from engine.training.world.phrasing import (
    ASIDE,
    END,
    HELD_OUT,
    LEXICON,
    Phraser,
    is_held_out,
    participle,
    plural,
    present,
)
from engine.training.world.typed_prompts import random_asked, typed_prompt


def test_words_are_inflected() -> None:
    """Plurals, third persons and participles are spelled as people spell them."""
    assert [plural(word) for word in ("butterfly", "goldfish", "finch", "toy balloon")] == [
        "butterflies", "goldfish", "finches", "toy balloons",
    ]  # fmt: skip
    assert [present(word) for word in ("fly up", "dash", "go", "whizz")] == ["flies up", "dashes", "goes", "whizzes"]
    assert [participle(word) for word in ("hop along", "glide", "sail", "flee")] == [
        "hopping along", "gliding", "sailing", "fleeing",
    ]  # fmt: skip
    assert [present("be carried"), present("be carried", True), participle("be carried")] == [
        "is carried", "are carried", "being carried",
    ]  # fmt: skip


def test_prompts_are_the_same_for_a_seed_and_differ() -> None:
    """Training can be resumed, and there is no end of prompts."""
    made = [[typed_prompt(rng).text for _ in range(200)] for rng in (random.Random(1), random.Random(1))]
    assert made[0] == made[1] and len(set(made[0])) > 190


def test_what_has_no_effect_stands_in_the_text() -> None:
    """Spans lie within the prompt, no mark is left over, and most are words of the lexicon's asides."""
    rng = random.Random(2)
    for _ in range(500):
        prompt = typed_prompt(rng)
        assert prompt.text.strip() and not set(prompt.text) & {ASIDE, END, "{", "}"}
        assert all(0 <= start < end <= len(prompt.text) for start, end in prompt.no_effect)


def test_training_never_says_what_is_held_out() -> None:
    """Held-out words come in held-out prompts only, and there often."""
    rng = random.Random(3)
    assert not any(HELD_OUT.search(typed_prompt(rng, typos=0.0).text) for _ in range(3000))
    assert sum(bool(HELD_OUT.search(typed_prompt(rng, held_out=True).text)) for _ in range(300)) > 60


def test_the_lexicon_has_words_for_all_that_there_is() -> None:
    """Each subject, colour, scene, direction and so on can be said, and no word means two of a kind."""
    assert tuple(LEXICON["nouns"]) == SUBJECTS and tuple(LEXICON["colours"]) == COLOURS
    assert tuple(LEXICON["scenes"]) == SCENES
    for table in ("nouns", "colours"):
        words = [word for one in LEXICON[table].values() for word in one]
        assert len(words) == len(set(words))


def test_all_words_are_asked_for_and_left_open() -> None:
    """Every word of every field comes, and so does leaving it open."""
    rng = random.Random(4)
    drawn = [random_asked(rng) for _ in range(3000)]
    for name, words in WORDS.items():
        assert {getattr(asked, name) for asked in drawn} == {None, *words}


@pytest.mark.parametrize("say", [lambda phraser, asked: pair(phraser, asked)[0], pair_story])
def test_of_two_things_the_first_named_is_the_first_that_is_read(
    say: Callable[[Phraser, Asked], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the one below or on the right comes first in a text is what the phraser says of it."""
    monkeypatch.setattr(phrasing, "PLAIN_SHARE", 1.0)
    orders = set()
    for number in range(600):
        phraser = Phraser(random.Random(number))
        relation = ("above", "left of", None)[number % 3]
        text = say(phraser, Asked("car", relation=relation, subject2="balloon", scene="desert", direction="left"))
        first, second = (re.search(rf"\b{word}s?\b", text) for word in ("car", "balloon"))
        assert first and second
        assert (second.start() < first.start()) == phraser.swapped, text
        orders.add((relation, phraser.swapped))
    assert len(orders) == 5


def test_where_things_are_is_said_of_the_right_one() -> None:
    """Of two shapes the one filled with the words of an order says what is above, or on the left."""
    for relation in ("above", "left of", *REVERSED.values()):
        asked = Asked("car", relation="above", subject2="balloon").words | {"relation": relation}
        found = pairs._phrases(Phraser(random.Random(relation)), asked)
        forth = relation in REVERSED
        table = LEXICON["relations"]["above" if relation in ("above", "below") else "left of"]
        assert found["ab"] in table["forth" if forth else "back"] and found["ba"] in table["back" if forth else "forth"]
        assert found["at"] in table["forth_alone" if forth else "back_alone"]
        assert found["sa"] in table["forth_side" if forth else "back_side"]
        assert found["sb"] in table["back_side" if forth else "forth_side"]


def test_what_is_not_meant_comes_with_what_is() -> None:
    """Every way to say so names both, and a scene that is not meant is another one."""
    for shape in rejecting.REJECTING:
        assert "{0}" in shape and "{1}" in shape
    for shape in (*rejecting.NOT_THIS, *rejecting.NOT_DOING):
        assert sorted(re.findall(r"{\d}", shape)) == ["{0}", "{1}"]
    for scene in SCENES:
        others = Phraser(random.Random(scene)).others("scenes", scene, "is")
        assert len(others) == 2 and not set(others) & set(LEXICON["scenes"][scene]["is"])


def test_every_place_can_be_named() -> None:
    """With words of its own, none of which is held out."""
    assert tuple(LEXICON["places"]) == SCENES
    for places in LEXICON["places"].values():
        assert places["prepositions"] and not any(map(is_held_out, places["nouns"]))

"""What a prompt asks for: what it leaves open is drawn by seed, and the caption says all of it."""

import random
from dataclasses import fields, replace
from pathlib import Path

import pytest

from engine.text.asked import COLOURS, SCENES, SUBJECTS, WORDS, Asked
from engine.text.words import WORD_START
from engine.training.world.captions import MOST_WORDS, Label, make_tokenizer, random_label


def test_what_is_open_depends_on_the_seed_alone() -> None:
    """The same seed fills a prompt in the same way, and others do not all."""
    asked = Asked(colour="red")
    assert asked.drawn(7) == asked.drawn(7)
    shown = [asked.drawn(seed) for seed in range(60)]
    assert {one.colour for one in shown} == {"red"}
    assert {one.subject for one in shown} == set(SUBJECTS) and {one.scene for one in shown} == set(SCENES)


def test_a_draw_outlasts_a_change_of_other_words() -> None:
    """Where two prompts of a video leave the place open, it stays the same place."""
    for seed in range(20):
        assert Asked("ball", "red").drawn(seed).scene == Asked("ball", "blue", direction="up").drawn(seed).scene


def test_what_nobody_mentions_is_usual() -> None:
    """Without a word the camera stands and the speed is medium; what stands still has no speed to choose."""
    shown = Asked("car").drawn(0)
    assert (shown.camera, shown.speed, shown.relation, shown.subject2) == ("fixed", "medium", None, None)
    assert Asked("car", direction="still", speed="fast").drawn(0).speed == "slow"


def test_two_subjects_of_open_colours_differ() -> None:
    """Neither colour of a pair is drawn like the other."""
    for seed in range(40):
        for asked in (Asked("ball", subject2="car"), Asked("ball", subject2="car", colour2=COLOURS[seed % 8])):
            shown = asked.drawn(seed)
            assert shown.colour != shown.colour2 and shown.relation is not None


@pytest.mark.parametrize("pair", [False, True])
def test_captions_are_of_the_grammar(pair: bool, tmp_path: Path) -> None:
    """A caption has known words only, is short enough, and says each word that its label has."""
    known = set(make_tokenizer(tmp_path).get_vocab())
    rng = random.Random(0)
    for _ in range(300):
        label = random_label(rng)
        asked = Asked(**{field.name: getattr(label, field.name) for field in fields(Label)})
        if pair:
            asked = replace(asked, subject2="butterfly", colour2="orange", relation="left of")
        words = asked.caption.replace(",", " ,").split()
        assert len(words) <= MOST_WORDS and all(word == "," or WORD_START + word in known for word in words)
        assert asked.colour in words and asked.drawn(0) == asked


def test_words_for_people_name_what_is_open() -> None:
    """Fields have the words of the API, and what the prompt leaves open is named."""
    told = Asked("ball", "red", direction="bounce", subject2="car", relation="left of").understood(3, ("shiny",))
    assert (told.direction, told.camera, told.relation, told.second_subject) == ("bouncing", "none", "left", "car")
    assert told.open == ("scene", "speed", "camera", "second_colour") and told.no_effect == ("shiny",)
    alone = Asked("ball").understood(3, ())
    assert (alone.second_subject, alone.second_colour, alone.relation) == (None, None, None)
    assert alone.open == ("colour", "scene", "direction", "speed", "camera")


def test_a_word_that_is_none_is_refused() -> None:
    """The error names word and field."""
    with pytest.raises(ValueError, match="'dog' is no subject"):
        Asked("dog")
    assert set(WORDS) == set(Asked.__slots__)

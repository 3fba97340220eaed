"""The grammar of typed prompts: every answer belongs to its text."""

import random

from engine.text.asked import COLOURS, SCENES, SUBJECTS, WORDS
from engine.training.world.phrasing import ASIDE, END, HELD_OUT, LEXICON, participle, plural, present
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


def test_prompts_are_the_same_for_a_seed_and_differ() -> None:
    """Training can be resumed, and there is no end of prompts."""
    made = [[typed_prompt(rng).text for _ in range(200)] for rng in (random.Random(1), random.Random(1))]
    assert made[0] == made[1] and len(set(made[0])) > 190


def test_what_has_no_effect_stands_in_the_text() -> None:
    """Spans lie within the prompt, no mark is left over, and most are words of the lexicon's asides."""
    rng = random.Random(2)
    for _ in range(500):
        prompt = typed_prompt(rng)
        assert prompt.text.strip() and ASIDE not in prompt.text and END not in prompt.text
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

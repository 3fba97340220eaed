"""The caption grammar."""

import random

import pytest

from engine.training.captions import COLOURS, DIRECTIONS, SCENES, SPEEDS, SUBJECTS, Label, caption, random_label


def test_a_tenth_of_the_combinations_is_held_out() -> None:
    """The hash keeps about a tenth of all labels from training, of every colour."""
    labels = [Label(s, c, z, d, "slow") for s in SUBJECTS for c in COLOURS for z in SCENES for d in DIRECTIONS]
    held_out = [label for label in labels if label.held_out]
    assert 0.05 < len(held_out) / len(labels) < 0.15
    assert {label.colour for label in held_out} == set(COLOURS)


def test_training_never_draws_a_held_out_label() -> None:
    """random_label keeps to its side."""
    rng = random.Random(0)
    assert not any(random_label(rng).held_out for _ in range(500))
    assert all(random_label(rng, held_out=True).held_out for _ in range(100))


def test_a_caption_says_the_whole_label() -> None:
    """Colour and direction are always worded, and different labels never share a caption."""
    rng = random.Random(1)
    seen: dict[str, Label] = {}
    for _ in range(3000):
        label = random_label(rng)
        words = caption(label, rng)
        assert label.colour in words
        if label.direction != "still":
            assert label.direction in words
        other = seen.setdefault(words, label)
        assert (other.subject, other.colour, other.scene, other.direction) == (
            label.subject,
            label.colour,
            label.scene,
            label.direction,
        )


def test_there_are_paraphrases() -> None:
    """One label has many wordings."""
    rng = random.Random(2)
    label = Label("car", "red", "desert", "right", SPEEDS[0])
    assert len({caption(label, rng) for _ in range(300)}) > 50


def test_unknown_words_are_refused() -> None:
    """A label outside the world is an error that names the allowed words."""
    with pytest.raises(ValueError, match="'zebra' is not one of ball"):
        Label("zebra", "red", "sea", "left", "slow")

"""The caption grammar."""

import hashlib
import random
from itertools import product

import pytest

from engine.text.asked import COLOURS, DIRECTIONS, SCENES, SPEEDS, SUBJECTS
from engine.training.world.captions import MOST_WORDS, PAIR_SHARE, PAN_SHARE, Label, caption, random_label


def test_a_tenth_of_the_combinations_is_held_out() -> None:
    """The hash keeps about a tenth of all labels from training, of every colour."""
    labels = [Label(s, c, z, d, "slow") for s, c, z, d in product(SUBJECTS, COLOURS, SCENES, DIRECTIONS)]
    held_out = [label for label in labels if label.held_out]
    assert 0.05 < len(held_out) / len(labels) < 0.15
    assert {label.colour for label in held_out} == set(COLOURS)


def test_training_never_draws_a_held_out_label() -> None:
    """random_label keeps to its side."""
    rng = random.Random(0)
    assert not any(random_label(rng).held_out for _ in range(500))
    assert all(random_label(rng, held_out=True).held_out for _ in range(100))


def test_a_caption_says_the_whole_label() -> None:
    """Colours and direction are always worded, and different labels never share a caption."""
    rng = random.Random(1)
    seen: dict[str, Label] = {}
    for _ in range(3000):
        label = random_label(rng)
        words = caption(label, rng)
        assert label.colour in words
        if label.direction in ("left", "right", "up", "down"):
            assert label.direction in words
        assert (label.colour2 or "") in words and ("pan" in words or "moves to" in words or label.camera == "fixed")
        assert seen.setdefault(words, label) == label


def test_there_are_paraphrases() -> None:
    """One label has many wordings."""
    rng = random.Random(2)
    label = Label("car", "red", "desert", "right", SPEEDS[0])
    assert len({caption(label, rng) for _ in range(300)}) > 50


def test_captions_are_short_enough_to_be_read_whole() -> None:
    """Even two subjects before a panning camera are said in MOST_WORDS words, commas counted."""
    rng = random.Random(3)
    label = Label("balloon", "orange", "hills", "right", "slow", "left", "left of", "butterfly", "yellow")
    lengths = [len(caption(label, rng).replace(",", " ,").split()) for _ in range(300)]
    assert max(lengths) == MOST_WORDS


def test_second_subjects_and_panning_cameras_are_as_frequent_as_said() -> None:
    """Shares of both, and two subjects always differ in kind and colour."""
    rng = random.Random(4)
    labels = [random_label(rng) for _ in range(4000)]
    pairs = [label for label in labels if label.relation]
    assert len(pairs) / len(labels) == pytest.approx(PAIR_SHARE, abs=0.03)
    assert sum(label.camera != "fixed" for label in labels) / len(labels) == pytest.approx(PAN_SHARE, abs=0.03)
    assert all(label.subject != label.subject2 and label.colour != label.colour2 for label in pairs)


def test_unknown_words_are_refused() -> None:
    """A label outside the world is an error that names the allowed words."""
    with pytest.raises(ValueError, match="'zebra' is not one of ball"):
        Label("zebra", "red", "sea", "left", "slow")
    with pytest.raises(ValueError, match="'round' is not one of fixed"):
        Label("ball", "red", "sea", "left", "slow", "round")


def test_a_second_subject_is_told_whole_or_not_at_all() -> None:
    """One without its colour is refused."""
    with pytest.raises(ValueError, match="None is not one of red"):
        Label("ball", "red", "sea", "left", "slow", relation="above", subject2="car")


def test_labels_and_captions_stay_as_they_were() -> None:
    """The same seed draws the same labels and wordings for ever: shipped weights and held-out figures rest on them."""
    rng = random.Random("hash")
    labels = [random_label(rng, held_out=number % 4 == 0) for number in range(400)]
    lines = [f"{sorted(label.words.items())} {caption(label, rng)}" for label in labels]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == "fdc6205d5c063165"

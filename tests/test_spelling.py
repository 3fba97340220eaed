"""Mistyped words."""

import pytest

from engine.text.spelling import Speller

SPELL = Speller(["water", "balloon", "weather", "red", "night"], ["cat", "knight"])


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("baloon", "balloon"),
        ("ballooon", "balloon"),
        ("blaloon", "balloon"),
        ("balloin", "balloon"),
        ("NIGTH", "night"),
        ("wather", "water"),  # the more frequent one
        ("knight", "knight"),  # English
        ("balon", "balon"),  # two slips
        ("rd", "rd"),  # too short
        ("redd", "redd"),  # too short a word to be meant
        ("c3po", "c3po"),
        ("balloon" * 2000, "balloon" * 2000),  # longer than any word by more than a slip
    ],
)
def test_a_word_one_slip_away_is_meant(typed: str, meant: str) -> None:
    """One letter missing, too many, another or swapped; English, short and stranger words stay."""
    assert SPELL(typed) == meant

"""What the small text encoder reads of a prompt."""

import itertools

import pytest

from engine.loading.weights import SHIPPED
from engine.text.asked import WORDINGS
from engine.text.small_t5 import load_vocabulary
from engine.text.words import FILLERS, WORD_START, Reading, read_words

MOST = 23  # words that `mini` reads


def _read(prompt: str, most: int = MOST) -> Reading:
    return read_words(prompt, load_vocabulary(SHIPPED / "mini"), most)


def _words(reading: Reading) -> str:
    return " ".join(piece.removeprefix(WORD_START) for piece in reading.pieces)


@pytest.mark.parametrize(
    ("prompt", "read", "unread"),
    [
        (
            "A beautiful cinematic wide shot of a green airplane at night",
            "a of a green airplane at night",
            "beautiful cinematic wide shot",
        ),
        ("a red car, drives left.", "a red car , drives left", ""),
        ("stunning, epic, a red car, 8k, trending", "a red car", "stunning epic 8k trending"),
        ("a red car/boat (at night)!", "a red car boat at night", ""),
        ("a hot-air balloon; a red-hot zebra's ball", "a hot-air balloon a red hot ball", "zebra's"),
        ("Ａ ＲＥＤ ｃａｒ，left", "a red car , left", ""),
        ("ein rotes Auto 🚗 喵 …", "", "ein rotes auto 🚗 喵"),
        ("zebra zebra Zebra", "", "zebra"),
        ("a car-like ball", "a car ball", "like"),
        ("—, — ,", "", ""),
    ],
)
def test_known_words_are_read_and_others_named(prompt: str, read: str, unread: str) -> None:
    """Unknown words are left out, with the commas around them, and each is named once."""
    reading = _read(prompt)
    assert (_words(reading), reading.unread) == (read, tuple(unread.split()))


def test_unknown_words_do_not_push_known_ones_out() -> None:
    """However many unknown words come first, what follows them is read."""
    wordy = "an absolutely breathtaking hyperrealistic award-winning masterpiece depicting " * 20
    assert _words(_read(wordy + "green airplane at night")).endswith("green airplane at night")


def test_a_vocabulary_without_commas_is_read_without() -> None:
    """As one that was made of a user's own captions may be."""
    assert read_words("a car, left", {"▁car", "▁left"}, 9) == Reading(["▁car", "▁left"], ("a",))


def test_what_is_too_long_is_cut_and_named() -> None:
    """Known words beyond the limit count as unread."""
    reading = _read("red green blue white", most=2)
    assert (_words(reading), reading.unread) == ("red green", ("blue", "white"))


def test_articles_go_before_anything_is_cut() -> None:
    """Fillers leave kind by kind, and are not named."""
    reading = _read("a little red car over the hills by day", most=6)
    assert (_words(reading), reading.unread) == ("red car over hills by day", ())


def test_no_caption_of_the_grammar_is_cut() -> None:
    """The longest wording of each part, put together, is read but for fillers."""

    def longest(parts: list[str]) -> list[str]:
        return sorted(parts, key=lambda part: len(_read(part, 99).pieces))[-3:]

    nouns = longest([noun for subject in WORDINGS["subjects"].values() for noun in subject["nouns"]])
    relations = longest(sum(WORDINGS["relations"].values(), []))
    moves = longest(
        [f"moves {direction}" for direction in sum(WORDINGS["directions"].values(), [])]
        + WORDINGS["bounce"]
        + WORDINGS["still"]
    )
    speeds = longest(sum(WORDINGS["speeds"].values(), []))
    scenes, cameras = longest(sum(WORDINGS["scenes"].values(), [])), longest(sum(WORDINGS["cameras"].values(), []))
    fillers = {word for kind in FILLERS for filler in kind for word in filler.split()}
    for noun, relation, move, speed, scene, camera in itertools.product(
        nouns, relations, moves, speeds, scenes, cameras
    ):
        prompt = f"one white {noun} {relation} a big purple {noun} {move} {speed} {scene}, {camera}"
        reading = _read(prompt)
        assert reading.unread == () and len(reading.pieces) <= MOST
        missing = set(_words(_read(prompt, 99)).split()) - set(_words(reading).split())
        assert missing <= fillers, prompt

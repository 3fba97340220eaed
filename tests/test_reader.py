"""The reader of prompts: its pieces, its 8-bit weights, and the encoder around it."""

import string
import unicodedata
from pathlib import Path

import pytest
import torch
from tiny import tiny_config, tiny_tokenizer

from engine.loading.weights import load_component, save_component
from engine.text.asked import Asked
from engine.text.reader import ANSWERS, ByteMatrix, PromptReader, PromptReaderConfig, make_reader
from engine.text.reading_text import ReadingText
from engine.text.small_t5 import SmallT5

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "ball", "##s", ",", *string.ascii_lowercase]
PIECES += [f"##{letter}" for letter in string.ascii_lowercase if letter != "s"]
CONFIG = PromptReaderConfig(hidden=24, layers=2, heads=2, mlp=32, embedding=12, vocabulary=70, max_length=16)


def tiny_reader() -> PromptReader:
    """With random weights."""
    torch.manual_seed(0)
    reader = PromptReader(CONFIG, PIECES, ["ball"])
    reader.table.store(torch.randn(70, 12))
    for parameter in reader.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return reader.eval()


def test_eight_bits_are_close() -> None:
    """A row in 8 bits differs by half a step at most."""
    torch.manual_seed(0)
    rows, small = torch.randn(5, 12), ByteMatrix(5, 12)
    small.store(rows)
    step = rows.abs().amax(1, keepdim=True) / 127
    assert ((small.rows(torch.arange(5)) - rows).abs() <= step / 2 + 1e-6).all()


def test_a_mistyped_word_is_read_as_the_known_one() -> None:
    """One slip away from a known word is that word, where the vocabulary has no such word."""
    reader = tiny_reader()
    assert torch.equal(reader.batch(["red blal"]).ids, reader.batch(["red ball"]).ids)
    assert not torch.equal(reader.batch(["red blat"]).ids[0], reader.batch(["red b"]).ids[0])


def test_padding_changes_nothing() -> None:
    """A prompt is read the same beside a longer one."""
    reader = tiny_reader()
    alone, beside = reader.batch(["red ball"]), reader.batch(["red ball", "a b c d e f g"])
    with torch.no_grad():
        one, two = (reader(reader.embed(batch), batch.mask)[0] for batch in (alone, beside))
    for name in ANSWERS:
        torch.testing.assert_close(one[name][0], two[name][0])


@pytest.mark.parametrize(
    "prompt", ["", "?!", "猫 🚗", "red " * 400, "x" * 2000, "def f(): return [0]", "\u0301 e\u0301"]
)
def test_anything_is_read(prompt: str) -> None:
    """Something sensible comes of any text, and words that are too many have no effect."""
    asked, idle = tiny_reader().read(prompt)
    assert isinstance(asked, Asked) and all(word in unicodedata.normalize("NFKC", prompt).lower() for word in idle)


def test_words_behind_the_end_have_no_effect() -> None:
    """The reader says so of what it does not read."""
    assert "zz" in tiny_reader().read("b " * 20 + "zz")[1]


def test_files_bring_the_reader_back(tmp_path: Path) -> None:
    """Weights, pieces and words are read again from a folder; without its lists it is refused by name."""
    small = tiny_reader()
    save_component(tmp_path, "reader", small)
    for name, words in (("reader_pieces.txt", PIECES), ("reader_words.txt", ["ball"])):
        with pytest.raises(ValueError, match=f"{name} is missing"):
            make_reader(CONFIG, tmp_path)
        (tmp_path / name).write_text("\n".join(words) + "\n")
    again = make_reader(CONFIG, tmp_path)
    load_component(tmp_path, "reader", again)
    assert torch.equal(again.table.numbers, small.table.numbers) and again.known == ["ball"]


def test_sizes_that_do_not_fit_are_refused() -> None:
    """Both numbers are named."""
    with pytest.raises(ValueError, match="59 pieces, its configuration room for 4"):
        PromptReader(PromptReaderConfig(hidden=24, heads=2, vocabulary=4), PIECES)
    with pytest.raises(ValueError, match="hidden 25 is not divisible by 2"):
        PromptReaderConfig(hidden=25, heads=2)


@torch.no_grad()
def test_a_prompt_is_embedded_as_its_caption() -> None:
    """The embedding is the small encoder's of the caption that says what is understood, by seed."""
    encoder = SmallT5(tiny_config().text, tiny_tokenizer().get_vocab()).eval()
    text = ReadingText(tiny_reader(), encoder)
    asked = text.reader.read("red ball")[0]
    for seed in range(4):
        assert torch.equal(text.embed("red ball", seed).planner, encoder.embed(asked.drawn(seed).caption).planner)
        assert text.understood("red ball", seed).scene == asked.drawn(seed).scene
    for number in range(40):
        text.embed(f"red {number}")
    assert len(text._readings) == 16

"""Files of prompts with labels, and what is said of them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from engine.__main__ import main
from engine.evaluation.prompt_set import figures, read_prompts
from engine.training.world.phrasing import HELD_OUT

DATA = Path(__file__).parent / "data"


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return path


def test_labels_become_words_of_a_reading(tmp_path: Path) -> None:
    """Words of the file are those of the API; null, and a speed that nobody can see, are not judged."""
    line = {"prompt": "p", "group": "B", "subject": "car", "colour": None, "direction": "bouncing", "speed": "normal"}
    pair = {"prompt": "q", "speed": "fast", "camera": "none", "second_subject": "ball", "relation": "left"}
    first, second = read_prompts(write(tmp_path / "p.jsonl", line, pair))
    assert first.group == "B" and first.judged == {"subject": "car", "direction": "bounce", "speed": "medium"}
    assert second.judged == {"camera": "fixed", "subject2": "ball", "relation": "left of"}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ({"prompt": "p", "subject": "dog"}, "line 2: subject 'dog' is not one of ball"),
        ({"prompt": "p", "mood": "happy"}, "line 2: mood is no field"),
        ({"subject": "car"}, "line 2: a JSON object with a text `prompt`"),
        ({"prompt": " "}, "line 2: the prompt is empty"),
        ([1], "line 2: a JSON object"),
    ],
)
def test_a_line_that_is_wrong_is_named(line: Any, complaint: str, tmp_path: Path) -> None:
    """File, line and value are named, before anything is made."""
    with pytest.raises(ValueError, match="p.jsonl, " + complaint):
        read_prompts(write(tmp_path / "p.jsonl", {"prompt": "a red car", "subject": "car"}, line))


def test_files_that_are_none_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is missing, empty or no JSON ends in one line."""
    for text, complaint in ((None, "cannot be read"), ("", "no prompts"), ("{", "line 1")):
        path = tmp_path / f"{complaint[:2]}.jsonl"
        if text is not None:
            path.write_text(text)
        assert main(["evaluate", "--prompts", str(path), "--json", str(tmp_path / "q.json")]) == 2
        assert complaint in capsys.readouterr().err


def test_shares_are_of_stated_words() -> None:
    """A prompt is right when all of its stated words are; a prompt without one does not count."""
    rows = [
        {"group": "A", "right": {"subject": True, "colour": True}},
        {"group": "A", "right": {"subject": True, "colour": False}},
        {"group": "B", "right": {"subject2": False}},
        {"group": "B", "right": {}},
    ]
    found = figures(rows)
    assert found["all_right"] == pytest.approx(1 / 3, abs=1e-4) and found["words_right"] == 0.6
    assert found["groups"]["A"]["all_right"]["share"] == 0.5 and found["groups"]["B"]["words_right"]["n"] == 1
    assert found["fields"]["second_subject"]["share"] == 0 and found["fields"]["colour"]["n"] == 2
    with pytest.raises(ValueError, match="no prompt states a word"):
        figures(rows[3:])


@pytest.mark.parametrize("kind", [["--plans"], ["--plans", "--after-change"], []])
def test_the_command_judges_the_shipped_weights(
    kind: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Captions of the grammar are right, in plans, in plans after a change, and in pictures."""
    path = write(
        tmp_path / "p.jsonl",
        {
            "prompt": "a red car drives to the left through the desert",
            "group": "x",
            "subject": "car",
            "scene": "desert",
        },
        {"prompt": "a blue ball rolls right over green hills", "group": "x", "colour": "blue", "scene": "hills"},
    )
    out = tmp_path / "q.json"
    assert main(["evaluate", "--prompts", str(path), "--json", str(out), "--device", "cpu", *kind]) == 0
    found = json.loads(out.read_text())
    assert found["all_right"] == found["words_right"] == 1.0
    assert found["prompts"][0]["seen"]["subject"] == "car" and found["conditions"]["preset"] == "mini"
    assert "| group x: every word, words | 1.000" in capsys.readouterr().out


def test_the_sets_of_typed_prompts_are_what_they_say() -> None:
    """At least 300 prompts of all groups, each once, and some with words that training never sees."""
    sets = {name: read_prompts(DATA / f"prompts_{name}.jsonl") for name in ("dev", "test")}
    every = [one for part in sets.values() for one in part]
    texts = Counter(one.prompt.lower() for one in every)
    assert len(every) >= 300 and max(texts.values()) == 1
    groups = {
        "plain",
        "order",
        "synonym",
        "clause",
        "fragment",
        "typo",
        "pair",
        "camera",
        "negation",
        "distractor",
        "count",
    }
    assert {one.group for one in sets["test"]} == {one.group for one in sets["dev"]} == groups
    assert sum(bool(HELD_OUT.search(one.prompt.lower())) for one in sets["test"]) >= 10

"""`inspect`: components, names and sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.__main__ import main

LISTING = json.loads((Path(__file__).parent / "data" / "checkpoint_keys.json").read_text())


def test_landiff_is_listed_as_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Components, keys, shapes and totals are those of the published files; the table names every component."""
    assert main(["inspect", "--preset", "landiff", "--json", str(tmp_path / "f.json")]) == 0
    facts = json.loads((tmp_path / "f.json").read_text())
    said = capsys.readouterr().out
    assert facts.keys() == {name for name in LISTING if not name.startswith("_")}
    for name, component in facts.items():
        assert component["shapes"] == {key: v[0] for key, v in LISTING[name].items() if not key.startswith("__")}
        totals = LISTING["_totals"][name]
        assert component["parameters"] == totals["num_params"]
        (row,) = [line.split() for line in said.splitlines() if line.startswith(name)]
        assert row[1:3] == [str(totals["num_keys"]), f"{totals['num_params']:,}"]
        assert row[3] == f"{4 * totals['num_params'] / 1e9:.3f}"
    assert "fp8 GB" in said


def test_mini_is_listed_by_our_names(tmp_path: Path) -> None:
    """The small preset has our own components."""
    assert main(["inspect", "--json", str(tmp_path / "f.json")]) == 0
    facts = json.loads((tmp_path / "f.json").read_text())
    assert facts.keys() == {"text", "tokenizer", "planner", "renderer", "vae"}
    assert all(component.keys() == {"parameters", "shapes"} for component in facts.values())


def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that does not exist and an unknown preset end with status 2."""
    assert main(["inspect", "--json", str(tmp_path / "none" / "f.json")]) == 2
    assert "does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["inspect", "--preset", "huge"])
    assert caught.value.code == 2

"""`inspect`: components, names, sizes and costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.loading.inspect_model import main

LISTING = json.loads((Path(__file__).parent / "data" / "checkpoint_keys.json").read_text())


def test_landiff_is_listed_as_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Components, keys, shapes and totals are those of the published files; the tables name every component."""
    assert main(["--preset", "landiff", "--json", str(tmp_path / "f.json"), "--keys"]) == 0
    facts = json.loads((tmp_path / "f.json").read_text())
    said = capsys.readouterr().out
    assert facts.keys() == {name for name in LISTING if not name.startswith("_")}
    for name, component in facts.items():
        assert component["keys"] == {key: v[0] for key, v in LISTING[name].items() if not key.startswith("__")}
        totals = LISTING["_totals"][name]
        assert (component["tensors"], component["parameters"]) == (totals["num_keys"], totals["num_params"])
        assert component["bytes"] == 4 * component["parameters"]
        assert name in said
    assert "a group (6.5 s of video)" in said and "a hop (3 s of video)" in said and "fp8 GB" in said


def test_mini_is_listed_by_our_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The small preset has our own components; without --keys no names are written; device figures are taken."""
    arguments = ["--json", str(tmp_path / "f.json"), "--tflops", "0.3", "--gb-s", "20"]
    assert main(arguments) == 0
    facts = json.loads((tmp_path / "f.json").read_text())
    assert facts.keys() == {"text", "tokenizer", "planner", "renderer", "vae"}
    assert all(component.keys() == {"parameters", "tensors", "bytes"} for component in facts.values())
    said = capsys.readouterr().out
    assert "0.3 TFLOP/s and 20 GB/s" in said and "open a window" in said


def test_plans_for_a_budget_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Every budget has its table; one that is too small ends with status 2 and the numbers."""
    assert main(["--memory", "4", "--memory", "24"]) == 0
    said = capsys.readouterr().out
    assert "memory for 4 GB" in said and "memory for 24 GB" in said and "on the device" in said
    assert main(["--memory", "0.5"]) == 2
    assert "preset 'mini' does not fit 0.5 GB; the least it takes is 1." in capsys.readouterr().err


def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that cannot be written, an unknown preset and a device of no speed end with status 2."""
    assert main(["--json", str(tmp_path / "none" / "f.json")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    for arguments in (["--preset", "huge"], ["--tflops", "0"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2

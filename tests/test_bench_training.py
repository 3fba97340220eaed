"""The benchmark of training steps, at tiny size on real files."""

import dataclasses
import json
from pathlib import Path

import pytest
from test_footage import PUBLISHED, clips
from tiny import tiny_config

from engine.bench import training
from engine.config import PRESETS


@pytest.mark.parametrize("preset", ["landiff", "mini"])
def test_every_stage_is_measured(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part that a preset trains from videos has its time and losses; frozen parameters are told apart."""
    tiny = {"landiff": PUBLISHED, "mini": dataclasses.replace(tiny_config(), name="mini")}
    monkeypatch.setitem(PRESETS, preset, lambda: tiny[preset])
    data, target = clips(tmp_path / "data", {"one": 65, "two": 65}), tmp_path / "f.json"
    words = ["--data", str(data), "--json", str(target), "--preset", preset, "--device", "cpu", "--steps", "2"]
    assert training.main(words) == 0
    report = json.loads(target.read_text())
    parts = {"landiff": ["renderer, part base", "renderer, part control"], "mini": ["renderer, part both"]}
    assert list(report["stages"]) == ["tokenizer", "planner", *parts[preset]]
    assert report["conditions"]["command"].startswith("python -m engine.bench.training --data")
    assert report["conditions"]["weights"] == "random"
    for name, figures in report["stages"].items():
        assert figures["step"]["rounds"] == 2 and figures["step"]["median_s"] > 0
        assert len(figures["losses"]) == 4 and figures["peak_gb"] is None
        assert (figures["trained"] < figures["parameters"]) == name.startswith("renderer, part") & (preset == "landiff")


def test_wrong_arguments_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Status 2, the value, and no file."""
    words = ["--data", str(tmp_path), "--json", str(tmp_path / "f.json"), "--device", "cpu"]
    assert training.main([*words, "--steps", "0"]) == 2
    assert "steps 0 and batch 1 must be at least 1" in caplog.text
    assert training.main([*words, "--preset", "huge"]) == 2
    assert "no preset 'huge'" in caplog.text
    assert not (tmp_path / "f.json").exists()

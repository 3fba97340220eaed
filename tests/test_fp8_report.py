"""The report of errors in 8 bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import tiny_model

from engine.bench import fp8_report


def test_every_layer_has_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command tells the error of each layer that a video passes, for planner and renderer."""
    monkeypatch.setattr(fp8_report, "load", lambda *arguments: tiny_model())
    monkeypatch.setattr(fp8_report, "preset", lambda name: tiny_model().config)
    monkeypatch.setattr(fp8_report, "weights_folder", lambda *arguments: tmp_path)
    assert fp8_report.main(["--json", str(tmp_path / "e.json"), "--device", "cpu"]) == 0
    errors = json.loads((tmp_path / "e.json").read_text())
    assert {"blocks.0.qkv", "blocks.1.down"} <= errors["planner"].keys()
    assert {"base.blocks.0.qkv", "control.blocks.0.mlp_out"} <= errors["renderer"].keys()
    assert all(0.001 < error < 0.2 for part in errors.values() for error in part.values())


def test_a_preset_without_weights_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be loaded is said, and nothing is written."""
    assert fp8_report.main(["--json", str(tmp_path / "e.json"), "--preset", "landiff", "--device", "cpu"]) == 2
    assert "landiff" in capsys.readouterr().err and not list(tmp_path.iterdir())

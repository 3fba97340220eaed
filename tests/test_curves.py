"""Drift curves of several evaluations in one picture."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from engine.evaluation.drift import WORDS
from engine.training import curves


def _evaluation(path: Path, shares: list[float], colours: list[float]) -> Path:
    curve = [
        {"minute": minute, **{word: {"share": share} for word in WORDS}, "colour_drift": {"mean": colour}}
        for minute, (share, colour) in enumerate(zip(shares, colours, strict=True))
    ]
    path.write_text(json.dumps({"drift_curve": curve}))
    return path


def test_each_evaluation_has_a_line_in_both_charts(tmp_path: Path) -> None:
    """Lines carry the files' names, and what is higher lies higher."""
    good = _evaluation(tmp_path / "good.json", [1.0, 1.0], [0.0, 0.0])
    poor = _evaluation(tmp_path / "poor.json", [0.5, 0.25], [0.0, 0.1])
    assert curves.main([str(good), str(poor), "--svg", str(tmp_path / "drift.svg")]) == 0
    root = ElementTree.parse(tmp_path / "drift.svg").getroot()
    lines = [
        [float(point.split(",")[1]) for point in line.get("points", "").split()]
        for line in root.iter("{http://www.w3.org/2000/svg}polyline")
    ]
    words_good, words_poor, colour_good, colour_poor = lines
    assert words_good[0] == words_good[1] < words_poor[0] < words_poor[1]
    assert colour_good[0] == colour_good[1] == colour_poor[0] > colour_poor[1]
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("good") == texts.count("poor") == 2


def test_other_files_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file without curves is named, and no picture is left."""
    (tmp_path / "other.json").write_text("{}")
    assert curves.main([str(tmp_path / "other.json"), "--svg", str(tmp_path / "drift.svg")]) == 2
    assert "other.json holds no figures" in caplog.text
    assert not (tmp_path / "drift.svg").exists()

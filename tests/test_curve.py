"""The curve of error against steps, at a size that tests can afford."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import tiny_model

from engine.bench import curve
from engine.bench.curve import CurveConfig


def test_every_run_has_a_row() -> None:
    """Orders differ where a solver can look back, and only there; errors are taken over both hops, and time counts."""
    rows = curve.curve(
        tiny_model(), CurveConfig(captions=1, steps=(1, 4), orders=(1, 2), shifts=(1.0,), reference_steps=8)
    )
    errors = {(row["order"], row["steps"]): row["error"] for row in rows}
    assert len(rows) == 4 and all(row["hop_s"] > 0 and row["worst_error"] >= row["error"] > 0 for row in rows)
    assert errors[1, 1] == errors[2, 1] and errors[1, 4] != errors[2, 4]


def test_rendering_leaves_the_channel_alone() -> None:
    """The same hop can be rendered again and again, and gives the same."""
    generator = curve.Generator(tiny_model())
    channel = generator.open("a red ball", 1)
    while generator.needs_plan(channel):
        generator.plan(channel)
    one, other = curve.render(generator, channel), curve.render(generator, channel)
    assert curve.relative_error(one.latents, other.latents) == 0.0
    assert channel.hop == 0 and one.after.hop == 1 and one.latents.shape[1] == 7


def test_the_command_writes_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures and picture are written under their names, with what they were measured with."""
    monkeypatch.setattr(curve, "load", lambda *arguments: tiny_model())
    monkeypatch.setattr(
        curve,
        "curve",
        lambda model, config: [
            {"order": order, "shift": 1.0, "steps": steps, "error": 1 / steps, "worst_error": 1.0, "hop_s": 0.1 * steps}
            for order in (1, 2)
            for steps in (1, 2, 4)
        ],
    )
    assert curve.main(["--json", str(tmp_path / "c.json"), "--png", str(tmp_path / "c.png"), "--device", "cpu"]) == 0
    report = json.loads((tmp_path / "c.json").read_text())
    assert len(report["rows"]) == 6
    assert report["conditions"]["command"].startswith("python -m engine.bench.curve --json")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.json", "c.png"]


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Amounts that cannot be run, and a preset that the curve is not for, are refused before anything runs."""
    assert curve.main(["--json", str(tmp_path / "c.json"), "--captions", "0"]) == 2
    assert curve.main(["--json", str(tmp_path / "c.json"), "--preset", "landiff"]) == 2
    assert capsys.readouterr().err.count("curve: ") == 2
    with pytest.raises(ValueError, match="64"):
        CurveConfig(1, steps=(64,))
    assert not list(tmp_path.iterdir())

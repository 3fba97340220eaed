"""What taking the layers' work of earlier steps costs and spares, as a command, at a size that tests can afford."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import tiny_config, tiny_model

from engine.bench import reuse_cost, tables
from engine.bench.reuse_cost import COMMAND, ReuseConfig

ROW = {
    "steps": 8,
    "reach": 0.3,
    "layer_runs": 5,
    "error": 0.01,
    "worst_error": 0.02,
    "reference_error": 0.1,
    "hop_s": 0.1,
}


def test_every_run_has_a_row() -> None:
    """Without reuse there is no error; with it layers run less often, at some; time counts."""
    amount = ReuseConfig(captions=1, steps=(8,), reaches=(3.0,), reference_steps=9)
    off, on = reuse_cost.measure(tiny_model(), amount)
    assert (off["reach"], off["layer_runs"], off["error"]) == (0.0, 8, 0.0)
    assert on["layer_runs"] < 8 and on["worst_error"] >= on["error"] > 0
    assert min(off["hop_s"], on["hop_s"], off["reference_error"], on["reference_error"]) > 0


def test_the_command_writes_figures_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures as JSON with what they were measured with, and as a table between the marks."""
    begin, end = tables.marks("tiny", COMMAND)
    docs, target = tmp_path / "d.md", tmp_path / "f.json"
    docs.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    monkeypatch.setattr(reuse_cost, "preset", lambda name: tiny_config())
    monkeypatch.setattr(reuse_cost, "weights_folder", lambda config, given: tmp_path)
    monkeypatch.setattr(reuse_cost, "load", lambda *arguments: tiny_model())
    monkeypatch.setattr(reuse_cost, "use_cores", lambda: None)
    monkeypatch.setattr(reuse_cost, "measure", lambda model, config: [{**ROW, "reach": 0.0}, ROW])
    assert reuse_cost.main(["--json", str(target), "--docs", str(docs), "--device", "cpu"]) == 0
    report = json.loads(target.read_text())
    assert report["conditions"]["command"].startswith(f"python -m {COMMAND} --json")
    text = docs.read_text()
    assert text.startswith(f"before\n{begin}\n") and text.endswith(f"{end}\nafter\n") and "old" not in text
    assert "| 8 | 0.3 | 5 | 0.0100, 0.0200 | 0.1000 | 100 |" in text
    assert "| 8 | off | 5 | 0 | 0.1000 | 100 |" in text


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Amounts that cannot be run, marks that are not there another kind of preset: refused, nothing is written."""
    target = ["--json", str(tmp_path / "f.json")]
    assert reuse_cost.main([*target, "--captions", "0"]) == 2
    assert reuse_cost.main([*target, "--preset", "landiff"]) == 2
    assert reuse_cost.main([*target, "--docs", str(tmp_path / "none.md")]) == 2
    assert capsys.readouterr().err.count("reuse_cost: ") == 3
    for wrong in ({"steps": (128,)}, {"steps": (1,)}, {"reaches": (0.0,)}):
        with pytest.raises(ValueError, match=r"must (lie between|be above)"):
            ReuseConfig(1, **wrong)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())

"""The engine's benchmark as a command."""

import json
import os
from pathlib import Path

import pytest
import torch
from tiny import tiny_config, tiny_model

from engine.bench import __main__ as bench
from engine.bench import compiled, growth, rounds, tables
from engine.bench.__main__ import BenchConfig, paired
from engine.bench.hop_cost import PARTS
from engine.bench.proofs import Check
from engine.config import EngineConfig
from engine.loading.model import Model

HOPS = 29  # the fewest, with ends of one cycle


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command measures the tiny model, and small copies and products."""

    def small_subject(config: EngineConfig, device: torch.device, dtype: torch.dtype) -> Model:
        return tiny_model()

    monkeypatch.setattr(bench, "subject", small_subject)
    monkeypatch.setattr(bench, "preset", lambda name: tiny_config())
    monkeypatch.setattr(bench, "use_cores", lambda: None)
    monkeypatch.setattr(compiled, "obstacle", lambda device: "no compiler")
    monkeypatch.setattr(growth, "_CYCLES", 1)
    monkeypatch.setattr(rounds, "WARM_UPS", 0)
    monkeypatch.setattr(rounds, "_COPY_BYTES", {"cpu": 2**16})
    monkeypatch.setattr(rounds, "_MATRIX", {"cpu": 32})


def test_command_writes_figures_tables_and_pictures(
    tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All parts of the report, from real runs of a tiny model; old files are replaced and nothing else is left."""
    begin, end = tables.marks("tiny")
    docs, target = tmp_path / "docs.md", tmp_path / "f.json"
    docs.write_text(f"{begin}\n{end}\n")
    target.write_text("old")
    words = ["--json", str(target), "--docs", str(docs), "--plots", str(tmp_path), "--preset", "tiny"]
    assert bench.main([*words, "--device", "cpu", "--rounds", "1", "--hops", str(HOPS)]) == 0
    report = json.loads(target.read_text())
    assert sorted(os.listdir(tmp_path)) == ["bench_growth.png", "bench_peers.png", "docs.md", "f.json"]
    assert set(report["transformer"]["ours"]) == {*PARTS, "total"}
    assert report["transformer"]["theirs"]["total"]["rounds"] == 1
    assert report["transformer"]["times_less"]["median"] > 0
    assert report["planner"]["codes"] == 40
    assert report["autoencoder"]["frames"] == {"ours": 24, "theirs": 25}
    assert report["growth"]["hops"] == HOPS
    assert 0 < report["shares"]["planned_code"]["gb_s"] < 1000
    assert (report["kernels"], report["transformer"]["bar"]) == (None, None)
    assert report["compiled"]["planned codes"] == {"obstacle": "no compiler"}
    assert len(report["checks"]) == 4
    assert tables.tables(report) in docs.read_text()
    output = capsys.readouterr().out
    assert output.startswith("right  diffusers' transformer with our weights")
    assert tables.tables(report) in output


def test_what_takes_longest_can_be_left_out(tiny: None, tmp_path: Path) -> None:
    """Neither figures, tables nor pictures have it, and a long video that is not made has no least length."""
    words = ["--json", str(tmp_path / "f.json"), "--plots", str(tmp_path), "--preset", "tiny", "--device", "cpu"]
    assert bench.main([*words, "--rounds", "1", "--hops", "1", "--without", *bench.LONGEST]) == 0
    report = json.loads((tmp_path / "f.json").read_text())
    assert not report.keys() & set(bench.LONGEST)
    assert sorted(os.listdir(tmp_path)) == ["bench_peers.png", "f.json"]
    assert "as the video grows" not in tables.tables(report)


def test_nothing_is_timed_or_written_if_something_is_wrong(
    tiny: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 1, and the message names what is wrong."""
    monkeypatch.setattr(bench, "checks", lambda model: [Check("a", 0.0, 1.0), Check("b", float("nan"), 1.0)])
    monkeypatch.setattr(bench, "race", lambda *arguments: pytest.fail("it was timed"))
    assert bench.main(["--json", str(tmp_path / "f.json"), "--device", "cpu"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "bench: not measured, because these are wrong: b\n"
    assert "WRONG  b" in captured.out
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--json", "{here}/none/f.json"], "must be a file in a folder that exists"),
        (["--json", "{here}"], "must be a file in a folder that exists"),
        (["--json", "{here}/f.json", "--plots", "{here}/none"], "must be a folder that exists"),
        (["--json", "{here}/f.json", "--docs", "{here}/none.md"], "cannot be read"),
        (["--json", "{here}/f.json", "--preset", "huge"], "no preset 'huge'"),
        (["--json", "{here}/f.json", "--hops", "10"], "10 hops asked for, 55 are the fewest"),
        (["--json", "{here}/f.json", "--rounds", "0"], "0 rounds asked for"),
        (["--json", "{here}/f.json", "--steps", "0"], "0 sampling steps asked for"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status 2, the value and the cure; no model is loaded, and no file is left."""
    monkeypatch.setattr(bench, "subject", lambda *arguments: pytest.fail("a model was loaded"))
    with pytest.raises(SystemExit) as ended:
        bench.main([word.format(here=tmp_path) for word in words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_ratios_are_taken_round_by_round() -> None:
    """A machine that is slow in one round is slow for both: the ratio stays."""
    assert paired([2.0, 20.0, 4.0], [1.0, 10.0, 2.0]) == {"median": 2.0, "middle_half": [2.0, 2.0]}


def test_amounts_are_checked() -> None:
    """A race needs a round."""
    with pytest.raises(ValueError, match="0 rounds asked for"):
        BenchConfig(rounds=0)

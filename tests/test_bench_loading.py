"""The benchmark of loading."""

from __future__ import annotations

import json
from pathlib import Path

import checkpoint
import pytest

from engine.bench import loading
from engine.bench.loading import config_of, figures, folder_bytes, main
from engine.config import preset


def test_sizes_are_met_with_whole_layers() -> None:
    """The files hold no more than asked, tensors in their full shapes; too small a size is refused."""
    config = config_of(4_500_000_000)
    assert folder_bytes(config) <= 4_500_000_000 and config.planner.hidden == preset("landiff").planner.hidden
    assert folder_bytes(preset("landiff")) > 21e9
    with pytest.raises(ValueError, match=r"1 GB are too few: one layer of each network takes 3.67 GB"):
        config_of(1_000_000_000)


def test_shares_are_of_the_same_round() -> None:
    """Rates are in GB/s, and each share compares with the copy of its own round."""
    seconds = {"copy": [1.0, 2.0], "convert": [2.0, 1.0]}
    facts = figures(seconds, {"copy": 10**9, "convert": 10**9})
    assert facts["copy"] == {"gb_s": {"median": 0.75, "least": 0.5, "most": 1.0}}
    assert facts["convert"]["share_of_copy"] == {"median": 1.25, "least": 0.5, "most": 2.0}


def test_the_command_measures_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every rate is in the file with its conditions, the status says whether the bar is reached, nothing is left."""
    monkeypatch.setattr(loading, "config_of", lambda size: checkpoint.TINY)
    monkeypatch.setattr(loading, "BAR", 0.0)
    (tmp_path / "work").mkdir()
    words = ["--json", str(tmp_path / "f.json"), "--rounds", "2", "--folder", str(tmp_path / "work")]
    assert main(words) == 0
    report = json.loads((tmp_path / "f.json").read_text())
    assert report["figures"].keys() == {"copy", "convert", "load published", "load converted"}
    assert report["conditions"]["rounds"] == 2 and report["conditions"]["bytes"]["converted"] > 0
    assert "% of copying" in capsys.readouterr().out
    monkeypatch.setattr(loading, "BAR", 1e9)
    assert main(words) == 1
    assert not list((tmp_path / "work").iterdir())


def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No rounds, too small a size and a folder that is not there end with status 2."""
    for words in (["--rounds", "0"], ["--gigabytes", "0.1"], ["--gigabytes", "4", "--folder", str(tmp_path / "none")]):
        assert main(["--json", str(tmp_path / "f.json"), *words]) == 2
        assert "loading: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

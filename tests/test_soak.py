"""Hours of one video in small: rows, going on after a kill, and an engine that ends."""

import json
import os
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_config, write_weights

from engine.config import PRESETS, preset
from engine.evaluation.soak import Soak, SoakPlan, growth, main
from engine.evaluation.soak_engine import SoakError, run_engine
from engine.live.journal import Beginning, Journal
from engine.semantic.theia import Theia
from engine.wire.ring import RingWriter
from engine.wire.settings import EngineSettings
from engine.wire.state_folder import JOURNAL
from engine.wire.state_memory import StateMemory

PLAN = SoakPlan(row_minutes=0.2, prompt_minutes=0.4, judge_minutes=0.1)
HOURS = 0.01  # 288 frames


def tiny_engine(settings: EngineSettings, ring: RingWriter, control: Connection, memory: StateMemory) -> None:
    """An engine process that knows the tiny preset."""
    PRESETS["tiny"] = tiny_config
    run_engine(settings, ring, control, memory)


def ending_engine(settings: EngineSettings, ring: RingWriter, control: Connection, memory: StateMemory) -> None:
    """One that ends."""
    os._exit(3)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(PRESETS, "tiny", tiny_config)
    write_weights(tmp_path / "weights")
    return tmp_path / "weights"


def soak(folder: Path, plan: SoakPlan = PLAN) -> Soak:
    torch.manual_seed(0)
    theia = Theia(preset("mini").theia).eval()
    return Soak(plan, tiny_config(), theia, folder / "r.state", folder / "r.json")


def settings(folder: Path, weights: Path) -> EngineSettings:
    return EngineSettings("tiny", str(weights), "cpu", state=str(folder / "r.state"), warm_up=False)


def test_rows_are_written_and_a_run_goes_on(tmp_path: Path, weights: Path) -> None:
    """Each row has its figures; another run goes on where the state folder ends, with a journal without a gap."""
    report = soak(tmp_path).run(HOURS / 2, settings(tmp_path, weights), tiny_engine)
    assert json.loads((tmp_path / "r.json").read_text()) == report
    (row,) = report["rows"]
    assert row["video_hours"] >= 0.2 / 60 and row["run"] == 0 and row["wrong_frames"] == 0 and row["no_journal"] is None
    assert 10 < row["rss_mb"] <= row["rss_most_mb"] and row["descriptors"] > 5
    assert 0 < row["journal_bytes"] < row["folder_bytes"]
    assert row["words"]["n"] >= 4 and row["sharpness"] > 0 and len(row["rgb"]) == 3
    report = soak(tmp_path).run(HOURS, settings(tmp_path, weights), tiny_engine)
    assert [one["run"] for one in report["rows"]] == [0, 1, 1]
    assert report["rows"][-1]["wrong_frames"] == 0
    read = Journal(tmp_path / "r.state" / "soak" / JOURNAL)
    assert read.damage is None
    # Not from nothing, which would be another video.
    assert [one.snapshot is not None for one in read.records if isinstance(one, Beginning)] == [False, True]
    with pytest.raises(ValueError, match="is of another plan"):
        soak(tmp_path, SoakPlan())


def test_an_engine_that_ends_is_told(tmp_path: Path, weights: Path) -> None:
    """With its status, or with the words of what is wrong."""
    with pytest.raises(SoakError, match="the engine process ended with status 3"):
        soak(tmp_path).run(HOURS, settings(tmp_path, weights), ending_engine)
    with pytest.raises(SoakError, match="nowhere"):
        soak(tmp_path).run(HOURS, settings(tmp_path, tmp_path / "nowhere"), tiny_engine)


def rows(*sizes: float) -> list[dict[str, Any]]:
    return [{"video_hours": float(hour), "rss_mb": size} for hour, size in enumerate(sizes, 1)]


def test_every_hour_has_the_same_prompts() -> None:
    """Which are different ones."""
    hours = [[PLAN.prompt(6 * hour + number) for number in range(6)] for hour in range(3)]
    assert hours[0] == hours[1] == hours[2] and len(set(hours[0])) == 6


def test_growth_is_a_slope() -> None:
    """Of memory from the first hour on, with its standard error; of few rows it is not told."""
    assert growth(rows(9.0, 10.0, 12.0, 14.0)) == {"mb_an_hour": 2.0, "standard_error": 0.0, "grew_mb": 4.0}
    figures = growth(rows(90.0, 10.0, 10.5, 10.0, 10.5))
    assert abs(figures["mb_an_hour"]) < 2 * figures["standard_error"]
    assert growth([]) == growth(rows(1.0, 2.0)) == {}


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    """Lengths that are none, and a report that is none."""
    for options in (["--hours", "0"], ["--hours", "nan"], ["--hours", "1", "--row-minutes", "-1"]):
        with pytest.raises(SystemExit) as caught:
            main([*options, "--json", str(tmp_path / "r.json")])
        assert caught.value.code == 2
    (tmp_path / "r.json").write_text("{}")
    with pytest.raises(ValueError, match="is no report of a soak"):
        main(["--hours", "1", "--json", str(tmp_path / "r.json")])

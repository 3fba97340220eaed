"""This tree beside another commit, and plans token for token."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import tiny_model

from engine.bench import against, turns
from engine.evaluation import plans
from engine.evaluation.plans import compare

ROOT = Path(__file__).parents[1]


def test_a_commits_files_are_there_and_go() -> None:
    """Checked out as they were, and no worktree is left behind."""
    with against.worktree("HEAD") as tree:
        assert (tree / "engine/bench/turns.py").is_file() and tree != ROOT
    assert not tree.exists()
    listed = subprocess.check_output(["git", "worktree", "list"], cwd=ROOT, text=True)
    assert str(tree) not in listed


def test_an_unknown_commit_is_refused() -> None:
    """By its name, in one line."""
    with (
        pytest.raises(ValueError, match="commit 'no-such-commit' cannot be checked out"),
        against.worktree("no-such-commit"),
    ):
        pass


def test_an_engine_that_cannot_be_driven_is_named() -> None:
    """Its process ends, and its folder is in the error."""
    with pytest.raises(ValueError, match=f"the engine of {ROOT} ended"), against.turns_of(ROOT, "huge", 1) as ask:
        ask("")


def test_turns_are_real_work_of_the_tree() -> None:
    """A process that loads the shipped weights answers how long a plan and a chunk took."""
    with against.turns_of(ROOT, "mini", 1) as ask:
        assert ask("") == {"tokens": 128}
        assert ask("plan")["plan"] > 0 and ask("chunk")["chunk"] > 0


def test_a_program_of_turns_ends_when_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each word, none for what comes after the end."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("plan\nchunk\nstop\nplan\n"))
    turns.main("mini", "1")
    tokens, plan, chunk = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert tokens == {"tokens": 128} and plan["plan"] > 0 and chunk["chunk"] > 0


def test_this_tree_beside_its_last_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every figure of both, with start and memory of the server."""
    monkeypatch.setattr(against, "WARM_UPS", 0)
    monkeypatch.setattr(against, "STARTS", 1)
    report = against.against("HEAD", "mini", 1, 1)
    json.dumps(report, allow_nan=False)
    assert report["tokens_of_a_plan"] == 128
    for figure in ("plan_ms", "chunk_ms", "ready_s", "engine_mb"):
        assert all(report[figure][name]["median"] > 0 for name in ("now", "then", "times_less")), figure


def test_starts_are_not_measured_where_a_processor_stands_in_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """An older server would emulate bfloat16; plans and chunks are compared, and the report says what is missing."""
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    report = against.against("HEAD", "mini", steps=1, rounds=1)
    assert report["chunk_ms"]["times_less"]["median"] > 0 and "ready_s" not in report
    assert report["not_measured"].startswith("ready_s, engine_mb: ATEN_CPU_CAPABILITY=avx2 is set")


def test_ratios_are_taken_turn_by_turn() -> None:
    """A machine that is slow in one round is slow for both."""
    compared = against._compared({"now": [1.0, 10.0, 2.0], "then": [3.0, 30.0, 6.0]})
    assert compared["times_less"] == {"median": 3.0, "middle_half": [3.0, 3.0]}


def test_plans_are_compared_token_for_token() -> None:
    """Of captions that the tiny model reads; one token a pass in the same shapes gives the same, in more passes."""
    report = compare(tiny_model(), 2, 8)
    json.dumps(report)
    assert report["tokens"] == 2 * 2 * 42 and report["differ"]["one_a_pass"] == 0
    a_pass = report["tokens_a_pass"]
    assert a_pass["one_place_a_pass"] < a_pass["one_a_pass"] < a_pass["several_a_pass"]


def test_wrong_numbers_of_captions_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is loaded."""
    with pytest.raises(SystemExit) as exit_:
        plans.main(["--captions", "0"])
    assert exit_.value.code == 2 and "0 captions asked for" in capsys.readouterr().err

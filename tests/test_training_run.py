"""Training runs: budget, resuming, checkpoints."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from engine.training import run
from engine.training.run import Run, RunConfig, TrainingStage, learning_rate


class Line(TrainingStage):
    """A stage that fits y = 3 x."""

    def __init__(self, width: int = 1) -> None:
        torch.manual_seed(0)
        super().__init__(Path(), nn.Linear(width, 1))
        self.exported = 0

    def loss(
        self, step: int, rng: random.Random, batch: int, held_out: bool = False
    ) -> tuple[Tensor, dict[str, float]]:
        x = torch.linspace(-1, 1, batch)[:, None].expand(-1, self.module.weight.shape[1])
        figures = {"slope": self.module.weight.sum().item(), "drawn": rng.random()}
        return (self.module(x) - 3 * x[:, :1]).square().mean(), figures

    def export(self) -> None:
        self.exported += 1


def config(folder: Path, seconds: float) -> RunConfig:
    return RunConfig(folder=folder, minutes=seconds / 60, batch=8, lr=0.05)


def resumed(folder: Path) -> Run:
    """A run that goes on from a folder's checkpoint."""
    return Run(Line(), config(folder, 600))


def test_a_run_learns_and_leaves_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its budget a run has fitted, exported and logged. Each step's random numbers are its own."""
    monkeypatch.setattr(run, "AVERAGE_DECAY", 0.9)
    stage = Line()
    assert Run(stage, config(tmp_path, 1.5)).train()["slope"] == pytest.approx(3, abs=0.3)
    assert stage.exported == 1
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"train", "evaluate"}
    assert len({line["drawn"] for line in lines}) == len(lines)


def test_a_finished_run_does_not_start_again(tmp_path: Path) -> None:
    """Resuming with no budget left only evaluates what was learned."""
    Run(Line(), config(tmp_path, 0.5)).train()
    stage = Line()
    before = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"]
    Run(stage, config(tmp_path, 0.5)).train()
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == before
    assert float(stage.module.weight.detach()) != pytest.approx(float(Line().module.weight.detach()))


def start(program: str, folder: Path) -> subprocess.Popen[str]:
    """Another process that runs a program with `run`, `Line` and a `made` run in a folder."""
    head = f"""
import resource, signal, sys, time
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
from pathlib import Path
from engine.training import run
from test_training_run import Line, config
made = run.Run(Line(), config(Path({str(folder)!r}), 600))
"""
    return subprocess.Popen([sys.executable, "-c", head + textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)


def test_a_killed_run_resumes(tmp_path: Path) -> None:
    """kill -9 in the middle of training loses nothing older than the last checkpoint."""
    process = start("run.CHECKPOINT_EVERY_S = 0.05; made.train()", tmp_path)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "checkpoint.pt").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert resumed(tmp_path).step == saved["step"] > 0
    assert resumed(tmp_path).spent_s == saved["spent_s"]


HALF_WRITTEN = """
    made.step = 7
    made.save()
    def half(content, path):
        path.write_bytes(b"half of it")
        print("half", flush=True)
        time.sleep(600)
    run.torch.save = half
    made.step = 8
    made.save()
"""
FULL_DISK = """
    made.step = 7
    made.save()
    # No file may grow beyond this, which fails like a full disk.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
    try:
        made.save()
    except OSError as error:
        print(error, flush=True)
"""


@pytest.mark.parametrize(
    ("program", "said"),
    [(HALF_WRITTEN, "half"), (FULL_DISK, "checkpoint.pt cannot be written, the one before is kept")],
)
def test_half_a_checkpoint_leaves_the_one_before(tmp_path: Path, program: str, said: str) -> None:
    """kill -9 with half of the new checkpoint on the disk, or a disk that is full: the old one is whole."""
    process = start(program, tmp_path)
    try:
        assert process.stdout is not None and said in process.stdout.readline()
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert resumed(tmp_path).step == 7


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    """Cut short or no checkpoint at all: the error says which file and what to do."""
    made = Run(Line(), config(tmp_path, 600))
    made.save()
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"checkpoint.pt is damaged .*: delete it"):
            resumed(tmp_path)


def test_a_checkpoint_of_another_run_or_model_is_refused(tmp_path: Path) -> None:
    """The error names the file and what was trained."""
    first = dataclasses.replace(config(tmp_path, 600), signature="renderer of mini")
    Run(Line(), first).save()
    other = dataclasses.replace(first, signature="distill of mini, 2 steps")
    with pytest.raises(ValueError, match="is of another run, 'renderer of mini' and not 'distill of mini, 2 steps'"):
        Run(Line(), other)
    with pytest.raises(ValueError, match="checkpoint.pt is of another model"):
        Run(Line(width=2), first)
    Run(Line(), first)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    """The error says what to do."""
    stage = Line()
    nn.init.constant_(stage.module.weight, float("nan"))
    with pytest.raises(FloatingPointError, match="lower --lr"):
        Run(stage, config(tmp_path, 1)).train()


def test_the_average_can_be_swapped_in_and_out(tmp_path: Path) -> None:
    """Weights and averages are exchanged, and twice is nothing."""
    stage = Line()
    made, start = Run(stage, config(tmp_path, 1)), stage.module.weight.detach().clone()
    nn.init.constant_(stage.module.weight, 7.0)
    made.swap_average()
    assert torch.equal(stage.module.weight, start)
    made.swap_average()
    assert stage.module.weight.item() == 7.0


def test_the_learning_rate_warms_up_and_falls() -> None:
    """It starts low, stays at its peak and ends at FINAL_LR."""
    assert learning_rate(0, 0.0) < 0.02
    assert learning_rate(1000, 0.3) == 1.0
    assert learning_rate(1000, 1.0) == pytest.approx(run.FINAL_LR)


def test_a_budget_must_be_positive(tmp_path: Path) -> None:
    """Zero minutes are refused by name."""
    with pytest.raises(ValueError, match="minutes must be positive, got 0"):
        config(tmp_path, 0)

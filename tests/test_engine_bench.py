"""The engine's benchmark: its command, conditions and tables."""

import json

import numpy as np
import pytest
import torch
from tiny import tiny_config, tiny_model

from engine.bench import __main__ as command
from engine.bench import peers, rates
from engine.bench.contenders import STAGES
from engine.bench.report import conditions, tables
from engine.live.generator import Generator


def test_report_and_tables_hold_every_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proofs, peers, stages and rates come from real turns of a tiny model, are JSON, and stand in the tables."""
    monkeypatch.setattr(rates, "COPY_BYTES", {"cpu": 2**16})
    monkeypatch.setattr(rates, "MATRIX_ROWS", {"cpu": 32})
    model = tiny_model()
    report = {"conditions": conditions("python -m engine.bench --json f", "random", model)} | command.bench(model, 1)
    json.dumps(report, allow_nan=False)
    assert len(report["proofs"]) == 2
    for peer in report["peers"].values():
        assert peer["times_better"]["median"] == pytest.approx(peer["theirs_ms"]["median"] / peer["ours_ms"]["median"])
    assert set(report["stages_ms"]) == set(STAGES)
    assert all(rate > 0 for rate in report["rates"].values())
    assert "kernels" not in report
    assert report["neighbour"]["times_idle"]["median"] > 0 and len(report["neighbour"]["threads"]) == 4
    facts = report["conditions"]
    assert (facts["command"], facts["preset"], facts["steps"]) == ("python -m engine.bench --json f", "tiny", 2)
    assert facts["versions"]["torch"] == torch.__version__
    text = tables(report)
    assert f"commit {facts['commit']}" in text
    assert all(f"| {stage} |" in text for stage in STAGES)
    assert "| denoising_step_share |" in text and "| times_idle |" in text


def test_nothing_is_timed_if_something_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is not a number is wrong, and named."""
    monkeypatch.setattr(peers, "_llama_error", lambda model: float("nan"))
    monkeypatch.setattr(command, "race", lambda *arguments: pytest.fail("it was timed"))
    with pytest.raises(ArithmeticError, match="these differ: transformers' LLaMA with our weights nan$"):
        command.bench(tiny_model(), 1)


def test_ratios_are_taken_turn_by_turn() -> None:
    """A machine that is slow in one round is slow for both: the ratio stays."""
    compared = command._compare(np.array([1.0, 10.0, 2.0]), np.array([2.0, 20.0, 4.0]))
    assert compared["times_better"] == {"median": 2.0, "middle_half": [2.0, 2.0]}
    assert (compared["ours_ms"]["median"], compared["theirs_ms"]["median"]) == (2.0, 4.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--json", "/nowhere/f.json"], "the folder /nowhere does not exist"),
        (["--json", "x" * 256 + ".json"], "too long"),
        (["--preset", "huge"], "no preset 'huge'"),
        (["--rounds", "0"], "0 rounds asked for"),
    ],
)
def test_wrong_arguments_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2 before anything is loaded, the value and the cure."""
    try:
        code = command.main(words)
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2 and message in capsys.readouterr().err


def test_a_preset_without_weights_gets_random_ones() -> None:
    """Matrix products in the dtype asked for, the same weights every time, and chunks that run."""
    models = [command.randomize(tiny_config(), torch.device("cpu"), torch.bfloat16) for _ in range(2)]
    weights = [model.renderer.base.blocks[0].qkv.weight for model in models]
    assert weights[0].dtype == torch.bfloat16
    assert torch.equal(*weights)
    assert models[0].planner.head.weight.dtype == torch.float32
    generator = Generator(models[0])
    channel = generator.open("a prompt", 0)
    while generator.needs_plan(channel):
        generator.plan(channel)
    assert [unit.stage for unit in generator.chunk(channel).units][-1] == "vae"

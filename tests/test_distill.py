"""A renderer with fewer steps: the student's arithmetic, its stage and its folder."""

import dataclasses
import json
import random
from pathlib import Path

import pytest
import torch
from test_training_stages import improves, narrow
from tiny import randomize

from engine.loading.model import COMPONENTS
from engine.loading.weights import load_component, save_component, write_description
from engine.perceptual.mini.vae import TinyVAE
from engine.perceptual.renderer import Renderer
from engine.perceptual.schedule import FlowSchedule
from engine.perceptual.solver import FlowSolver, SolverState
from engine.semantic.planner import Planner
from engine.semantic.theia import Theia
from engine.semantic.tokenizer import SemanticTokenizer
from engine.text.small_t5 import SmallT5
from engine.training import __main__ as command
from engine.training import compare
from engine.training.latent_pool import through_tokens
from engine.training.stages import autoencoder
from engine.training.stages import renderer as render
from engine.training.stages.distill import DistillConfig, DistillStage, aim, move
from engine.training.world.vocabulary import make_tokenizer


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder, "PCA_CLIPS", 3)
    monkeypatch.setattr(render, "START_CLIPS", 2)
    monkeypatch.setattr(render, "HELD_OUT", 1)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A complete folder of the narrow preset with random weights."""
    config, folder = narrow(), tmp_path / "weights"
    torch.manual_seed(0)
    vae = TinyVAE(config.vae)
    autoencoder.fit_linear_map(vae, 0)
    modules = {
        "text": SmallT5(config.text, make_tokenizer(folder)),
        "tokenizer": SemanticTokenizer(config.tokenizer),
        "planner": Planner(config.planner),
        "renderer": Renderer(config.renderer),
        "vae": vae,
        "theia": Theia(config.theia),
    }
    assert set(COMPONENTS) < set(modules)
    for name, module in modules.items():
        save_component(folder, name, module)
    write_description(folder, "mini", "a test")
    return folder


def stage(weights: Path, distill: DistillConfig) -> DistillStage:
    config = narrow()
    vae = TinyVAE(config.vae)
    load_component(weights, "vae", vae)
    text = SmallT5(config.text, make_tokenizer(weights)).eval()
    tokenizer = SemanticTokenizer(config.tokenizer).eval()
    return DistillStage(
        config, distill, vae, text.encode, through_tokens(tokenizer), 0, "cpu", weights, weights.parent / "student"
    )


def test_steps_of_the_flow_agree_with_the_solver() -> None:
    """`move` is the solver's step, and `aim` finds the estimate that leads to a place."""
    schedule = FlowSchedule()
    solver, x, clean = FlowSolver(schedule, 3), torch.randn(2, 2, 1, 4, 4), torch.randn(2, 2, 1, 4, 4)
    times = schedule.times(3).float()
    for index in range(3):
        start, end = times[index].expand(2), times[index + 1].expand(2)
        there = move(x, clean, start, end)
        torch.testing.assert_close(there, solver.step(index, SolverState(x), clean).x)
        torch.testing.assert_close(aim(x, there, start, end), clean, atol=1e-5, rtol=1e-5)


def test_a_student_that_predicts_its_aim_ends_where_the_teacher_does(weights: Path) -> None:
    """Targets of both halves of the way, put together, are the teacher's own run of eight steps."""
    made = stage(weights, DistillConfig(steps=2, teacher_steps=4))
    pool = [made.pool.make(random.Random(n)) for n in range(2)]
    windows = [render.cut(clip, 0, 13) for clip in pool]
    batch = made.batch(windows, True, random.Random(0))
    x = batch.noise
    for start, end in zip(made.times, made.times[1:], strict=False):
        rows = start.expand(2), end.expand(2)
        x = move(x, aim(x, made.taught(batch, x, *rows), *rows), *rows)
    solver, state = FlowSolver(FlowSchedule(), 8), SolverState(batch.noise)
    with torch.no_grad():
        estimate = made.estimator(batch)
        for index in range(8):
            clean = estimate(state.x, torch.full((2,), solver.time(index)))
            state = solver.step(index, state, clean)
    torch.testing.assert_close(x, state.x, atol=1e-4, rtol=1e-4)


def test_the_student_learns_and_its_folder_is_complete(weights: Path) -> None:
    """The loss falls, the teacher stays, and the folder has every component of the teacher's."""
    made = stage(weights, DistillConfig(steps=1, teacher_steps=2, guidance=2.0))
    before = {name: value.clone() for name, value in made.teacher.state_dict().items()}
    assert improves(made, 12, 2e-3)
    assert all(torch.equal(value, before[name]) for name, value in made.teacher.state_dict().items())
    made.export()
    assert {path.name for path in made.student.iterdir()} == {path.name for path in weights.iterdir()}
    assert (made.student / "vae.safetensors").read_bytes() == (weights / "vae.safetensors").read_bytes()
    assert (made.student / "renderer.safetensors").read_bytes() != (weights / "renderer.safetensors").read_bytes()


def test_guidance_is_folded_in(weights: Path) -> None:
    """A guided teacher goes elsewhere, and as far as the text matters."""
    plain, guided = (stage(weights, DistillConfig(1, 2, guidance)) for guidance in (1.0, 3.0))
    clip = plain.pool.make(random.Random(0))
    batch = plain.batch([render.cut(clip, 0, 13)], True, random.Random(3))
    assert batch.text.abs().sum() > 0
    time = torch.zeros(1)
    for made in (plain, guided):
        randomize("renderer", made.teacher)
    with torch.no_grad():
        with_text = plain.estimator(batch)(batch.noise, time)
        without = plain.estimator(dataclasses.replace(batch, text=torch.zeros_like(batch.text)))(batch.noise, time)
        far = guided.estimator(batch)(batch.noise, time)
    assert (with_text - without).abs().mean() > 1e-4
    torch.testing.assert_close(far, without + 3.0 * (with_text - without), atol=1e-4, rtol=1e-4)


def test_the_teacher_is_not_overwritten(weights: Path) -> None:
    """A student's folder that is the teacher's is refused."""
    config = narrow()
    with pytest.raises(ValueError, match="would overwrite its teacher"):
        DistillStage(
            config, DistillConfig(), TinyVAE(config.vae), lambda words: torch.zeros(1), lambda f, c, r: f, 0, "cpu",
            weights, weights,
        )  # fmt: skip


@pytest.mark.parametrize(("steps", "teacher"), [(0, 4), (2, 1)])
def test_numbers_of_steps_make_sense(steps: int, teacher: int) -> None:
    """A student takes a step, a teacher more."""
    with pytest.raises(ValueError, match="must be at least 1"):
        DistillConfig(steps, teacher)


def test_the_command_distills_resumes_and_compares(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`distill` leaves a student; with other steps its checkpoint is refused; `compare` measures both folders."""
    monkeypatch.setattr(command, "preset", lambda name: narrow())
    monkeypatch.setattr(compare, "preset", lambda name: narrow())
    monkeypatch.setattr(compare, "REFERENCE_STEPS", 2)
    student = tmp_path / "student"
    arguments = ["distill", "--weights", str(weights), "--student", str(student), "--folder", str(tmp_path / "run")]
    arguments += ["--minutes", "0.02", "--batch", "2", "--teacher-steps", "2"]
    assert command.main([*arguments, "--steps", "1"]) == 0
    assert command.main([*arguments, "--steps", "2"]) == 2
    assert "is of another run" in caplog.text
    out = tmp_path / "steps.json"
    words = ["compare", str(weights), str(student), "--json", str(out), "--steps", "1", "2", "--captions", "2"]
    assert command.main(words) == 0
    points = json.loads(out.read_text())
    assert [(Path(point["weights"]).name, point["steps"]) for point in points] == [
        ("weights", 1), ("weights", 2), ("student", 1), ("student", 2)
    ]  # fmt: skip
    assert points[1]["distance"]["mean"] == 0.0 < points[0]["distance"]["mean"]
    assert out.with_suffix(".svg").read_text().count("<polyline") == 2
    assert command.main(["compare", str(tmp_path / "none"), "--json", str(out)]) == 2

"""A renderer with fewer steps: the student's arithmetic and its folder."""

import dataclasses
import random

import torch
from test_training_stages import complete as complete
from test_training_stages import improves, small_pools
from test_training_stages import setup as setup

from engine.loading.weights import component_files, load_component, save_component
from engine.perceptual.schedule import FlowSchedule
from engine.perceptual.solver import FlowSolver, SolverState
from engine.training.setup import StageSetup
from engine.training.stages.distill import DistillStage, aim, move


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


def test_a_student_that_predicts_its_aim_ends_where_the_teacher_does(setup: StageSetup) -> None:
    """Targets of both halves of the way, put together, are the teacher's own run of eight steps."""
    made = DistillStage(dataclasses.replace(setup, steps=2, teacher_steps=4))
    batch = made.batch([made.pool.make(random.Random(seed)).cut(0, 13) for seed in range(2)], 7)
    x = batch.noise
    for start, end in zip(made.times, made.times[1:], strict=False):
        rows = start.expand(2), end.expand(2)
        x = move(x, aim(x, made.taught(batch, x, *rows), *rows), *rows)
    solver, state = FlowSolver(FlowSchedule(), 8), SolverState(batch.noise)
    with torch.no_grad():
        cache = batch.read(made.teacher)
        for index in range(8):
            clean = made.teacher.denoise(state.x, torch.full((2,), solver.time(index)), cache)
            state = solver.step(index, state, clean)
    torch.testing.assert_close(x, state.x, atol=1e-4, rtol=1e-4)


def test_the_teacher_stays_and_the_students_folder_is_complete(setup: StageSetup) -> None:
    """The folder has every component of the teacher's, and the renderer, whose files are fewer, is its own alone."""
    made = DistillStage(setup)
    small_pools(made)
    before = {name: value.clone() for name, value in made.teacher.state_dict().items()}
    improves(made, 3, 2e-3)
    assert all(torch.equal(value, before[name]) for name, value in made.teacher.state_dict().items())
    save_component(setup.weights, "renderer", made.teacher, file_bytes=1 << 16)
    made.export()
    weights, student = setup.weights, made.student
    teachers = {path.name for path in component_files(weights, "renderer")}
    assert len(teachers) > 1
    others = {path.name for path in weights.iterdir()} - teachers
    assert {path.name for path in student.iterdir()} == others | {"renderer.safetensors"}
    assert (student / "vae.safetensors").read_bytes() == (weights / "vae.safetensors").read_bytes()
    load_component(student, "renderer", made.teacher)
    assert any(not torch.equal(value, before[name]) for name, value in made.teacher.state_dict().items())

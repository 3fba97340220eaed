"""The release's own video, at tiny size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from checkpoint import PROMPT, TINY
from tiny import tiny_model

from engine.loading.model import Model, load
from engine.perceptual.frames import to_host
from engine.perceptual.solver import DiffusionSolver, guide
from engine.published.release import generate_release, release_units, sample_plan
from engine.semantic.sampling import SamplingConfig

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(published_folder: Path) -> Model:
    return load(TINY, published_folder, CPU, torch.float32)


def generate_frames(model: Model, seed: int) -> npt.NDArray[np.uint8]:
    return np.concatenate([batch.i420 for batch in generate_release(model, PROMPT, seed, TINY.steps)])


@torch.inference_mode()
def recipe(model: Model, seed: int) -> npt.NDArray[np.uint8]:
    """The video written out: every draw of the release in its order (REFERENCE 2.6, 3.7, 3.8)."""
    text = model.text.embed(PROMPT)
    own = torch.Generator().manual_seed(seed)

    def draw_token(chances: torch.Tensor) -> torch.Tensor:
        return torch.multinomial(chances, 1, generator=own)

    tokens = sample_plan(model.planner, text.planner, 13, 0.1, SamplingConfig(guidance=2.0), draw_token)
    condition = model.renderer.condition(model.tokenizer.decode(tokens))
    solver = DiffusionSolver(TINY.schedule, TINY.steps)
    draws = torch.Generator().manual_seed(seed)
    x, before = torch.randn(1, 13, 4, 4, 8, generator=draws), None
    for index in range(TINY.steps):
        time = torch.full((1,), float(solver.levels.times[index]))
        alpha = solver.levels.snapped[index]
        estimates = []
        for words in (torch.zeros_like(text.renderer), text.renderer):
            velocity = model.renderer.predict(x, time, words, condition)
            estimates.append(alpha * x - (1 - alpha**2).sqrt() * velocity)
        clean = guide(*estimates, float(solver.levels.guidance[index]))
        if index == TINY.steps - 1:
            x = clean
            break
        noise = torch.randn(x.shape, generator=draws)
        if index:
            noise = torch.randn(x.shape, generator=draws)
        keep, move, now, past, scatter = solver.coefficients[index]
        slope = clean if before is None else now * clean - past * before
        x, before = keep * x - move * slope + scatter * noise, clean
    return to_host(model.vae.decode(x, model.vae.new_state()))


def test_draws_follow_the_release(model: Model) -> None:
    """The 49 frames are those of the recipe: planner's own generator, then the global one, of two draws the second."""
    made, expected = generate_frames(model, 42), recipe(model, 42)
    assert made.shape == expected.shape == (49, 24, 32)
    # One batch of two and two of one differ in the last bits, which shows in single pixels.
    assert np.abs(made.astype(int) - expected).mean() < 0.05
    assert np.abs(generate_frames(model, 43).astype(int) - expected).mean() > 5


def test_same_seed_same_video(model: Model) -> None:
    """What was drawn before does not matter, also for seed 0, whose planner draws from the global generator."""
    for seed in (0, 42):
        once = generate_frames(model, seed)
        torch.randn(7)
        assert np.array_equal(generate_frames(model, seed), once)


def test_progress_counts_every_unit(model: Model) -> None:
    """Positions of the plan, steps and slices are told one by one; frames come in slices, numbered in order."""
    told: list[int] = []
    batches = list(generate_release(model, PROMPT, 1, 4, lambda: told.append(1)))
    assert len(told) == release_units(TINY, 4) == TINY.planner.plan_len(13) + 4 + 6
    assert [(batch.index, batch.frames) for batch in batches] == [(0, 9), (9, 8), (17, 8), (25, 8), (33, 8), (41, 8)]


def test_other_presets_are_refused() -> None:
    """A preset with another sampler has no such video."""
    with pytest.raises(ValueError, match="preset 'tiny' is not sampled so"):
        next(generate_release(tiny_model(), PROMPT, 1, 2))

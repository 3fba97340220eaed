"""One video as the release makes it: a single window, drawn from running generators in its order (FACTS 0, 2.6, 3.8).

For comparing with videos of the authors' code. Endless videos are made by `engine.live.generator`.
Shapes: `T` latent and semantic frames of a window, `C` latent channels, `H` x `W` latent size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.loading.model import Model
from engine.perceptual.cogvideox.vae import slice_lengths
from engine.perceptual.frames import to_host
from engine.perceptual.schedule import DiffusionSchedule
from engine.perceptual.solver import DiffusionSolver, guide, sample_reference
from engine.semantic.sampling import generate_reference
from engine.wire.frames import FrameChunk, TextEmbedding


def check_release(config: EngineConfig) -> None:
    """Raises ValueError for a preset that the release has no sampler for."""
    if not isinstance(config.schedule, DiffusionSchedule) or config.motion_score is None:
        raise ValueError(f"--reference is for the published model: preset {config.name!r} is not sampled so")


def release_units(config: EngineConfig, steps: int) -> int:
    """How often `film_release` tells its progress."""
    frames = config.renderer.dit.frames
    return config.planner.code_len(frames) + steps + len(slice_lengths(frames, started=False))


def film_release(
    model: Model, prompt: str, seed: int, steps: int, progress: Callable[[], object] = lambda: None
) -> Iterator[FrameChunk]:
    """The release's 49 frames, slice by slice.

    Args:
        seed: of the planner's generator and of the global ones, which are set twice; 0 leaves the planner to the
            global one, as there.
        steps: of the sampler; 50 in the release.
        progress: called `release_units` times.

    Raises:
        ValueError: if the preset is not the published kind.
    """
    check_release(model.config)
    torch.manual_seed(seed)
    with model.computing():
        text = model.text.embed(prompt)
        features = _features(model, text, seed, progress)
    # Set again right before the renderer's text is encoded, which draws nothing.
    torch.manual_seed(seed)
    with model.computing():
        latents = _latents(model, text, features, steps, progress)
    state, index = model.vae.new_state(), 0
    for part in latents.split(slice_lengths(latents.shape[1], started=False), dim=1):
        with model.computing():
            i420 = to_host(model.vae.decode(part, state))
        progress()
        yield FrameChunk(index, 0, i420, time.monotonic())
        index += len(i420)


def _features(model: Model, text: TextEmbedding, seed: int, progress: Callable[[], object]) -> Tensor:
    """[1, T, D, h, w] float32 of a plan drawn position by position."""
    config = model.config
    assert config.motion_score is not None, "`check_release` has passed"
    generator = torch.Generator(model.device).manual_seed(seed) if seed else None
    frames = config.renderer.dit.frames
    plan = generate_reference(
        model.planner, text.planner, frames, config.motion_score, config.sampling, generator, progress
    )
    return model.tokenizer.decode(plan.codes, frames).float()


def _latents(model: Model, text: TextEmbedding, features: Tensor, steps: int, progress: Callable[[], object]) -> Tensor:
    """[1, T, C, H, W] float32 by the published sampler, from the global generator."""
    dit, renderer = model.config.renderer.dit, model.renderer
    assert isinstance(model.config.schedule, DiffusionSchedule), "`check_release` has passed"
    solver = DiffusionSolver(model.config.schedule, steps)
    condition = renderer.condition(features)
    both = torch.cat([torch.zeros_like(text.renderer), text.renderer])

    def estimate(index: int, x: Tensor) -> Tensor:
        pair = torch.cat([x, x])
        output = renderer.predict(pair, torch.full((2,), solver.time(index), device=x.device), both, condition)
        without, with_text = solver.clean(index, pair, output).chunk(2)
        progress()
        return guide(without, with_text, solver.guidance(index))

    shape = (1, dit.frames, dit.channels, dit.height, dit.width)
    return sample_reference(solver, torch.randn(shape, device=model.device), estimate)

"""One video as the release makes it: one window, random draws in its order (REFERENCE 0.1, 2.6, 3.8, 6.1).

For comparing with videos of the authors' code. Endless videos are made by `engine.live.generator`, whose noise is keyed
to places in the video. Shapes: `V` vocabulary, `L` text tokens, `K` text width, `T` latent frames, `P` given ones, `C`
channels, `H` x `W` latent size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.loading.model import Model
from engine.perceptual.base import slice_lengths
from engine.perceptual.frames import to_host
from engine.perceptual.renderer import DiTRenderer
from engine.perceptual.schedule import DiffusionSchedule
from engine.perceptual.solver import DiffusionSolver, SolverState, guide
from engine.runtime.kv_cache import KVCache
from engine.semantic.planner import Planner
from engine.semantic.sampling import SamplingConfig, filtered_logits, guided_logits
from engine.wire.frames import FrameBatch

Draw = Callable[[Tensor], Tensor]


def check_release(config: EngineConfig) -> tuple[DiffusionSchedule, float]:
    """Schedule and motion score of the published model; ValueError for a preset that the release has no sampler for."""
    if not isinstance(config.schedule, DiffusionSchedule) or config.motion_score is None:
        raise ValueError(f"--reference is for the published model: preset {config.name!r} is not sampled so")
    return config.schedule, config.motion_score


def release_units(config: EngineConfig, steps: int) -> int:
    """Number of progress reports of `generate_release`."""
    frames = config.renderer.dit.frames
    return config.planner.plan_len(frames) + steps + len(slice_lengths(frames, started=False))


def generate_release(
    model: Model, prompt: str, seed: int, steps: int, progress: Callable[[], object] = lambda: None
) -> Iterator[FrameBatch]:
    """The release's 49 frames, slice by slice.

    Args:
        seed: of the planner's generator and of the global ones, which are set twice; 0 leaves the planner to the
            global one, as there.
        steps: of the sampler; 50 in the release.
        progress: called `release_units` times.

    Raises:
        ValueError: if the preset is not the published kind.
    """
    config = model.config
    schedule, motion = check_release(config)
    assert isinstance(model.renderer, DiTRenderer), "the schedule is that of the published renderer"
    dit, device = config.renderer.dit, model.device
    torch.manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed) if seed else None

    def draw_token(chances: Tensor) -> Tensor:
        progress()
        return torch.multinomial(chances, 1, generator=generator)

    with model.computing():
        text = model.text.embed(prompt)
        tokens = sample_plan(model.planner, text.planner, dit.frames, motion, config.sampling, draw_token)
        condition = model.renderer.condition(model.tokenizer.decode(tokens, dit.frames).float())
    # Set again right before the renderer's text is encoded, which draws nothing.
    torch.manual_seed(seed)
    solver = DiffusionSolver(schedule, steps)
    noise = torch.randn(1, dit.frames, dit.channels, dit.height, dit.width, device=device)
    with model.computing():
        latents = sample_latents(
            model.renderer, solver, noise, text.renderer, condition, torch.randn_like, lambda x, clean: progress()
        )
    state, index = model.vae.new_state(), 0
    for part in latents.split(model.vae.slice_lengths(dit.frames, started=False), dim=1):
        with model.computing():
            i420 = to_host(model.vae.decode(part, state))
        progress()
        yield FrameBatch(index, 0, i420)
        index += len(i420)


@torch.inference_mode()
def sample_plan(
    planner: Planner, text: Tensor, frames: int, motion: float, sampling: SamplingConfig, draw: Draw
) -> Tensor:
    """Plans one video.

    Every position runs the network and takes a draw, which is discarded where the token is a special one. A special
    token drawn elsewhere is fed back as it is and clamped in the result.

    Args:
        text: [1, L, K], padding removed.
        frames: semantic frames to plan.
        draw: probabilities [V] -> a token [1] int64; called at every position after the first START_OF_IFRAME.

    Returns:
        [1, tokens of all frames] int64, special tokens removed.
    """
    config, rows = planner.config, 1 + sampling.guided
    without_text = torch.arange(rows, device=text.device) > 0
    prefix = planner.prefix(text.expand(rows, -1, -1), float(frames), motion, without_text)
    layout, embedded = (*config.layout(frames), config.eos), prefix.embeddings
    cache = KVCache.allocate(
        config.layers, rows, config.heads, embedded.shape[1] + len(layout), config.head_dim, text.device, embedded.dtype
    )
    first = torch.full((rows, 1), config.iframe_start, device=text.device)
    step = torch.cat([embedded, planner.embed(first, prefix.pooled)], dim=1)
    starts, gops = {config.iframe_start, config.pframe_start}, 1
    position, tokens = 0, []
    for special in layout[1:]:
        allowed = starts & {special}
        # After two I frames the video may end wherever a frame may begin.
        if gops >= 2 and special in starts | {config.eos}:
            allowed.add(config.eos)
        gops += special == config.iframe_start
        logits = planner(step, cache, position)[:, -1]
        position += step.shape[1]
        token = draw(_distribution(guided_logits(logits, sampling)[0], allowed, sampling))
        if special is None:
            tokens.append(token.clamp(max=config.codebook_size - 1))
        else:
            token = torch.full_like(token, special)
        step = planner.embed(token.expand(rows, 1), prefix.pooled)
    return torch.cat(tokens)[None]


def _distribution(logits: Tensor, allowed: set[int], sampling: SamplingConfig) -> Tensor:
    """Guided logits [V] -> probabilities [V], of all tokens where none is named; top-k and top-p apply only there."""
    if not allowed:
        return filtered_logits(logits, sampling).softmax(dim=-1)
    barred = torch.ones_like(logits, dtype=torch.bool)
    barred[list(allowed)] = False
    return (logits / sampling.temperature).masked_fill(barred, float("-inf")).softmax(dim=-1)


def sample_latents(
    renderer: DiTRenderer,
    solver: DiffusionSolver,
    noise: Tensor,
    text: Tensor,
    condition: Tensor,
    draw: Draw,
    watch: Callable[[Tensor, Tensor], object],
    prefix: Tensor | None = None,
    renoise_prefix: bool = False,
) -> Tensor:
    """A whole run, guided.

    Args:
        noise: [1, T, C, H, W] float32, the start of the run.
        text: [1, L, K].
        condition: [1, T, C, H, W].
        draw: a tensor -> noise of its shape.
        watch: called at each step with x and the guided clean latents.
        prefix: [1, P, C, H, W] clean first frames, put back before every step.
        renoise_prefix: put them back at the step's noise level, with a draw of their own before each step.

    Returns:
        [1, T, C, H, W] clean latents.
    """
    state, texts = SolverState(noise), torch.cat([torch.zeros_like(text), text])
    for index in range(solver.steps):
        if prefix is not None:
            given = solver.noised(index, prefix, draw(prefix)) if renoise_prefix else prefix
            state = SolverState(torch.cat([given, state.x[:, prefix.shape[1] :]], dim=1), state.clean)
        pair = torch.cat([state.x, state.x])
        times = torch.full((len(pair),), solver.time(index), device=pair.device)
        output = renderer.predict(pair, times, texts, condition)
        without, with_text = solver.clean(index, pair, output).chunk(2)
        clean = guide(without, with_text, solver.guidance(index))
        watch(state.x, clean)
        draws = [draw(state.x) for _ in range(solver.draws(index))]
        state = solver.step(index, state, clean, draws[-1] if draws else None)
    return state.x if prefix is None else torch.cat([prefix, state.x[:, prefix.shape[1] :]], dim=1)

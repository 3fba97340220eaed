"""Golden cases of the perceptual half: renderer, condition, sampler and autoencoder."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from engine.perceptual.cogvideox.causal import CausalState
from engine.perceptual.cogvideox.vae import slice_lengths
from engine.perceptual.dit import position_table
from engine.perceptual.mini.head import Frames
from engine.perceptual.renderer import Renderer
from engine.perceptual.schedule import DiffusionSchedule
from engine.perceptual.solver import DiffusionSolver, clean_of_velocity, guide, sample_reference
from engine.perceptual.upsampler import Condition, Level
from engine.published import case_models
from engine.published.reference_case import TOLERANCE, Case, relative_error, seeded
from engine.runtime.layers import sinusoid

_RECORDED_TIME = 499.0  # the network time at which the known denoiser records were made; their files do not say it


def check_renderer(case: Case) -> None:
    """Network with control, without it, for fewer frames, and everything on the way there."""
    model = case_models.renderer(case)
    x, times, text = case["x"], case["timesteps"], case["context"]
    condition = model.condition(case["semantic_feature_before_upsample"])
    case.close("semantic_feature", condition)
    case.close("timestep_embedding", sinusoid(times, model.config.dit.hidden))
    case.close("time_embed", model.base.time(sinusoid(times, model.config.dit.hidden)))
    layout = model.base.layout(times, x.shape[1], 0)
    hidden = model.base(model.base.embed(text, x), layout)
    case.close("out_without_control", model.base.output(hidden, layout, Frames(x, None, None)))
    residuals = model.control(model.control.embed(text, x + condition), model.control.layout(times, x.shape[1], 0))
    for index, residual in enumerate(residuals):
        case.close(f"control_layer_{index}", residual)
    for name in list(case.tensors):
        if match := re.fullmatch(r"out_with_control(?:_(?:first)?(\d+)frames?)?", name):
            frames = int(match[1] or x.shape[1])
            case.close(name, model.predict(x[:, :frames], times, text, condition[:, :frames]))
    for trunk in (model.base, model.control):
        case.near("position table", position_table(model.config.dit), trunk.positions)


def check_condition(case: Case) -> None:
    """Codes to features to condition latents, and the pixel shuffle alone."""
    tokenizer, condition = case_models.condition(case)
    features = tokenizer.decode(case["indices"].flatten(0, 1))
    case.close("features", features)
    case.close("upsampled", condition.upsampler(features.flatten(0, 1)).unflatten(0, features.shape[:2]))
    case.close("semantic_feature_from_tokens", condition(features))
    case.close("semantic_feature_from_features", condition(case["rand_features"]))
    if "pixelshuffle_block/in" in case:
        _check_shuffle(case, condition)


def _check_shuffle(case: Case, condition: Condition) -> None:
    block_in, expected = case["pixelshuffle_block/in"], case["pixelshuffle_block/out"]
    layers = [level.upsample for level in condition.upsampler.levels if isinstance(level, Level)]
    # The record does not say which level it is of.
    fitting = [layer for layer in layers if layer is not None and 4 * layer.in_channels == block_in.shape[1]]
    results = [layer(torch.pixel_shuffle(block_in, 2)) for layer in fitting]
    case.near("pixelshuffle_block/out", min(results, key=lambda result: relative_error(result, expected)), expected)


def check_sampler(case: Case) -> None:
    """Whole runs with guidance, given prefixes and re-noised ones, draw by draw; the denoiser alone."""
    model = case_models.renderer(case)
    condition = model.condition(case["semantic_feature_before_upsample"])
    case.close("sigma_table_1000_alpha_cumprod_sqrt", DiffusionSchedule().levels(1000).alphas[:-1].flip(0))
    for run in case.facts["runs"]:
        _check_run(case, model, condition, run)
    if "denoiser/x" in case:
        _check_denoiser(case, model, condition)


def _check_run(case: Case, model: Renderer, condition: Tensor, run: str) -> None:
    facts, name = case.facts["runs"][run], f"{run}/"
    schedule = DiffusionSchedule(guidance_scale=facts["cfg_scale"], guidance_exponent=facts["cfg_exp"])
    solver = DiffusionSolver(schedule, facts["num_steps"])
    context, noise = case["context"], case["init_noise"]
    text = torch.cat([torch.zeros_like(context), context])
    before: list[Tensor] = []
    denoised: list[Tensor] = []

    def estimate(index: int, x: Tensor) -> Tensor:
        time = torch.full((2 * len(x),), solver.time(index), device=x.device)
        output = model.predict(torch.cat([x, x]), time, text, condition)
        without, with_text = solver.clean(index, torch.cat([x, x]), output).chunk(2)
        guided = guide(without, with_text, solver.guidance(index))
        before.append(x)
        denoised.append(guided)
        return guided

    prefix = case[name + "prefix"] if facts["fixed_frames"] else None
    seed = facts["torch_manual_seed_before_loop"]
    result = sample_reference(solver, noise, estimate, prefix, facts["sdedit"], seeded(seed))
    case.close(name + "x_before_step", torch.stack(before))
    case.close(name + "denoised_after_cfg", torch.stack(denoised))
    case.close(name + "result", result)
    case.close(name + "alpha_cumprod_sqrt", _arranged(solver.levels.alphas[:-1], case, name + "alpha_cumprod_sqrt"))
    case.same(name + "timesteps_ascending", solver.levels.times.flip(0))
    scales = torch.tensor(facts["guidance_scale_per_step"], dtype=torch.float64)
    case.near(name + "guidance_scale_per_step", solver.levels.guidance, scales)
    if name + "randn_like_draws" in case:
        shapes = _draw_shapes(solver, noise, prefix if facts["sdedit"] else None)
        generator = seeded(seed)
        draws = [torch.randn(shape, generator=generator).flatten() for shape in shapes]
        case.same(name + "randn_like_draws", torch.cat(draws).view(case[name + "randn_like_draws"].shape))


def _arranged(falling: Tensor, case: Case, name: str) -> Tensor:
    """Alphas from noise to clean, in the order in which the case lists them."""
    if name in case and case[name][0] > case[name][-1]:
        return falling.flip(0)
    return falling


def _draw_shapes(solver: DiffusionSolver, noise: Tensor, renoised: Tensor | None) -> Iterator[torch.Size]:
    for index in range(solver.steps):
        if renoised is not None:
            yield renoised.shape
        yield from [noise.shape] * solver.draws(index)


def _check_denoiser(case: Case, model: Renderer, condition: Tensor) -> None:
    alphas, places = DiffusionSchedule().snap(case["denoiser/alpha_cumprod_sqrt"].cpu())
    case.close("denoiser/quantised_alpha", alphas)
    x, expected = case["denoiser/x"], case["denoiser/out"]
    own = float(places[0])
    # Only the right time gives the record's values, so the first that does is it.
    times = [_RECORDED_TIME, own, 999.0 - own]
    times += [float(time) for time in range(1000) if float(time) not in times]
    best: Tensor | None = None
    for time in times:
        velocity = model.predict(x, torch.full((len(x),), time, device=x.device), case["context"], condition)
        clean = clean_of_velocity(x, velocity, alphas[0])
        if best is None or relative_error(clean, expected) < relative_error(best, expected):
            best = clean
        if relative_error(best, expected) <= TOLERANCE:
            break
    assert best is not None
    case.near("denoiser/out", best, expected)


def check_autoencoder(case: Case) -> None:
    """Latents decoded in slices, at one call, and a single one."""
    decoder = case_models.decoder(case)
    latent = case["latent"]
    if "decoded_sliced" in case:
        lengths = slice_lengths(latent.shape[2], started=False)
        state = CausalState()
        frames = [decoder(part, state) for part in latent.split(lengths, dim=2)]
        case.close("decoded_sliced", torch.cat(frames, dim=2))
        ends = torch.tensor(lengths).cumsum(0)
        slices = torch.stack([ends - torch.tensor(lengths), ends], dim=1)
        case.near("slices", slices, torch.tensor(case.facts["slices"]))
    case.close("decoded_single_call", lambda: decoder(latent, CausalState()))
    case.close("decoded_one_latent", lambda: decoder(latent[:, :, :1], CausalState()))

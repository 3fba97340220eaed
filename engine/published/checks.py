"""The comparisons of every kind of golden case. Inputs that a case lacks raise ValueError."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.perceptual.base import slice_lengths
from engine.perceptual.cogvideox.causal import CausalState
from engine.perceptual.dit import DiTConfig, position_table
from engine.perceptual.head import HeadInputs
from engine.perceptual.renderer import DiTRenderer
from engine.perceptual.schedule import DiffusionSchedule
from engine.perceptual.solver import DiffusionSolver, clean_of_velocity
from engine.perceptual.timesteps import Timestep
from engine.published import case_models
from engine.published.case import TOLERANCE, Case, relative_error
from engine.published.release import sample_latents, sample_plan
from engine.runtime.layers import sinusoid
from engine.semantic.masks import decoder_mask, encoder_mask
from engine.semantic.planner import Planner
from engine.semantic.sampling import SamplingConfig
from engine.semantic.tokenizer import TokenizerConfig, gop_angles

_RECORDED_TIME = 499.0  # network time of the known denoiser records; their files do not say it
_SUMMED_ROWS = 512  # of a mask at a time; a whole sum in int64 would take gigabytes


def check_tokenizer(case: Case) -> None:
    """A whole GOP, short GOPs, segments of a longer clip, masks and rotary tables."""
    config, model = case_models.tokenizer_config(case.config), case_models.tokenizer(case)
    features, tokens = case["group/features"], case["group/indices"]
    latents, quantized, decoded = model.encoder(features), model.quantizer.decode(tokens), model.decode(tokens)
    case.check("group/", encoder_out=latents.mT, project_in=model.quantizer.project(latents), quantized=quantized)
    case.check("group/", indices=model.encode(features))
    for row in range(len(tokens)):
        names = {f"decoded_b{row}": decoded[row], f"decoded_default_T_b{row}": decoded[row]}
        case.check("group/", **names, **{f"latent_from_index_b{row}": quantized[row].mT})
    clips = {f"short{frames}/indices": features[:1] for frames in range(1, config.frames + 1)}
    for number, offset in enumerate(case.facts.get("multi", {}).get("offsets", ())):
        clips[f"multi/indices_{number}"] = case["multi/features"][:, offset:]
    for name in clips.keys() & case.tensors.keys():
        clip = clips[name][:, : model.config.frames_of(case[name].shape[-1])]
        case.check(**{name: model.encode(clip), name.replace("indices", "decoded"): model.decode(case[name])})
    for frames in range(1, config.frames + 1):
        sizes = frames, config.patches, config.i_tokens, config.p_tokens
        case.check("mask/", **{f"enc_T{frames}": encoder_mask(*sizes), f"dec_T{frames}": decoder_mask(*sizes)})
    angles, visual = gop_angles(config, config.frames, "cpu"), config.frames * config.patches
    for name, rows in (("enc", angles), ("dec_visual", angles[:visual]), ("dec_query", angles[visual:])):
        case.check(f"rope/{name}_", cos=rows.cos(), sin=rows.sin())


def check_planner(case: Case) -> None:
    """Prefix, network over a whole sequence, and every sampling run draw by draw."""
    planner = case_models.planner(case)
    text = case["text/t5_embeddings"][:, case["text/attention_mask"][0].bool()]
    _check_prefix(case, planner, text)
    if "forward/input_features" in case:
        inputs, tokens = case["forward/input_features"], case["forward/tokens_after_prefix"]
        case.check("forward/", hidden=planner.transform(inputs), logits=planner(inputs))
        embedded = planner.embed(tokens.expand(len(inputs), -1), None)
        case.compare("forward/tokens_after_prefix", embedded, inputs[:, -len(tokens) :])
    for run, facts in case.facts["runs"].items():
        _check_plan(case, planner, text, f"sample/{run}/", facts)


def _check_prefix(case: Case, planner: Planner, text: Tensor) -> None:
    config = planner.config
    hidden = torch.tensor([False, True], device=case.device)
    prefix = planner.prefix(text.expand(2, -1, -1), case.config["num_frames"], case.config["motion_score"], hidden)
    vectors = prefix.embeddings
    case.check("prefix/", micro_cond=vectors[:1, 1:3], text_cond=vectors[0, 3:], text_null=vectors[1, 3:])
    # The published record ends with the token that closes the video.
    ends = planner.embed(torch.tensor([[config.iframe_start, config.eos]] * 2, device=case.device), None)
    # Places of conditions hold no token: -100 in the record.
    row = [config.bos, *[-100] * (vectors.shape[1] - 1), config.iframe_start, config.eos]
    case.check("prefix/", features_cond_uncond=torch.cat([vectors, ends], dim=1), tokens=torch.tensor([row, row]))


def _check_plan(case: Case, planner: Planner, text: Tensor, name: str, facts: dict[str, Any]) -> None:
    sampling = case_models.config_of(SamplingConfig, facts, guidance="guidance_scale")
    generator = torch.Generator().manual_seed(facts["torch_manual_seed"])
    logits: list[Tensor] = []
    draws: list[tuple[Tensor, Tensor]] = []

    def draw(chances: Tensor) -> Tensor:
        draws.append((chances, torch.multinomial(chances.cpu(), 1, generator=generator).to(chances.device)))
        return draws[-1][1]

    hook = planner.register_forward_hook(lambda module, inputs, output: logits.append(output[:, -1]))
    codes = sample_plan(planner, text, case.config["num_frames"], case.config["motion_score"], sampling, draw)
    hook.remove()
    probs, drawn = map(torch.stack, zip(*draws, strict=True))
    case.check(name, drawn_all_positions=drawn, codes=codes, raw_logits=torch.stack(logits), probs=probs)


def check_extractor(case: Case) -> None:
    """Features of a video, padded by the extractor and padded beforehand."""
    model = case_models.extractor(case)
    features = model(case["video_uint8"])
    case.check(features=features)
    if "padded_uint8" in case:
        case.compare("padded_uint8", model(case["padded_uint8"]), features)


def check_renderer(case: Case) -> None:
    """Network with control, without it, for fewer frames, and every step on the way."""
    model = case_models.renderer(case)
    x, times, text = case["x"], case["timesteps"], case["context"]
    condition = model.condition(case["semantic_feature_before_upsample"])
    time = sinusoid(times, model.config.dit.hidden)
    case.check(semantic_feature=condition, timestep_embedding=time, time_embed=model.base.time(time))
    layout = model.base.layout(Timestep(times))
    hidden = model.base(model.base.embed(text, x), layout)
    case.check(out_without_control=model.base.output(hidden, layout, HeadInputs(x, None, None)))
    residuals = model.control(model.control.embed(text, x + condition), model.control.layout(Timestep(times)))
    case.check("control_layer_", **{str(index): residual for index, residual in enumerate(residuals)})
    for name in list(case.tensors):
        if match := re.fullmatch(r"out_with_control(?:_(?:first)?(\d+)frames?)?", name):
            frames = int(match[1] or x.shape[1])
            case.check(**{name: model.predict(x[:, :frames], times, text, condition[:, :frames])})
    for part, trunk in (("base", model.base), ("control", model.control)):
        case.compare(f"position table of {part}", position_table(model.config.dit), trunk.positions)


def check_condition(case: Case) -> None:
    """Tokens to features to condition latents, and the pixel shuffle alone."""
    tokenizer, condition = case_models.condition(case)
    features = tokenizer.decode(case["indices"].flatten(0, 1))
    upsampled = condition.upsampler(features.flatten(0, 1)).unflatten(0, features.shape[:2])
    case.check(features=features, upsampled=upsampled)
    case.check("semantic_feature_from_", tokens=condition(features), features=condition(case["rand_features"]))
    if "pixelshuffle_block/in" in case:
        block_in, expected = case["pixelshuffle_block/in"], case["pixelshuffle_block/out"]
        shuffled = torch.pixel_shuffle(block_in, 2)
        levels = zip(condition.config.widths[1:], condition.upsampler.levels[1:], strict=True)
        # The record does not say which level it is of.
        results = [level.get_submodule("upsample")(shuffled) for width, level in levels if width == block_in.shape[1]]
        best = min(results, key=lambda result: relative_error(result, expected))
        case.check("pixelshuffle_block/", out=best)


def check_sampler(case: Case) -> None:
    """Whole runs with guidance, with given frames clean or re-noised, draw by draw; the denoiser alone."""
    model = case_models.renderer(case)
    condition = model.condition(case["semantic_feature_before_upsample"])
    case.check(sigma_table_1000_alpha_cumprod_sqrt=DiffusionSchedule().levels(1000).alphas[:-1].flip(0))
    for run, facts in case.facts["runs"].items():
        _check_latents(case, model, condition, run + "/", facts)
    if "denoiser/x" in case:
        _check_denoiser(case, model, condition)


def _check_latents(case: Case, model: DiTRenderer, condition: Tensor, name: str, facts: dict[str, Any]) -> None:
    schedule = DiffusionSchedule(guidance_scale=facts["cfg_scale"], guidance_exponent=facts["cfg_exp"])
    solver = DiffusionSolver(schedule, facts["num_steps"])
    generator = torch.Generator().manual_seed(facts["torch_manual_seed_before_loop"])
    steps: list[tuple[Tensor, Tensor]] = []
    draws: list[Tensor] = []

    def draw(like: Tensor) -> Tensor:
        draws.append(torch.randn(like.shape, generator=generator))
        return draws[-1].to(like.device)

    prefix = case[name + "prefix"] if facts["fixed_frames"] else None
    result = sample_latents(
        model, solver, case["init_noise"], case["context"], condition, draw,
        lambda *step: steps.append(step), prefix, facts["sdedit"],
    )  # fmt: skip
    noisy, clean = map(torch.stack, zip(*steps, strict=True))
    case.check(name, x_before_step=noisy, denoised_after_cfg=clean, result=result)
    drawn = torch.cat([noise.flatten() for noise in draws])
    case.compare(name + "randn_like_draws", drawn, case[name + "randn_like_draws"].flatten(), exact=True)
    # Some cases list them from noise to clean, others the other way.
    listed = case[name + "alpha_cumprod_sqrt"].sort().values
    case.compare(name + "alpha_cumprod_sqrt", solver.levels.alphas[:-1].sort().values, listed)
    case.check(name, timesteps_ascending=solver.levels.times.flip(0))
    scales = torch.tensor(facts["guidance_scale_per_step"], dtype=torch.float64)
    case.compare(name + "guidance_scale_per_step", solver.levels.guidance, scales)


def _check_denoiser(case: Case, model: DiTRenderer, condition: Tensor) -> None:
    alphas, _ = DiffusionSchedule().snap(case["denoiser/alpha_cumprod_sqrt"].cpu())
    x, expected = case["denoiser/x"], case["denoiser/out"]

    def clean(time: float) -> Tensor:
        times = torch.full((len(x),), time, device=x.device)
        return clean_of_velocity(x, model.predict(x, times, case["context"], condition), alphas[0])

    # Only the right time gives the record's values, so the first that does is it.
    results = map(clean, (_RECORDED_TIME, *range(1000)))
    fitting = (result for result in results if relative_error(result, expected) <= TOLERANCE)
    case.check("denoiser/", quantised_alpha=alphas, out=next(fitting, clean(_RECORDED_TIME)))


def check_autoencoder(case: Case) -> None:
    """Latents decoded in slices, in one call, and a single one."""
    decoder, latent = case_models.decoder(case), case["latent"]
    if "decoded_sliced" in case:
        lengths, state = slice_lengths(latent.shape[2], started=False), CausalState()
        case.check(decoded_sliced=torch.cat([decoder(part, state) for part in latent.split(lengths, dim=2)], dim=2))
        case.compare("slices", torch.tensor(lengths), torch.tensor(case.facts["slices"]).diff(dim=1))
    case.check(decoded_single_call=decoder(latent, CausalState()))
    case.check(decoded_one_latent=decoder(latent[:, :, :1], CausalState()))


def check_tables(case: Case) -> None:
    """Full-size constants of preset `landiff`: schedules, positions, masks, rotary angles, time embeddings."""
    for steps in {int(match[1]) for name in case.tensors if (match := re.match(r"n(\d+)/", name))}:
        _check_schedule(case, steps)
    dit, config = DiTConfig(), TokenizerConfig()
    case.check("pos/", rows=position_table(dit)[0, dit.text_length + case["pos/token_index"].cpu()])
    case.check("timestep_embedding/", dim256=sinusoid(case["timestep_embedding/t"], 256))
    # The k-th latent token turns by (k, k, k): columns of its row are the angles of time, row and column k.
    table = gop_angles(config, config.frames, "cpu")[config.frames * config.patches :]
    columns = table.split([config.head_dim // 8, *[3 * config.head_dim // 16] * 2], dim=1)
    places = case["rope3d/pos"].cpu().unbind(1)
    angles = torch.cat([column[place] for column, place in zip(columns, places, strict=True)], dim=1)
    case.check("rope3d/", cos=angles.cos(), sin=angles.sin())
    for name, mask_of in (("mask/VideoEncoderMask_", encoder_mask), ("mask/VideoDecoderMask_", decoder_mask)):
        if name + "rowsum" in case:
            mask = mask_of(config.frames, config.patches, config.i_tokens, config.p_tokens)
            for axis, sums in enumerate(("colsum", "rowsum")):
                parts = mask.split(_SUMMED_ROWS, dim=1 - axis)
                case.check(name, **{sums: torch.cat([part.sum(axis, dtype=torch.int32) for part in parts])})


def _check_schedule(case: Case, steps: int) -> None:
    levels, name = DiffusionSchedule().levels(steps), f"n{steps}/"
    case.check(name, alpha_cumprod_sqrt_descending_noise=levels.alphas[:-1], timesteps_ascending=levels.times.flip(0))
    case.check(name, quantised_alpha_used_by_denoiser=levels.snapped, denoiser_table_index=levels.snapped_index)
    case.check(name, **{f"guidance_scale_num_steps{steps}": levels.guidance})
    multipliers = name + "mult1_mult2_mult3_mult4_multnoise"
    if multipliers in case:
        expected, actual = case[multipliers].clone(), DiffusionSolver(DiffusionSchedule(), steps).coefficients
        # The first step has no step before it: the two factors of a pair of estimates are unused there.
        expected[0, 2:4] = actual[0, 2:4] = 0
        for column in range(expected.shape[1]):
            case.compare(f"{multipliers}[{column}]", actual[:, column], expected[:, column])


CHECKS: dict[str, Callable[[Case], None]] = {
    "tokenizer": check_tokenizer, "lm": check_planner, "theia_extractor": check_extractor,
    "dit_control": check_renderer, "condition_upsample": check_condition, "sampler": check_sampler,
    "vae_decoder": check_autoencoder, "tables": check_tables,
}  # fmt: skip
"""By the kind that a case names."""

"""Golden cases of the semantic half: tokenizer, planner and feature extractor."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from engine.published import case_models
from engine.published.reference_case import Case, seeded
from engine.semantic.masks import decoder_mask, encoder_mask
from engine.semantic.planner import Planner
from engine.semantic.sampling import SamplingConfig, allowed_draws, distribution, generate_reference, guide
from engine.semantic.tokenizer import SemanticTokenizer, TokenizerConfig, group_angles


def check_tokenizer(case: Case) -> None:
    """A whole group, short groups, segments of a longer clip, masks and rotary tables."""
    own = case_models.tokenizer_config(case.config)
    codes = [tensor.shape[-1] for name, tensor in case.tensors.items() if "indices" in name]
    # A clip that is not cut makes a group longer than the configured one.
    longest = max([own.frames, *(1 + (count - own.i_tokens) // own.p_tokens for count in codes)])
    model = case_models.tokenizer(case, longest)
    _check_group(case, model)
    for name in list(case.tensors):
        if match := re.fullmatch(r"short(\d+)/indices", name):
            _check_codes(case, model, case["group/features"][:1, : int(match[1])], name, f"short{match[1]}/decoded")
        elif match := re.fullmatch(r"multi/indices_(\d+)", name):
            number = int(match[1])
            start = case.facts["multi"]["offsets"][number]
            frames = model.config.frames_of(case[name].shape[-1])
            segment = case["multi/features"][:, start : start + frames]
            _check_codes(case, model, segment, name, f"multi/decoded_{number}")
        elif match := re.fullmatch(r"mask/(enc|dec)_T(\d+)", name):
            make = encoder_mask if match[1] == "enc" else decoder_mask
            case.same(name, make(int(match[2]), own.patches, own.i_tokens, own.p_tokens))
    _check_rotary(case, own)


def _check_group(case: Case, model: SemanticTokenizer) -> None:
    features = case["group/features"]
    latents = model.encoder(features)
    case.close("group/encoder_out", latents.mT)
    case.close("group/project_in", model.quantizer.project(latents))
    codes = model.encode(features)
    case.same("group/indices", codes)
    case.close("group/quantized", model.quantizer.decode(codes))
    decoded = model.decode(case["group/indices"])
    for name in list(case.tensors):
        if match := re.fullmatch(r"group/decoded(?:_default_T)?_b(\d+)", name):
            case.close(name, decoded[int(match[1])])
        elif match := re.fullmatch(r"group/latent_from_index_b(\d+)", name):
            case.close(name, model.quantizer.decode(case["group/indices"])[int(match[1])].mT)


def _check_codes(case: Case, model: SemanticTokenizer, features: Tensor, codes: str, decoded: str) -> None:
    case.same(codes, model.encode(features))
    case.close(decoded, model.decode(case[codes]))


def _check_rotary(case: Case, config: TokenizerConfig) -> None:
    angles = group_angles(config, config.frames, "cpu")
    visual = config.frames * config.patches
    case.close("rope/enc_cos", angles.cos())
    case.close("rope/enc_sin", angles.sin())
    case.close("rope/dec_visual_cos", angles[:visual].cos())
    case.close("rope/dec_visual_sin", angles[:visual].sin())
    case.close("rope/dec_query_cos", angles[visual:].cos())
    case.close("rope/dec_query_sin", angles[visual:].sin())


def check_planner(case: Case) -> None:
    """Prefix, network over a whole sequence, and every sampling run draw by draw."""
    planner = case_models.planner(case)
    text = case["text/t5_embeddings"][:, case["text/attention_mask"][0].bool()]
    _check_prefix(case, planner, text)
    if "forward/input_features" in case:
        inputs = case["forward/input_features"]
        case.close("forward/hidden", planner.transform(inputs))
        case.close("forward/logits", planner(inputs))
        tokens = case["forward/tokens_after_prefix"]
        case.near(
            "forward/tokens_after_prefix",
            planner.embed(tokens.expand(len(inputs), -1), None),
            inputs[:, -len(tokens) :],
        )
    for run in case.facts["runs"]:
        _check_run(case, planner, text, run)


def _check_prefix(case: Case, planner: Planner, text: Tensor) -> None:
    config = planner.config
    hidden = torch.tensor([False, True], device=case.device)
    prefix = planner.prefix(text.expand(2, -1, -1), case.config["num_frames"], case.config["motion_score"], hidden)
    # The published record ends with the token that closes the video.
    ends = planner.embed(torch.tensor([[config.iframe_start, config.eos]] * 2, device=case.device), None)
    case.close("prefix/features_cond_uncond", torch.cat([prefix.embeddings, ends], dim=1))
    case.close("prefix/micro_cond", prefix.embeddings[:1, 1:3])
    case.close("prefix/text_cond", prefix.embeddings[0, 3:])
    case.close("prefix/text_null", prefix.embeddings[1, 3:])
    # Positions of conditions hold no token, which the record says by -100.
    row = [config.bos, *[-100] * (config.prefix_len(text.shape[1]) - 1), config.iframe_start, config.eos]
    case.same("prefix/tokens", torch.tensor([row, row]))


def _check_run(case: Case, planner: Planner, text: Tensor, run: str) -> None:
    facts, name = case.facts["runs"][run], f"sample/{run}/"
    sampling = SamplingConfig(
        guidance=facts["guidance_scale"],
        temperature=facts.get("temperature", 1.0),
        top_k=facts.get("top_k"),
        top_p=facts.get("top_p"),
    )
    frames, motion = case.config["num_frames"], case.config["motion_score"]
    steps: list[Tensor] = []
    hook = planner.register_forward_hook(lambda module, inputs, output: steps.append(output[:, -1]))
    plan = generate_reference(planner, text, frames, motion, sampling, seeded(facts["torch_manual_seed"]))
    hook.remove()
    case.same(name + "drawn_all_positions", plan.draws)
    case.same(name + "codes", plan.codes)
    logits = torch.stack(steps)
    case.close(name + "raw_logits", logits)
    allowed = allowed_draws(planner.config, frames)
    case.close(
        name + "probs",
        lambda: torch.stack(
            [
                distribution(guide(rows, sampling)[0], tokens, sampling)
                for rows, tokens in zip(logits, allowed, strict=True)
            ]
        ),
    )


def check_theia(case: Case) -> None:
    """Features of a video, padded by the extractor and padded beforehand."""
    model = case_models.extractor(case)
    features = model(case["video_uint8"])
    case.close("features", features)
    if "padded_uint8" in case:
        case.near("padded_uint8", model(case["padded_uint8"]), features)

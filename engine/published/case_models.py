"""The modules that golden cases describe, with the cases' sizes and weights, in evaluation mode."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from engine.loading.published_names_perceptual import BASE, CONDITION, DIFFUSION, VAE
from engine.loading.published_names_semantic import PLANNER, THEIA, TOKENIZER
from engine.perceptual.cogvideox.vae_decoder import VAEDecoder
from engine.perceptual.dit import DiTConfig
from engine.perceptual.renderer import Renderer, RendererConfig
from engine.perceptual.upsampler import Condition, ConditionConfig
from engine.published.reference_case import Case
from engine.semantic.planner import Planner, PlannerConfig
from engine.semantic.quantizer import QuantizerConfig
from engine.semantic.theia import Theia, TheiaConfig
from engine.semantic.tokenizer import SemanticTokenizer, TokenizerConfig

_TIME_LEVELS = 2  # of the autoencoder
_SEMANTIC = "semantic_model.model."


def tokenizer_config(config: dict[str, Any], frames: int | None = None) -> TokenizerConfig:
    """The tokenizer that a case's `config` describes, for groups of up to `frames` or the case's own length."""
    return TokenizerConfig(
        feature_dim=config["feature_dim"],
        grid=(config["grid_h"], config["grid_w"]),
        width=config["width"],
        layers=config["num_layers"],
        heads=config["num_heads"],
        frames=frames or config["temporal_size"],
        i_tokens=config["iframe_tokens"],
        p_tokens=config["pframe_tokens"],
        quantizer=QuantizerConfig(config["token_size"], config["codebook_size"], config["codebook_dim"]),
    )


def tokenizer(case: Case, frames: int | None = None) -> SemanticTokenizer:
    """The tokenizer of a case of its own, for groups of up to `frames` or the case's own length."""
    model = SemanticTokenizer(tokenizer_config(case.config, frames))
    case.fill(model, TOKENIZER)
    return model


def planner(case: Case) -> Planner:
    """The language model."""
    config = case.config
    model = Planner(
        PlannerConfig(
            hidden=config["hidden"],
            layers=config["num_layers"],
            heads=config["num_heads"],
            mlp=config["mlp_dim"],
            codebook_size=config["codebook_size"],
            text_dim=config["t5_dim"],
            micro_freq=config["micro_freq"],
            micro_hidden=config["micro_hidden"],
            i_tokens=config["iframe_tokens"],
            p_tokens=config["pframe_tokens"],
            group_frames=config["segment_length"],
        )
    )
    case.fill(model, PLANNER)
    return model


def extractor(case: Case) -> Theia:
    """The feature extractor."""
    config = case.config
    model = Theia(
        TheiaConfig(
            hidden=config["hidden"],
            layers=config["layers"],
            heads=config["heads"],
            mlp=case.weights["layers.0.mlp.fc1.weight"].shape[0],
            image_size=config["image_size"],
            patch=config["patch"],
            canvas=config["canvas"],
            output_shape=tuple(config["output_shape"]),
        )
    )
    case.fill(model, THEIA)
    return model


def renderer(case: Case) -> Renderer:
    """The renderer with the case's sizes and weights."""
    config = case.config
    dit = DiTConfig(
        hidden=config["hidden"],
        heads=config["num_heads"],
        layers=config["num_layers"],
        frames=config["latent_frames"],
        height=config["latent_h"],
        width=config["latent_w"],
        channels=config["latent_channels"],
        time_dim=config["time_embed_dim"],
        text_length=config["text_length"],
        text_dim=config["text_dim"],
        position_scale=config["pos_interp"],
    )
    sizes = _condition_config(config, config["feature_dim"])
    model = Renderer(RendererConfig(dit=dit, condition=sizes, control_layers=config["control_layers"]))
    main = {key.removeprefix("main_"): value for key, value in case.weights.items() if key.startswith("main_model.")}
    rest = {key: value for key, value in case.weights.items() if not key.startswith("main_model.")}
    # The two files of the release name their parts from one step further up.
    replace(case, weights=main).fill(model.base, BASE, ours="base.")
    replace(case, weights=rest).fill(_Branches(model), DIFFUSION, "model.")
    return model.eval()


class _Branches(torch.nn.Module):
    """What the diffusion file holds of a renderer."""

    def __init__(self, model: Renderer) -> None:
        super().__init__()
        self.control = model.control
        self.condition = model.condition


def condition(case: Case) -> tuple[SemanticTokenizer, Condition]:
    """The tokenizer inside a condition's case, and what makes condition latents of its features."""
    sizes = case.config["tokenizer"]
    within = SemanticTokenizer(tokenizer_config(sizes))
    semantic = {key.removeprefix(_SEMANTIC): value for key, value in case.weights.items() if key.startswith(_SEMANTIC)}
    replace(case, weights=semantic).fill(within, TOKENIZER)
    model = Condition(_condition_config(case.config, sizes["feature_dim"]))
    rest = {key: value for key, value in case.weights.items() if not key.startswith(_SEMANTIC)}
    replace(case, weights=rest).fill(model, CONDITION)
    return within, model


def _condition_config(config: dict[str, Any], feature_dim: int) -> ConditionConfig:
    return ConditionConfig(
        feature_dim=feature_dim,
        width=config["up_ch"],
        multipliers=tuple(config["up_mult"]),
        blocks=config["up_blocks"],
        out_channels=config["up_out"],
        latent_channels=config["latent_channels"],
    )


def decoder(case: Case) -> VAEDecoder:
    """The autoencoder's decoder."""
    config = case.config
    sizes = (config["z_channels"], config["ch"], tuple(config["ch_mult"]), config["num_res_blocks"])
    model = VAEDecoder(*sizes, time_levels=_TIME_LEVELS)
    case.fill(model, VAE, ours="decoder.")
    return model

"""The modules that golden cases describe, with the cases' sizes and weights, in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from inspect import signature
from typing import Any, TypeVar

from torch import nn

from engine.loading.published_files import MAIN
from engine.loading.published_names_perceptual import DIFFUSION, VAE
from engine.loading.published_names_semantic import PLANNER, THEIA, TOKENIZER
from engine.perceptual.cogvideox.vae_decoder import VAEDecoder
from engine.perceptual.dit import DiTConfig
from engine.perceptual.renderer import DiTRenderer, RendererConfig
from engine.perceptual.upsampler import Condition, ConditionConfig
from engine.published.case import Case
from engine.semantic.planner import Planner, PlannerConfig
from engine.semantic.quantizer import QuantizerConfig
from engine.semantic.theia import Theia, TheiaConfig
from engine.semantic.tokenizer import SemanticTokenizer, TokenizerConfig

T = TypeVar("T")

_TIME_LEVELS = 2  # of the autoencoder


def config_of(kind: Callable[..., T], given: Mapping[str, Any], **names: str) -> T:
    """A configuration with a case's values; `names` gives the case's name of a field where it is another."""
    values = {field: given.get(names.get(field, field)) for field in signature(kind).parameters}
    return kind(**{
        field: tuple(value) if isinstance(value, list) else value
        for field, value in values.items() if value is not None
    })  # fmt: skip


def tokenizer_config(config: Mapping[str, Any]) -> TokenizerConfig:
    """The tokenizer that a table of sizes describes."""
    made = config_of(
        TokenizerConfig, config, layers="num_layers", heads="num_heads", frames="temporal_size",
        i_tokens="iframe_tokens", p_tokens="pframe_tokens",
    )  # fmt: skip
    quantizer = config_of(QuantizerConfig, config, dim="token_size")
    return replace(made, grid=(config["grid_h"], config["grid_w"]), quantizer=quantizer)


def tokenizer(case: Case) -> SemanticTokenizer:
    """The tokenizer of a case of its own, for GOPs as long as the longest clip, which need not be cut."""
    config = tokenizer_config(case.config)
    clip = case.facts.get("multi", {}).get("total_frames", 0)
    return case.fill(SemanticTokenizer(replace(config, frames=max(config.frames, clip))), TOKENIZER)


def planner(case: Case) -> Planner:
    """The language model."""
    config = config_of(
        PlannerConfig, case.config, layers="num_layers", heads="num_heads", mlp="mlp_dim", text_dim="t5_dim",
        i_tokens="iframe_tokens", p_tokens="pframe_tokens", gop_frames="segment_length",
    )  # fmt: skip
    return case.fill(Planner(config), PLANNER)


def extractor(case: Case) -> Theia:
    """The feature extractor."""
    mlp = len(case.weights["layers.0.mlp.fc1.weight"])
    return case.fill(Theia(replace(config_of(TheiaConfig, case.config), mlp=mlp)), THEIA)


def renderer(case: Case) -> DiTRenderer:
    """The renderer."""
    dit = config_of(
        DiTConfig, case.config, heads="num_heads", layers="num_layers", frames="latent_frames", height="latent_h",
        width="latent_w", channels="latent_channels", time_dim="time_embed_dim", position_scale="pos_interp",
    )  # fmt: skip
    config = RendererConfig(dit, _condition_config(case.config), case.config["control_layers"])
    return case.fill(DiTRenderer(config), (*MAIN, *DIFFUSION), "model.")


def condition(case: Case) -> tuple[SemanticTokenizer, Condition]:
    """The tokenizer inside a condition's case, and the module that makes condition latents of its features."""
    inner = SemanticTokenizer(tokenizer_config(case.config["tokenizer"]))
    model = Condition(_condition_config(case.config | {"feature_dim": inner.config.feature_dim}))
    both = nn.ModuleDict({"tokenizer": inner, "condition": model})
    case.fill(both, DIFFUSION, "model.control_model.diffusion_model.semantic_conditioner.")
    return inner, model


def _condition_config(config: Mapping[str, Any]) -> ConditionConfig:
    names = {"width": "up_ch", "blocks": "up_blocks", "multipliers": "up_mult", "out_channels": "up_out"}
    return config_of(ConditionConfig, config, **names)


def decoder(case: Case) -> VAEDecoder:
    """The autoencoder's decoder."""
    config = case.config
    sizes = (config["z_channels"], config["ch"], tuple(config["ch_mult"]), config["num_res_blocks"])
    model = VAEDecoder(*sizes, time_levels=_TIME_LEVELS)
    case.fill(nn.ModuleDict({"decoder": model}), VAE)
    return model

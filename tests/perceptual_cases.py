"""Builds the renderer that a golden case describes."""

from __future__ import annotations

from engine.checkpoints.published_names_perceptual import BASE, DIFFUSION
from engine.checkpoints.published_names_semantic import to_ours
from engine.perceptual.dit import DiTConfig
from engine.perceptual.renderer import Renderer, RendererConfig
from engine.perceptual.upsampler import ConditionConfig
from tests import golden


def renderer(case: golden.Golden) -> Renderer:
    """The renderer with the case's sizes and weights, in evaluation mode."""
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
    condition = ConditionConfig(
        feature_dim=config["feature_dim"],
        width=config["up_ch"],
        multipliers=tuple(config["up_mult"]),
        blocks=config["up_blocks"],
        out_channels=config["up_out"],
        latent_channels=config["latent_channels"],
    )
    model = Renderer(RendererConfig(dit=dit, condition=condition, control_layers=config["control_layers"]))
    weights = {}
    for key, value in case.weights.items():
        if key.startswith("main_model."):
            weights[to_ours(key.replace("main_model.", "model.", 1), BASE)] = value
        else:
            weights[to_ours(f"model.{key}", DIFFUSION)] = value
    model.load_state_dict(weights, strict=True)
    return model.eval()

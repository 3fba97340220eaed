"""A complete folder of published weights at tiny size, with random numbers."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.landiff import LandiffConfig, build
from engine.perceptual.dit import DiTConfig
from engine.perceptual.renderer import RendererConfig
from engine.perceptual.upsampler import ConditionConfig
from engine.perceptual.vae import VAEConfig
from engine.published import FILES, PublishedFile, shapes_of
from engine.semantic.planner import PlannerConfig
from engine.semantic.quantizer import QuantizerConfig
from engine.semantic.tokenizer import TokenizerConfig

TOKENIZER, PLANNER = "tokenizer/model.safetensors", "llm/model.safetensors"
TRANSFORMER = "CogVideoX-2b-sat/transformer/1000/mp_rank_00_model_states.pt"
DIFFUSION, VAE = "diffusion/1/mp_rank_00_model_states.pt", "CogVideoX-2b-sat/vae/3d-vae.pt"

TINY = LandiffConfig(
    tokenizer=TokenizerConfig(
        feature_dim=6, grid=(2, 4), width=32, layers=1, heads=2, i_tokens=4, p_tokens=2,
        quantizer=QuantizerConfig(dim=16, codebook_size=20, codebook_dim=4),
    ),
    planner=PlannerConfig(
        hidden=32, layers=2, heads=2, mlp=48, codebook_size=20, text_dim=12, micro_freq=8, micro_hidden=16, i_tokens=4,
        p_tokens=2,
    ),
    renderer=RendererConfig(
        dit=DiTConfig(
            hidden=32, heads=2, layers=2, height=4, width=8, channels=4, time_dim=16, text_length=5, text_dim=12
        ),
        condition=ConditionConfig(
            feature_dim=6, width=32, multipliers=(1.0, 1.0), blocks=1, out_channels=8, latent_channels=4
        ),
        control_layers=1,
    ),
    vae=VAEConfig(latent_channels=4, width=32, multipliers=(1, 1, 1), blocks=0),
)  # fmt: skip

MODULES = build(TINY)  # on the meta device
SHAPES = shapes_of(MODULES)


def published_tensors(file: PublishedFile, seed: int, required: bool = True) -> dict[str, Tensor]:
    """Random numbers for every tensor of a file, or for every one that it may hold beside."""
    generator = torch.Generator().manual_seed(seed)
    names = file.keys(MODULES, required)
    return {key: torch.randn(SHAPES[target], generator=generator) for key, target in names.items()}


def write(folder: Path, name: str, tensors: dict[str, Tensor]) -> None:
    """Writes one file of the release."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    inner = next(file.inner for file in FILES if file.name == name)
    if inner is None:
        save_file(tensors, path)
    else:
        torch.save({inner: tensors, "iteration": 7}, path)


def make_folder(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Writes the whole release; returns the tensors of each file."""
    contents = {file.name: published_tensors(file, seed) for seed, file in enumerate(FILES)}
    for name, tensors in contents.items():
        write(folder, name, tensors)
    (folder / "CogVideoX-2b-sat/transformer/latest").write_text("1000\n")
    (folder / "diffusion/latest").write_text("1")
    return contents

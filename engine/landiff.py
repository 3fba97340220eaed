"""Preset `landiff`: the published model at its full size, and how it is put together from files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from engine.perceptual.renderer import Renderer, RendererConfig
from engine.perceptual.vae import VAE, VAEConfig
from engine.published import check_memory, fill, open_published
from engine.semantic.planner import Planner, PlannerConfig
from engine.semantic.theia import TheiaConfig
from engine.semantic.tokenizer import SemanticTokenizer, TokenizerConfig
from engine.tensor_files import Source, open_tensors

DESCRIPTION = "config.json"  # of our own layout
FORMAT = 1


@dataclass(frozen=True, slots=True)
class LandiffConfig:
    """Sizes of the four stages whose weights are published, and the release's settings.

    `guidance` is the release's default; its example and the paper have 6.5. The motion score has no null in the
    release, so a number must be given; the release's default is 0.1. Windows are cut 7 + 6 as a comment in the release
    suggests: nothing there runs more than one window, so the cut is a choice of this engine.
    """

    name: str = "landiff"
    height_px: int = 480
    width_px: int = 720
    fps: float = 8.0
    steps: int = 50
    guidance: float = 7.5
    motion_score: float = 0.1
    prompt_latents: int = 7
    new_latents: int = 6
    theia: TheiaConfig = field(default_factory=TheiaConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    renderer: RendererConfig = field(default_factory=RendererConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)

    def __post_init__(self) -> None:
        if self.prompt_latents + self.new_latents != self.renderer.dit.frames:
            raise ValueError(
                f"{self.prompt_latents} prompt and {self.new_latents} new latents do not fill a window of "
                f"{self.renderer.dit.frames}"
            )
        if self.tokenizer.feature_dim != self.renderer.condition.feature_dim:
            raise ValueError(
                f"the tokenizer makes {self.tokenizer.feature_dim} feature channels, the renderer reads "
                f"{self.renderer.condition.feature_dim}"
            )
        if self.vae.latent_channels != self.renderer.dit.channels:
            raise ValueError(
                f"the autoencoder has {self.vae.latent_channels} latent channels, the renderer "
                f"{self.renderer.dit.channels}"
            )


def build(config: LandiffConfig) -> dict[str, nn.Module]:
    """The modules by component name, on the meta device: they have shapes and take no memory."""
    with torch.device("meta"):
        modules: dict[str, nn.Module] = {
            "tokenizer": SemanticTokenizer(config.tokenizer),
            "planner": Planner(config.planner),
            "renderer": Renderer(config.renderer),
            "vae": VAE(config.vae),
        }
    return {name: module.requires_grad_(False).eval() for name, module in modules.items()}


def open_folder(folder: Path, components: Mapping[str, nn.Module], preset: str = "landiff") -> list[Source]:
    """Opens a folder of weights, as published or in our own layout (which has a `config.json`).

    Raises:
        ValueError: if it is no folder, or naming every file that is missing, cut short, refused or of another preset.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give one that holds the weights")
    if not (folder / DESCRIPTION).is_file():
        return open_published(folder, components)
    _check_description(folder / DESCRIPTION, preset)
    sources, faults = [], []
    for component, module in components.items():
        try:
            files = [open_tensors(path) for path in _shards(folder, component)]
        except ValueError as error:
            faults.append(str(error))
            continue
        names = {name: f"{component}.{name}" for name in module.state_dict()}
        held = {key for file in files for key in file.shapes}
        for number, file in enumerate(files):
            # A tensor that no shard has is missed from the first.
            own = {key: names[key] for key in names if key in file.shapes or (number == 0 and key not in held)}
            sources.append(Source(file, own, {}))
    if faults:
        raise ValueError("weights cannot be read:\n" + "\n".join(faults))
    return sources


def _check_description(path: Path, preset: str) -> None:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        form, own = facts["format"], facts["preset"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged or not of this engine ({error}): convert the weights again") from error
    if form != FORMAT:
        raise ValueError(f"{path} has format {form}, this engine reads {FORMAT}: convert the weights again")
    if own != preset:
        raise ValueError(f"{path} says the weights are of preset {own!r}, not {preset!r}")


def _shards(folder: Path, component: str) -> list[Path]:
    whole = folder / f"{component}.safetensors"
    pattern = re.compile(rf"{re.escape(component)}-(\d+)-of-(\d+)\.safetensors")
    numbered = {
        int(match[1]): (path, int(match[2])) for path in folder.iterdir() if (match := pattern.fullmatch(path.name))
    }
    if not numbered:
        return [whole]
    count = next(iter(numbered.values()))[1]
    return [
        numbered[number][0] if number in numbered else folder / f"{component}-{number:05d}-of-{count:05d}.safetensors"
        for number in range(1, count + 1)
    ]


def load(
    folder: Path,
    config: LandiffConfig,
    device: torch.device,
    dtype: torch.dtype,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, nn.Module]:
    """The modules by component name, filled.

    Args:
        folder: as published, or written by `convert`.
        dtype: of everything but whole numbers.
        progress: told tensors done and tensors in all.

    Raises:
        ValueError: for too little memory or any fault in the files, before anything runs.
    """
    components = build(config)
    sources = open_folder(folder, components, config.name)
    check_memory(components, device, dtype)
    fill(components, sources, device, dtype, progress)
    return components

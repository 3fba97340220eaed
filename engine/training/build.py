"""Arguments to a stage of training, with what it needs of earlier stages read from the weights folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import T5Tokenizer

from engine.config import EngineConfig
from engine.loading.model import build as build_modules
from engine.loading.weights import has_component, load_component, text_folders
from engine.perceptual.cogvideox.vae import VAE
from engine.perceptual.mini.vae import TinyVAE, TinyVAEConfig
from engine.semantic.theia import Theia
from engine.semantic.tokenizer import SemanticTokenizer
from engine.text.published import PublishedText, PublishedTextConfig, load_text_model
from engine.text.small_t5 import SmallT5, TextConfig, load_tokenizer
from engine.training.folder import Footage, FootageAutoencoder
from engine.training.latent_pool import through_tokens
from engine.training.run import Stage
from engine.training.stages.autoencoder import AutoencoderStage
from engine.training.stages.decoder import DecoderStage
from engine.training.stages.distill import DistillConfig, DistillStage
from engine.training.stages.extractor import ExtractorStage
from engine.training.stages.planner import PlannerStage
from engine.training.stages.planner_folder import FootagePlanner
from engine.training.stages.renderer import RendererStage
from engine.training.stages.renderer_folder import FootageRenderer
from engine.training.stages.sketch import SketchStage
from engine.training.stages.text import TextStage
from engine.training.stages.tokenizer import TokenizerStage
from engine.training.stages.tokenizer_folder import FootageTokenizer
from engine.training.world.vocabulary import make_tokenizer

# What of the weights folder a stage can go on from, named as the stage names it.
WARM_COMPONENTS = {
    "autoencoder": ("vae",),
    "extractor": ("theia",),
    "text": ("text",),
    "planner": ("planner",),
    "renderer": ("renderer",),
    "sketch": ("renderer",),
}

# Which stage writes a component; with --data the planner's writes the text encoder too.
WRITTEN_BY = {
    "vae": "autoencoder",
    "theia": "extractor",
    "tokenizer": "tokenizer",
    "text": "text",
    "renderer": "renderer",
}


def build(name: str, config: EngineConfig, arguments: argparse.Namespace) -> Stage:
    """The stage `name`, on the videos of `--data` or on the drawn world, and with `--warm-start` as far as it was.

    Raises:
        ValueError: if an earlier stage's weights are missing or do not fit, the videos cannot be used, or the stage
            does not learn from such data, or does not go on from weights.
    """
    if not arguments.warm_start:
        return _new(name, config, arguments)
    if name not in WARM_COMPONENTS:
        raise ValueError(
            f"stage {name!r} has no --warm-start: tokenizer begins with vectors unrounded, decoder and distill begin "
            "with the weights folder as it is"
        )
    stage = _new(name, config, arguments)
    for component in WARM_COMPONENTS[name]:
        module = getattr(stage, component)
        # Published text encoders are used as they are.
        if isinstance(module, nn.Module):
            load_component(arguments.weights, component, module)
    if isinstance(stage, RendererStage):
        stage.made_from = 0
    return stage


def _new(name: str, config: EngineConfig, arguments: argparse.Namespace) -> Stage:
    if arguments.data is not None:
        with torch.device(arguments.device):
            return _on_footage(name, config, arguments)
    if not isinstance(config.text, TextConfig) or not isinstance(config.vae, TinyVAEConfig):
        raise ValueError(f"preset {config.name!r} does not fit the drawn world: give --data, a folder of videos")
    weights, seed, device = arguments.weights, arguments.seed, arguments.device
    if name == "autoencoder":
        return AutoencoderStage(config.vae, seed, device, weights)
    if name == "tokenizer":
        return TokenizerStage(config.tokenizer, seed, device, weights)
    if name == "extractor":
        return ExtractorStage(config.theia, seed, device, weights)
    if name == "text":
        return TextStage(SmallT5(config.text, _words(config.text, arguments)), seed, device, weights)
    if name == "planner":
        tokenizer = _tokenizer(config, arguments)
        text = _small_text(config, arguments).requires_grad_(True)
        return PlannerStage(config, text, tokenizer, seed, device, weights)
    vae = TinyVAE(config.vae)
    _load_earlier(config, weights, "vae", vae)
    if name == "renderer" and arguments.features == "teacher":
        return RendererStage(config, vae, None, None, seed, device, weights, arguments.part)
    quantise = through_tokens(_tokenizer(config, arguments).to(device).eval())
    if name == "sketch":
        return SketchStage(RendererStage(config, vae, None, quantise, seed, device, weights))
    encode = _small_text(config, arguments).encode
    if name != "renderer":
        _require(config, weights, "renderer")
    if name in ("renderer", "decoder"):
        part = arguments.part if name == "renderer" else "both"
        renderer = RendererStage(config, vae, encode, quantise, seed, device, weights, part)
        if name == "renderer":
            return renderer
        load_component(weights, "renderer", renderer.renderer)
        return DecoderStage(config, vae, renderer, seed, weights)
    distill = DistillConfig(arguments.steps, arguments.teacher_steps, arguments.guidance)
    return DistillStage(config, distill, vae, encode, quantise, seed, device, weights, arguments.student)


def _on_footage(name: str, config: EngineConfig, arguments: argparse.Namespace) -> Stage:
    weights, seed, device = arguments.weights, arguments.seed, arguments.device
    if name not in ("autoencoder", "tokenizer", "planner", "renderer"):
        raise ValueError(f"stage {name!r} learns from what the drawn world knows of itself: leave --data away")
    theia = Theia(config.theia)
    if name == "autoencoder":
        if not isinstance(config.vae, TinyVAEConfig):
            raise ValueError(f"the autoencoder of preset {config.name!r} is used as published and not trained")
        return FootageAutoencoder(config.vae, Footage(arguments.data, config, theia, device), seed, weights)
    extractor: Theia | TinyVAE = theia
    if config.name == "mini-arlon" and isinstance(config.vae, TinyVAEConfig):
        extractor = TinyVAE(config.vae)
    _load_earlier(config, weights, "theia" if extractor is theia else "vae", extractor)
    footage = Footage(arguments.data, config, extractor, device)
    if name == "tokenizer":
        return FootageTokenizer(config, footage, seed, weights)
    if name == "planner":
        text: SmallT5 | PublishedText
        if isinstance(config.text, TextConfig):
            captions = [entry.caption for entry in footage.videos.entries]
            text = SmallT5(config.text, _words(config.text, arguments, captions))
        else:
            text = _published_text(config.text, arguments)
        return FootagePlanner(config, footage, _tokenizer(config, arguments), text, seed, weights)
    vae = build_modules(config, device)["vae"]
    assert isinstance(vae, TinyVAE | VAE)
    _load_earlier(config, weights, "vae", vae)
    tokenizer = None if arguments.features == "teacher" else _tokenizer(config, arguments).to(device).eval()
    if isinstance(config.text, TextConfig):
        text = _small_text(config, arguments)
    else:
        text = _published_text(config.text, arguments)
    return FootageRenderer(config, footage, vae, tokenizer, text, arguments.part, seed, weights)


def _tokenizer(config: EngineConfig, arguments: argparse.Namespace) -> SemanticTokenizer:
    tokenizer = SemanticTokenizer(config.tokenizer)
    _load_earlier(config, arguments.weights, "tokenizer", tokenizer)
    return tokenizer


def _load_earlier(config: EngineConfig, weights: Path, component: str, module: nn.Module) -> None:
    """Fills what an earlier stage has trained."""
    _require(config, weights, component)
    load_component(weights, component, module)


def _require(config: EngineConfig, weights: Path, component: str) -> None:
    # Published components come from elsewhere: their own errors say so.
    if not config.published and not has_component(weights, component):
        raise ValueError(
            f"{weights} has no {component}.safetensors: run stage {WRITTEN_BY[component]!r} first, or give --weights a "
            "folder that has it"
        )


def _words(config: TextConfig, arguments: argparse.Namespace, captions: Sequence[str] | None = None) -> T5Tokenizer:
    """A new text tokenizer, or that of a text encoder which goes on: another one may number the words otherwise."""
    if arguments.warm_start:
        return load_tokenizer(arguments.weights)
    return make_tokenizer(arguments.weights, config.vocabulary, captions)


def _small_text(config: EngineConfig, arguments: argparse.Namespace) -> SmallT5:
    assert isinstance(config.text, TextConfig)
    _require(config, arguments.weights, "text")
    text = SmallT5(config.text, load_tokenizer(arguments.weights)).to(arguments.device).requires_grad_(False).eval()
    load_component(arguments.weights, "text", text)
    return text


def _published_text(config: PublishedTextConfig, arguments: argparse.Namespace) -> PublishedText:
    planner, renderer = text_folders(arguments.weights)
    device = torch.device(arguments.device)
    return PublishedText(config, load_text_model(planner), load_text_model(renderer), device)

"""The stages of a preset: built, filled from a weights folder, ready to compute."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from engine.config import EngineConfig
from engine.loading.modules import COMPONENTS, autocast_dtypes, build
from engine.loading.placement import EVERYTHING_STAYS, check_load, choose_placement
from engine.loading.text_files import find_text_encoders, read_text_encoders
from engine.loading.weights import check_folder, load_weights
from engine.perceptual.base import Autoencoder, Renderer
from engine.perceptual.cogvideox.vae import VAE
from engine.perceptual.mini.enlarger import Enlarger, LargeVAE
from engine.perceptual.mini.vae import TinyVAE
from engine.perceptual.renderer import DiTRenderer
from engine.runtime.backends import choose as choose_attention
from engine.runtime.fp8 import multiplies_fp8, multiply_fp8
from engine.runtime.packing import pack, turned
from engine.semantic.passes import default_places
from engine.semantic.planner import Planner
from engine.semantic.tokenizer import SemanticTokenizer
from engine.text.embedding import TextEncoder
from engine.text.reader import PromptReader
from engine.text.reading_text import ReadingText
from engine.text.small_t5 import SmallT5

logger = logging.getLogger(__name__)

_MODULES_SHARE = 0.5  # of the time to load, beside the published text encoders


@dataclass(frozen=True, slots=True)
class Model:
    """The stages that generation needs, without gradients, in evaluation mode."""

    config: EngineConfig
    device: torch.device
    dtype: torch.dtype  # of matrix products; norms, tables and the solver stay in float32
    text: TextEncoder
    tokenizer: SemanticTokenizer
    planner: Planner
    renderer: Renderer
    vae: Autoencoder
    folder: Path | None = None  # that its weights are of

    def computing(self) -> AbstractContextManager[None]:
        """Inference mode with autocast; stages are only called inside."""
        return computing(self.device, self.dtype)


@contextmanager
def computing(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Inference mode with autocast; modules are only called inside."""
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        yield


def load(
    config: EngineConfig,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    progress: Callable[[float], None] = lambda share: None,
    memory_gb: float | None = None,
    planner: bool = True,
) -> Model:
    """Reads every stage from a weights folder.

    Args:
        folder: in our own layout or as published.
        progress: told the share that is done, 0 to 1.
        memory_gb: most of the device's memory to use, 10^9 bytes; None gives nothing up.
        planner: False leaves the planner without weights, for a model that renders what is planned.

    Raises:
        ValueError: if memory is too small, or a file is missing, cut short or of another model; it names the file and
            what is wrong.
    """
    fp8_products = multiplies_fp8(device)
    check_folder(folder, config.name)
    modules = build(config, vocabulary=folder)
    encoders = find_text_encoders(config, folder)
    placement = EVERYTHING_STAYS if memory_gb is None else choose_placement(config.name, memory_gb)
    dtypes = placement.dtypes(modules, autocast_dtypes(modules, dtype))
    needed = {name: module for name, module in modules.items() if planner or name != "planner"}
    check_load(needed, device, dtypes, [encoder.size_bytes for encoder in encoders], memory_gb is not None)
    share = _MODULES_SHARE if encoders else 1.0
    load_weights(folder, needed, config.name, device, dtypes, lambda done, total: progress(share * done / total))
    if fp8_products:
        for name in ("planner", "renderer") if planner else ("renderer",):
            logger.info("%s: %d layers multiply in 8 bits", name, len(multiply_fp8(modules[name])))
    own: object = modules.get("text")
    reader = modules.get("reader")
    if isinstance(own, SmallT5) and isinstance(reader, PromptReader):
        own = ReadingText(reader, own)
    text = (
        own
        if isinstance(own, (SmallT5, ReadingText))
        else read_text_encoders(config, encoders, device, placement, lambda done: progress(share + (1 - share) * done))
    )
    choose_attention(device, dtype, config.attention_shape)
    return replace(assemble(config, text, modules, device, dtype), folder=folder)


def load_renderer(
    config: EngineConfig, folder: Path, device: torch.device, dtype: torch.dtype, memory_gb: float | None = None
) -> DiTRenderer:
    """Reads the renderer alone, for a process that computes a part of it; arguments and errors as for `load`."""
    fp8_products = multiplies_fp8(device)
    check_folder(folder, config.name)
    modules = build(config)
    placement = EVERYTHING_STAYS if memory_gb is None else choose_placement(config.name, memory_gb)
    dtypes = placement.dtypes(modules, autocast_dtypes(modules, dtype))
    renderer = modules["renderer"]
    check_load({"renderer": renderer}, device, dtypes, (), memory_gb is not None)
    load_weights(folder, {"renderer": renderer}, config.name, device, dtypes)
    if fp8_products:
        multiply_fp8(renderer)
    choose_attention(device, dtype, config.attention_shape)
    assert isinstance(renderer, DiTRenderer)
    pack(renderer, config.chunk_length * config.renderer.dit.frame_tokens)
    return renderer


def assemble(
    config: EngineConfig,
    text: TextEncoder,
    modules: Mapping[str, nn.Module],
    device: torch.device,
    dtype: torch.dtype,
) -> Model:
    """A model of modules that have their weights: those of `build`."""
    tokenizer, planner, renderer, vae = (modules[name] for name in COMPONENTS)
    assert isinstance(tokenizer, SemanticTokenizer) and isinstance(planner, Planner)
    assert isinstance(renderer, DiTRenderer) and isinstance(vae, (TinyVAE, VAE))
    planned_rows = default_places(device) * (1 + config.sampling.guided)
    pack(planner.blocks, planned_rows)
    planner.head = turned(planner.head, planned_rows)
    pack(renderer, config.chunk_length * config.renderer.dit.frame_tokens)
    pack(vae, 1, seldom="encode")
    enlarger = modules.get("enlarger")
    autoencoder: Autoencoder = vae
    if enlarger is not None:
        assert isinstance(enlarger, Enlarger) and isinstance(vae, TinyVAE)
        pack(enlarger, 1)
        autoencoder = LargeVAE(vae, enlarger)
    if isinstance(vae, VAE):
        vae.channels_last()
    return Model(config, device, dtype, text, tokenizer, planner, renderer, autoencoder)


def with_small_pictures(model: Model) -> Model:
    """The same model, of which only the autoencoder draws large pictures, without them."""
    assert isinstance(model.vae, LargeVAE), "its pictures are large"
    return replace(model, config=model.config.with_picture("small"), vae=model.vae.vae)

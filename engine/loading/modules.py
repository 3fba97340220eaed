"""The modules of a preset, without their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import nn
from torch.overrides import TorchFunctionMode

from engine.config import EngineConfig
from engine.loading.weights import has_component
from engine.perceptual.cogvideox.vae import VAE
from engine.perceptual.mini.enlarger import Enlarger
from engine.perceptual.mini.vae import TinyVAE, TinyVAEConfig
from engine.perceptual.renderer import DiTRenderer
from engine.semantic.planner import Planner
from engine.semantic.tokenizer import SemanticTokenizer
from engine.text.reader import make_reader
from engine.text.small_t5 import SmallT5, SmallT5Config, load_vocabulary

COMPONENTS = ("tokenizer", "planner", "renderer", "vae")  # of every preset; beside: text encoder, enlarger


def build(config: EngineConfig, device: str = "meta", vocabulary: Path | None = None) -> dict[str, nn.Module]:
    """The modules of `COMPONENTS`, and "enlarger" for large pictures.

    On the meta device they have shapes and take no memory.

    Args:
        vocabulary: a weights folder; with it a preset's own text encoder is built too, as "text", and "reader" if it
            has one.
    """
    with torch.device(device), _Unfilled() if device == "meta" else nullcontext():
        modules: dict[str, nn.Module] = {
            "tokenizer": SemanticTokenizer(config.tokenizer),
            "planner": Planner(config.planner),
            "renderer": DiTRenderer(config.renderer),
            "vae": TinyVAE(config.vae) if isinstance(config.vae, TinyVAEConfig) else VAE(config.vae),
        }
        if config.picture == "large":
            assert config.enlarger is not None and isinstance(config.vae, TinyVAEConfig), "the config was checked"
            modules["enlarger"] = Enlarger(config.enlarger, config.vae.decoder_width_4)
        if vocabulary is not None and isinstance(config.text, SmallT5Config):
            modules["text"] = SmallT5(config.text, load_vocabulary(vocabulary))
            # Weights that were trained on other videos than the drawn world have none.
            if config.reader is not None and has_component(vocabulary, "reader"):
                modules["reader"] = make_reader(config.reader, vocabulary)
    return {name: module.requires_grad_(False).eval() for name, module in modules.items()}


# What modules do to the random numbers they begin with; the shape stays.
_SAME_SHAPE = {
    *(getattr(torch.Tensor, name) for name in ("normal_", "uniform_", "mul", "div", "__truediv__", "__rmul__")),
    *(nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, nn.init.zeros_, nn.init.ones_),
    nnf.normalize,
}


class _Unfilled(TorchFunctionMode):
    """Computes no numbers to begin with: on the meta device torch loads its compiler for that, 1.5 s and 150 MB."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.randn:
            return torch.empty(*args, **kwargs)
        if func in _SAME_SHAPE:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
            if len(tensors) == 1:
                return tensors[0]
        return func(*args, **kwargs)


def autocast_dtypes(modules: Mapping[str, nn.Module], dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Types of the weights that autocast would cast at every call, to the same values: COMPONENT.NAME -> type."""
    # The planner's head computes in float32, and its other ends are small.
    parts = {name: modules[name] for name in ("tokenizer", "renderer", "vae", "enlarger") if name in modules}
    parts["planner.blocks"] = modules["planner"].get_submodule("blocks")
    return {
        f"{component}.{name}.{leaf}": dtype
        for component, module in parts.items()
        for name, part in module.named_modules()
        if isinstance(part, (nn.Linear, nn.Conv2d, nn.Conv3d))
        for leaf, _ in part.named_parameters(recurse=False)
    }

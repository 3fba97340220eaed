"""All modules of one preset, filled from a weights folder and ready to compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import nn

from engine.config import EngineConfig
from engine.perceptual.renderer import Renderer
from engine.perceptual.tiny_vae import TinyVAE
from engine.semantic.planner import Planner
from engine.semantic.tokenizer import SemanticTokenizer
from engine.text import SmallT5, load_tokenizer
from engine.weights import load_component

COMPONENTS = ("text", "tokenizer", "planner", "renderer", "vae")
_BF16_CPUS = ("avx512_bf16", "amx_bf16", "bf16")  # names of torch.cpu.get_capabilities


@dataclass(frozen=True, slots=True)
class Model:
    """The stages that generation needs, without gradients, in evaluation mode."""

    config: EngineConfig
    device: torch.device
    dtype: torch.dtype  # of matrix products; norms, tables and the solver stay in float32
    text: SmallT5
    tokenizer: SemanticTokenizer
    planner: Planner
    renderer: Renderer
    vae: TinyVAE

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Everything that runs a stage runs inside."""
        autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        with torch.inference_mode(), autocast:
            yield


def pick_device(name: str) -> torch.device:
    """The device that 'auto', 'cpu' or 'cuda' stands for.

    Raises:
        ValueError: if it is not here.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device {name!r} is not 'auto', 'cpu' or 'cuda'")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' was asked for, but torch finds no CUDA device here: use 'cpu' or 'auto'")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def pick_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware, else float32."""
    if device.type == "cuda":
        return torch.bfloat16
    capabilities = torch.cpu.get_capabilities()
    return torch.bfloat16 if any(capabilities.get(name) for name in _BF16_CPUS) else torch.float32


def use_cores() -> None:
    """One thread a physical core at most, which is fastest. Their number may decide the last bits of a video."""
    torch.set_num_threads(min(torch.get_num_threads(), psutil.cpu_count(logical=False) or torch.get_num_threads()))


def load(
    config: EngineConfig,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    progress: Callable[[float], None] = lambda share: None,
) -> Model:
    """Every stage, with the weights of `folder`.

    Args:
        progress: told the share that is done, 0 to 1.

    Raises:
        ValueError: if a file is missing, cut short or of another model; it names the file and what is wrong.
    """
    text = SmallT5(config.text, load_tokenizer(folder))
    return assemble(config, text, device, dtype, lambda name, module: load_component(folder, name, module), progress)


def assemble(
    config: EngineConfig,
    text: SmallT5,
    device: torch.device,
    dtype: torch.dtype,
    fill: Callable[[str, nn.Module], None],
    progress: Callable[[float], None] = lambda share: None,
) -> Model:
    """A model whose modules `fill`, called with a component's name and module, gives their weights."""
    model = Model(
        config=config,
        device=device,
        dtype=dtype,
        text=text,
        tokenizer=SemanticTokenizer(config.tokenizer),
        planner=Planner(config.planner),
        renderer=Renderer(config.renderer),
        vae=TinyVAE(config.vae),
    )
    for done, name in enumerate(COMPONENTS, start=1):
        module: nn.Module = getattr(model, name)
        fill(name, module)
        module.requires_grad_(False).eval().to(device)
        progress(done / len(COMPONENTS))
    for module in (model.tokenizer, model.renderer, model.vae, model.planner.blocks):
        _lower(module, dtype)
    return model


def _lower(module: nn.Module, dtype: torch.dtype) -> None:
    """Autocast would cast these weights at every call, to the same values."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d)):
            part.to(dtype)

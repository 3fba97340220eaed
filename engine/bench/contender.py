"""What is measured: a preset's model, with random weights where none are shipped, and the machine that it runs on."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from engine.config import EngineConfig
from engine.live.noise import normal
from engine.loading.costs import PROMPT_TOKENS
from engine.loading.model import Model, assemble, build, load, longest_attention, products
from engine.loading.weights import SHIPPED
from engine.runtime.backends import choose as choose_attention
from engine.wire.frames import TextEmbedding

_PACKAGES = ("torch", "diffusers", "transformers", "triton", "xformers", "numpy")
_SEED = 0


class RandomText:
    """Embeddings of a long caption's length; text encoders run once a prompt and are not measured."""

    def __init__(self, config: EngineConfig, device: torch.device) -> None:
        dit = config.renderer.dit
        tokens = min(PROMPT_TOKENS, config.text.planner_tokens)
        self._planner = normal((1, tokens, config.planner.text_dim), "bench planner text").to(device)
        self._renderer = normal((1, dit.text_length, dit.text_dim), "bench renderer text").to(device)

    def embed(self, prompt: str) -> TextEmbedding:
        """The same for every prompt."""
        return TextEmbedding(planner=self._planner, renderer=self._renderer)


def shipped(config: EngineConfig) -> bool:
    """Whether the preset's weights come with the engine."""
    return (SHIPPED / config.name).is_dir()


def subject(config: EngineConfig, device: torch.device, dtype: torch.dtype) -> Model:
    """The preset's model. Raises ValueError as `load` does."""
    if shipped(config):
        return load(config, SHIPPED / config.name, device, dtype)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(_SEED)
        modules = build(config, str(device))
    for name, kind in products(modules, dtype).items():
        component, _, rest = name.partition(".")
        weight = modules[component].get_parameter(rest)
        weight.data = weight.data.to(kind)
    choose_attention(device, dtype, longest_attention(config))
    return assemble(config, RandomText(config, device), modules, device, dtype)


def conditions(argv: Sequence[str], model: Model, command: str = "engine.bench") -> dict[str, Any]:
    """What the figures of a model were measured with, and on what."""
    return conditions_of(command, argv, model.config, model.device, model.dtype)


def conditions_of(
    command: str, argv: Sequence[str], config: EngineConfig, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """The same without a whole model."""
    on_cuda = device.type == "cuda"
    return {
        "command": " ".join([f"python -m {command}", *argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "preset": config.name,
        "weights": "shipped" if shipped(config) else "random",
        "steps": config.steps,
        "dtype": str(dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(device) if on_cuda else processor(),
        "device_type": device.type,
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
    }


def processor() -> str:
    """The CPU's name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of the running code; None outside a clone."""
    words = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        run = subprocess.run(words, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()

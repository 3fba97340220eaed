"""Devices, number formats and weights folders that options of a command stand for."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from engine.config import EngineConfig
from engine.loading.download import HUB_ID, fetch
from engine.loading.hub_names import snapshot_of
from engine.loading.weights import SHIPPED, has_component
from engine.runtime.heap import bound_primitives

# Names of torch.cpu.get_capabilities.
_BF16_CPUS = ("amx_bf16", "bf16")
_BF16_VECTORS, _INTEL_VECTORS = "avx512_bf16", "avx512_fp16"


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
    """bfloat16 where the device multiplies it faster than float32, else that.

    Of vectors, AMD's cores multiply twice as many bfloat16 numbers, Intel's since Sapphire Rapids half as many: there
    84 against 160 GFLOP/s, and a chunk of `mini` took 611 ms instead of 417 (torch 2.13.0, an Intel Xeon without AMX).
    """
    if device.type == "cuda":
        return torch.bfloat16
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        return torch.float32  # also where ATEN_CPU_CAPABILITY says so: bfloat16 is emulated then, and many times slower
    capabilities = torch.cpu.get_capabilities()
    vectors = capabilities.get(_BF16_VECTORS) and not capabilities.get(_INTEL_VECTORS)
    return torch.bfloat16 if vectors or any(capabilities.get(name) for name in _BF16_CPUS) else torch.float32


def autocast(device: torch.device | str) -> torch.autocast:
    """Products in `pick_dtype` of the device: bfloat16 that is only emulated is many times slower than float32."""
    where = torch.device(device)
    dtype = pick_dtype(where)
    return torch.autocast(where.type, dtype, enabled=dtype != torch.float32)


def use_cores() -> None:
    """Limits torch to one thread a physical core, which is fastest. The number may change the last bits of a video."""
    torch.set_num_threads(min(torch.get_num_threads(), psutil.cpu_count(logical=False) or torch.get_num_threads()))


def weights_folder(config: EngineConfig, given: str | None) -> Path:
    """The folder that `--weights` stands for: as given, downloaded from a hub, or shipped with the engine if None.

    Raises:
        ValueError: if the preset comes without weights, or there are none of that name; it says how to get them.
    """
    shipped = SHIPPED / config.name
    if given is not None:
        return fetch(given) if config.published else snapshot_of(Path(given))
    if not shipped.is_dir():
        raise ValueError(
            f"preset {config.name!r} comes without weights: give --weights with a folder of "
            + (
                f"the published files, or --weights {HUB_ID} to download them; docs/PUBLISHED_MODEL.md says what else "
                "it takes"
                if config.published
                else "weights that were trained; docs/TRAINING.md says how"
            )
        )
    return shipped


def place(config: EngineConfig, weights: str | None, device: str) -> tuple[Path, torch.device, torch.dtype]:
    """Weights folder, device and dtype that the options `--weights` and `--device` stand for; raises as these do."""
    use_cores()
    bound_primitives()
    where = pick_device(device)
    return weights_folder(config, weights), where, pick_dtype(where)


def largest_picture(config: EngineConfig, folder: Path) -> str:
    """`large` where the preset and a folder of its weights have large pictures, else `small`."""
    return "large" if config.enlarger is not None and has_component(folder, "enlarger") else "small"

"""Our own layout of weights on disk: a folder with one safetensors file a component and a `config.json`.

Weights are stored in bfloat16, tables and codebooks in float32.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

SHIPPED = Path(__file__).parent / "weights"  # one folder a preset


def save_component(folder: Path, name: str, module: nn.Module) -> None:
    """Write `module` as `folder/name.safetensors`, whole or not at all: parameters in bfloat16, buffers as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {key for key, _ in module.named_parameters()}
    tensors = {
        key: value.detach().to("cpu", torch.bfloat16 if key in parameters else value.dtype).contiguous()
        for key, value in module.state_dict().items()
    }
    partial = folder / f"{name}.safetensors.{os.getpid()}.part"
    try:
        save_file(tensors, partial)
        partial.chmod(0o644)
        os.replace(partial, folder / f"{name}.safetensors")
    finally:
        partial.unlink(missing_ok=True)


def load_component(folder: Path, name: str, module: nn.Module) -> None:
    """Fill `module` from `folder/name.safetensors`, casting to its dtypes.

    Raises:
        ValueError: naming the file and every missing, surplus, mis-shaped or non-finite tensor, with nothing loaded.
    """
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        raise ValueError(f"{path} is missing: give a folder with complete weights, or train the stage that makes it")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is cut short or no safetensors file ({error}): copy or train it again") from error
    expected = module.state_dict()
    faults = [f"{key} is missing" for key in expected.keys() - tensors.keys()]
    faults += [f"{key} is not part of the model" for key in tensors.keys() - expected.keys()]
    for key in expected.keys() & tensors.keys():
        if tensors[key].shape != expected[key].shape:
            faults.append(f"{key} is {list(tensors[key].shape)}, expected {list(expected[key].shape)}")
        elif not torch.isfinite(tensors[key].float()).all():
            faults.append(f"{key} holds numbers that are not finite")
    if faults:
        raise ValueError(f"{path} does not fit: " + "; ".join(sorted(faults)))
    module.load_state_dict(tensors)

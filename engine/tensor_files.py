"""Files of named tensors, read one tensor at a time: safetensors, and PyTorch's `.pt` without running code from it."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

_LFS_POINTER = b"version https://git-lfs"


class TensorFile(Protocol):
    """An open file. Tensors are read when asked for."""

    path: Path
    shapes: dict[str, list[int]]  # of every tensor in it

    def read(self, key: str) -> Tensor:
        """The tensor, on the CPU and in memory of its own or mapped from the file; the caller copies what it keeps."""
        ...


class _Safetensors:
    def __init__(self, path: Path, opened: Any) -> None:
        self.path = path
        self._file = opened
        self.shapes: dict[str, list[int]] = {key: opened.get_slice(key).get_shape() for key in opened.keys()}

    def read(self, key: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(key)
        return tensor


class _Pickle:
    def __init__(self, path: Path, inner: str | None) -> None:
        self.path = path
        # Only the zip format can be mapped; the older one is read whole.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        if inner is not None:
            content = content.get(inner) if isinstance(content, dict) else None
        if not isinstance(content, dict):
            raise ValueError(f"{path} holds no table of tensors{f' under {inner!r}' if inner else ''}: wrong file?")
        self._tensors: dict[str, Tensor] = {key: value for key, value in content.items() if isinstance(value, Tensor)}
        self.shapes = {key: list(value.shape) for key, value in self._tensors.items()}

    def read(self, key: str) -> Tensor:
        return self._tensors[key]


def open_tensors(path: Path, inner: str | None = None) -> TensorFile:
    """Opens a file by its ending.

    Args:
        path: `.safetensors`, or anything else for PyTorch's format.
        inner: key of the table of tensors in a `.pt`, where it is not the whole.

    Raises:
        ValueError: naming the file and the cure, if it is missing, cut short, no such file, or holds code.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: give a folder with complete weights")
    with path.open("rb") as file:
        head = file.read(len(_LFS_POINTER))
    if head == _LFS_POINTER:
        raise ValueError(f"{path} is a pointer of git-lfs, not the file itself: run 'git lfs pull' or download it")
    try:
        return (
            _Safetensors(path, safe_open(path, framework="pt"))
            if path.suffix == ".safetensors"
            else _Pickle(path, inner)
        )
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path):
            raise ValueError(f"{path} holds more than tensors, perhaps code; it was not run and is refused") from error
        raise ValueError(f"{path} is cut short or no PyTorch file: download it again") from error
    except (SafetensorError, OSError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is cut short or damaged ({reason}): download it again") from error


@dataclass(frozen=True, slots=True)
class Source:
    """A file and what its tensors are called in the model."""

    file: TensorFile
    required: dict[str, str]  # key -> COMPONENT.NAME; all must be there
    optional: dict[str, str]  # may be there, likewise
    ignored: tuple[str, ...] = ()  # beginnings of keys that are passed over

    def targets(self) -> dict[str, str]:
        """COMPONENT.NAME -> key, of what the file has."""
        both = self.optional | self.required
        return {both[key]: key for key in self.file.shapes if key in both}


def faults_of(sources: Iterable[Source], shapes: dict[str, list[int]]) -> list[str]:
    """Everything that is missing, surplus or mis-shaped, one text each with file and key.

    Args:
        shapes: of every COMPONENT.NAME of the model.
    """
    faults = []
    for source in sources:
        have, known = source.file.shapes, source.optional | source.required
        faults += [
            f"{source.file.path}: {key} is missing, expected {shapes[source.required[key]]}"
            for key in source.required.keys() - have.keys()
        ]
        for key, shape in have.items():
            if key.startswith(source.ignored) and key not in known:
                continue
            if key not in known:
                faults.append(f"{source.file.path}: {key} {shape} is not part of the model")
            elif shape != shapes[known[key]]:
                faults.append(f"{source.file.path}: {key} is {shape}, expected {shapes[known[key]]}")
    return sorted(faults)


def is_finite(tensor: Tensor) -> bool:
    """Whether no number of it is NaN or infinite; one pass, no memory."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = torch.aminmax(tensor)
    return bool(low.isfinite() & high.isfinite())


def place(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Puts a tensor where the module has a parameter or buffer of that name, which may be on the meta device."""
    owner, _, leaf = name.rpartition(".")
    parent = module.get_submodule(owner)
    is_parameter = leaf in dict(parent.named_parameters(recurse=False))
    setattr(parent, leaf, nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)

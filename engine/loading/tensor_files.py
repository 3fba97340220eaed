"""Files of named tensors, read one tensor at a time: safetensors, and PyTorch's `.pt` without running code from it."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.loading.hub_names import variant_of

_LFS_POINTER = b"version https://git-lfs"
# What stays beside a file while it is downloaded or copied, by name.
_UNFINISHED = (".incomplete", ".part", ".aria2", ".crdownload")
_PIECE = 1 << 19  # numbers checked and copied at a time, so that the second of the two finds them in the cache
_HEADER_ALIGNMENT_BYTES = 8
_DTYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
}  # fmt: skip


class TensorFile(Protocol):
    """An open file. Tensors are read when asked for."""

    path: Path
    shapes: dict[str, list[int]]  # of every tensor in it

    def read(self, key: str) -> Tensor:
        """The tensor, on the CPU and in memory of its own or mapped from the file; the caller copies what it keeps."""
        ...

    def close(self) -> None:
        """Unmaps the file, once nobody holds a tensor of it. What was read from it is no longer counted as used."""
        ...


class _Safetensors:
    def __init__(self, path: Path) -> None:
        self.path = path
        opened: Any = safe_open(path, framework="pt")
        self._file = opened
        self.shapes: dict[str, list[int]] = {key: opened.get_slice(key).get_shape() for key in opened.keys()}

    def read(self, key: str) -> Tensor:
        if self._file is None:
            self._file = safe_open(self.path, framework="pt")
        tensor: Tensor = self._file.get_tensor(key)
        return tensor

    def close(self) -> None:
        self._file = None


class _Pickle:
    def __init__(self, path: Path, inner: str | None) -> None:
        self.path = path
        self._inner = inner
        self._tensors: dict[str, Tensor] | None = self._load()
        self.shapes = {key: list(value.shape) for key, value in self._tensors.items()}

    def _load(self) -> dict[str, Tensor]:
        # Only the zip format can be mapped; the older one is read whole.
        content = _unpickled(self.path)
        if self._inner is not None:
            content = content.get(self._inner) if isinstance(content, dict) else None
        if not isinstance(content, dict):
            where = f" under {self._inner!r}" if self._inner else ""
            raise ValueError(f"{self.path} holds no table of tensors{where}, it is another file: download it again")
        tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
        if odd := [key for key, value in tensors.items() if value.layout != torch.strided or value.is_quantized]:
            raise ValueError(f"{self.path} holds sparse or quantized tensors ({', '.join(odd)}): download it again")
        return tensors

    def read(self, key: str) -> Tensor:
        if self._tensors is None:
            self._tensors = self._load()
        return self._tensors[key]

    def close(self) -> None:
        self._tensors = None


def _unpickled(path: Path) -> Any:
    mapped = zipfile.is_zipfile(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        if mapped:
            raise ValueError(
                f"{path} holds more than tensors, perhaps code; it was not run and is refused: download the file from "
                "its publisher"
            ) from error
        # A name in the older format may be of code, or be cut short.
        raise ValueError(
            f"{path} is cut short or no PyTorch file, or it holds more than tensors, perhaps code, which was not run: "
            "download it again"
        ) from error
    # What the restricted unpickler raises for other bytes than its own depends on where they lead it.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is cut short or damaged ({reason}): download it again") from error


def open_tensors(path: Path, inner: str | None = None) -> TensorFile:
    """Opens a file by its ending.

    Args:
        path: `.safetensors`, or anything else for PyTorch's format; a file of one number format stands for it.
        inner: key of the table of tensors in a `.pt`, where it is not the whole.

    Raises:
        ValueError: naming the file and the cure, if it is missing, cut short, no such file, or holds code.
    """
    path = variant_of(path)
    if not path.is_file():
        if any(path.with_name(path.name + ending).exists() for ending in _UNFINISHED):
            raise ValueError(f"{path} is missing, its download was not finished: download it again")
        raise ValueError(f"{path} is missing: give a folder with complete weights")
    with path.open("rb") as file:
        head = file.read(len(_LFS_POINTER))
    if head == _LFS_POINTER:
        raise ValueError(f"{path} is a pointer of git-lfs, not the file itself: run 'git lfs pull' or download it")
    try:
        return _Safetensors(path) if path.suffix == ".safetensors" else _Pickle(path, inner)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is cut short or damaged ({error}): download it again") from error


@dataclass(frozen=True, slots=True)
class Source:
    """A file, and the names of its tensors in the model."""

    file: TensorFile
    required: dict[str, str]  # key -> COMPONENT.NAME; all must be there
    optional: dict[str, str]  # may be there, likewise
    ignored: tuple[str, ...] = ()  # beginnings of keys that are passed over
    elsewhere: frozenset[str] = frozenset()  # keys of components that are not asked for

    def targets(self) -> dict[str, str]:
        """COMPONENT.NAME -> key, of what the file has."""
        both = self.optional | self.required
        return {both[key]: key for key in self.file.shapes if key in both}


def faults_of(
    sources: Iterable[Source], shapes: Mapping[str, list[int]], dtypes: Mapping[str, torch.dtype]
) -> list[str]:
    """Tensors that are missing, surplus, mis-shaped or of another kind of number, a line each with file and key.

    Args:
        shapes: of every COMPONENT.NAME of the model.
        dtypes: likewise; another floating type may stand for a floating one.
    """
    sources, faults = list(sources), []
    held: set[str] = set()
    for source in sources:
        have, known = source.file.shapes, source.optional | source.required
        held.update(source.targets())
        faults += [
            f"{source.file.path}: {key} is missing, expected {shapes[source.required[key]]}"
            for key in source.required.keys() - have.keys()
        ]
        for key, shape in have.items():
            if key in known:
                dtype, expected = source.file.read(key).dtype, dtypes[known[key]]
                if shape != shapes[known[key]]:
                    faults.append(f"{source.file.path}: {key} is {shape}, expected {shapes[known[key]]}")
                elif dtype.is_floating_point != expected.is_floating_point:
                    faults.append(f"{source.file.path}: {key} is {dtype}, expected a type such as {expected}")
            elif not key.startswith(source.ignored) and key not in source.elsewhere:
                faults.append(f"{source.file.path}: {key} {shape} is not part of the model")
    asked = {target for source in sources for target in source.required.values()}
    faults += [f"no file holds {name}, expected {shapes[name]}" for name in shapes.keys() - held - asked]
    return sorted(faults)


def not_finite(sources: Iterable[Source]) -> list[str]:
    """Tensors of the model that hold NaN or infinities, a line each; reads all of them."""
    return [
        not_finite_text(source, key)
        for source in sources
        for key in source.targets().values()
        if not all(is_finite(piece) for piece in pieces(source.file.read(key)))
    ]


def not_finite_text(source: Source, key: str) -> str:
    """The line about a tensor with NaN or infinities."""
    return f"{source.file.path}: {key} holds NaN or infinite numbers, expected finite ones"


def pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """The numbers of a tensor in their order, cut into flat pieces that fit a processor's cache."""
    parts: tuple[Tensor, ...] = tensor.reshape(-1).split(_PIECE)
    return parts


def is_finite(tensor: Tensor) -> bool:
    """Whether no number of it is NaN or infinite."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # NaN and infinities survive a sum, which is many times faster than looking at each; large numbers may look alike.
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> list[str]:
    """Writes a safetensors file straight from where the tensors lie, such as a mapped file.

    Returns:
        The keys of tensors that hold NaN or infinities, which are written all the same.
    """
    table, end = {}, 0
    for key, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        table[key] = {
            "dtype": _DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]
        }  # fmt: skip
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _HEADER_ALIGNMENT_BYTES)
    bad = []
    with path.open("xb", buffering=0) as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for key, tensor in tensors.items():
            parts = [(is_finite(part), _write(file, part)) for part in pieces(tensor)]
            if not all(finite for finite, _ in parts):
                bad.append(key)
    return bad


def _write(file: Any, part: Tensor) -> int:
    left = memoryview(part.view(torch.uint8).numpy().data)
    written = 0
    # The kernel may take less than it is offered.
    while written < len(left):
        written += file.write(left[written:])
    return written

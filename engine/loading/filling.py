"""Tensors of files into modules, which may be on the meta device: nothing is placed unless all names and shapes fit."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from engine.loading.tensor_files import Source, faults_of, is_finite, not_finite, not_finite_text, pieces
from engine.runtime.fp8 import FP8, place_fp8

_HUGE_PAGE_BYTES = 2 << 20


def shapes_of(components: Mapping[str, nn.Module]) -> dict[str, list[int]]:
    """COMPONENT.NAME -> shape of every parameter and buffer that is saved."""
    return {
        f"{component}.{name}": list(value.shape)
        for component, module in components.items()
        for name, value in module.state_dict().items()
    }


def dtypes_of(components: Mapping[str, nn.Module]) -> dict[str, torch.dtype]:
    """COMPONENT.NAME -> type that the module has it in."""
    return {
        f"{component}.{name}": value.dtype
        for component, module in components.items()
        for name, value in module.state_dict().items()
    }


def check(components: Mapping[str, nn.Module], sources: list[Source]) -> None:
    """Compares what the files hold with what the modules need; reads the numbers only if that does not fit.

    Raises:
        ValueError: naming every missing, surplus or mis-shaped tensor with file, key and what was expected, and then
            also those that hold NaN or infinities.
    """
    shapes, dtypes = shapes_of(components), dtypes_of(components)
    faults = faults_of(sources, shapes, dtypes)
    raise_faults(faults and faults + not_finite(sources))


def owners_of(sources: list[Source]) -> dict[str, tuple[Source, str]]:
    """COMPONENT.NAME -> the file it is read from and its key there: of several files that hold it, the last."""
    return {target: (source, key) for source in sources for target, key in source.targets().items()}


def stored_bytes(owners: Iterable[tuple[Source, str]]) -> int:
    """Bytes of tensors in their files; nothing but the files' tables are read."""
    return sum(source.file.read(key).nbytes for source, key in owners)


def fill(
    components: Mapping[str, nn.Module],
    sources: list[Source],
    device: torch.device,
    dtypes: Mapping[str, torch.dtype] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Fills modules file by file; the host holds one file's pages beside what is already placed.

    Args:
        components: name -> module, filled in place.
        sources: lowest precedence first; closed afterwards.
        device: where the tensors go.
        dtypes: of floating tensors by COMPONENT.NAME; the module's own where it says nothing. The weight of a linear
            layer may be `float8_e4m3fn`: the layer is then replaced by one that stores it so.
        progress: told bytes done and bytes in all, as stored.

    Raises:
        ValueError: naming everything that is missing, surplus, mis-shaped, or not finite.
    """
    check(components, sources)
    own, asked, owners = dtypes_of(components), dtypes or {}, owners_of(sources)
    total, done = stored_bytes(owners.values()), 0
    faults = []
    for source in sources:
        for target, key in source.targets().items():
            if owners[target][0] is not source:
                continue
            component, _, name = target.partition(".")
            tensor = source.file.read(key)
            dtype = asked.get(target, own[target]) if tensor.is_floating_point() else tensor.dtype
            if not _place_checked(components[component], name, tensor, device, dtype):
                faults.append(not_finite_text(source, key))
            done += tensor.nbytes
            progress(done, total)
            # A file stays mapped, and its pages count as memory in use, while a tensor of it is held.
            del tensor
        source.file.close()
    raise_faults(faults)


def _place_checked(module: nn.Module, name: str, tensor: Tensor, device: torch.device, dtype: torch.dtype) -> bool:
    if dtype != FP8:
        kept, finite = take(tensor, device, dtype)
        place(module, name, kept)
        return finite
    place_fp8(module, name, tensor.to(device))
    return is_finite(tensor)


def take(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, bool]:
    """A copy on a device in another type, and whether all numbers are finite; one pass over the source."""
    if device.type == "cpu":
        copy = _fresh(tensor.shape, dtype)
    else:
        copy = torch.empty(tensor.shape, dtype=dtype, device=device)
    finite = True
    for source, target in zip(pieces(tensor), pieces(copy), strict=True):
        finite &= is_finite(source)
        target.copy_(source)
    return copy, finite


def place(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Puts a tensor where the module has a parameter or buffer of that name, which may be on the meta device."""
    owner, _, leaf = name.rpartition(".")
    parent = module.get_submodule(owner)
    is_parameter = leaf in dict(parent.named_parameters(recurse=False))
    setattr(parent, leaf, nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)


def _fresh(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Memory on the host, in huge pages where the system has them: most of loading's time goes into page faults."""
    size = shape.numel() * dtype.itemsize
    if size < _HUGE_PAGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        pass  # a kernel without huge pages
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def raise_faults(faults: list[str]) -> None:
    """ValueError with one fault a line, if there are any."""
    if faults:
        count = f"{len(faults)} faults" if len(faults) > 1 else "a fault"
        raise ValueError(
            f"{count} in the weights; a file is damaged or another model's, get it again:\n" + "\n".join(faults)
        )

"""What ranks must have in common, compared before anything is made."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from engine.config import EngineConfig
from engine.loading.weights import digest
from engine.ranks.group import talking

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("engine", "kernels")
_OURS = "LANDIFF_"  # begins the names of our environment variables


class RanksDifferError(ValueError):
    """Ranks were started with different settings; every rank raises the same."""


def model_facts(config: EngineConfig, folder: Path, device: torch.device, dtype: torch.dtype) -> dict[str, object]:
    """What decides a model's numbers, by name: version, device, sizes, weights, and our environment variables."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "version of the engine": _code(),
        "version of torch": torch.__version__,
        "device": gpu,
        "dtype": dtype,
        **dict(_flat("", asdict(config))),
        "weights": digest(folder),
        **{name: value for name, value in os.environ.items() if name.startswith(_OURS)},
    }


def agree(facts: Mapping[str, object]) -> None:
    """Compares facts with those of rank 0.

    Raises:
        RanksDifferError: on every rank, with the name and both values of the first fact that differs.
        RankError: another rank is gone.
    """
    said: list[Any] = [None] * dist.get_world_size()
    with talking(dist.get_rank()):
        dist.all_gather_object(said, {name: str(value) for name, value in facts.items()})
    for rank, own in enumerate(said):
        for name in {**said[0], **own}:
            first, other = said[0].get(name), own.get(name)
            if first != other:
                raise RanksDifferError(
                    f"ranks differ in {name}: {first} on rank 0, {other} on rank {rank}; start all alike"
                )


@cache
def _code() -> str:
    """Tells versions of this code apart."""
    hashed = hashlib.blake2b(digest_size=8)
    for path in sorted(path for package in _PACKAGES for path in (_ROOT / package).rglob("*.py")):
        hashed.update(f"{path.relative_to(_ROOT)}\n".encode() + path.read_bytes())
    return hashed.hexdigest()


def _flat(name: str, values: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """The values of nested records, by their names with dots between them."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(f"{name}{key}.", value)
        else:
            yield f"{name}{key}", value

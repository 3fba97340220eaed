"""Trees of tensors: records, sequences and dicts of them, at any depth."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")

_FIELDS: dict[type, tuple[str, ...]] = {}  # names of each type's fields: asking a record for them takes long


def leaves(tree: Any) -> list[Tensor]:
    """The tensors, in their order."""
    found: list[Tensor] = []
    _collect(tree, found)
    return found


def unflatten(like: T, tensors: Iterator[Tensor]) -> T:
    """A tree like the given one with other tensors, taken in the order of `leaves`."""
    tree: Any = like
    if isinstance(like, Tensor):
        tree = next(tensors)
    elif names := _fields(type(like)):
        tree = type(like)(*(unflatten(getattr(like, name), tensors) for name in names))
    elif isinstance(like, dict):
        tree = {key: unflatten(value, tensors) for key, value in like.items()}
    elif isinstance(like, (list, tuple)):
        tree = type(like)([unflatten(branch, tensors) for branch in like])
    return tree  # type: ignore[no-any-return]


def _collect(tree: Any, found: list[Tensor]) -> None:
    if isinstance(tree, Tensor):
        found.append(tree)
    elif names := _fields(type(tree)):
        for name in names:
            _collect(getattr(tree, name), found)
    elif isinstance(tree, dict):
        for branch in tree.values():
            _collect(branch, found)
    elif isinstance(tree, (list, tuple)):
        for branch in tree:
            _collect(branch, found)


def _fields(kind: type) -> tuple[str, ...]:
    """Names of a record's fields; none for other types."""
    if kind not in _FIELDS:
        fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
        _FIELDS[kind] = tuple(field.name for field in fields)
    return _FIELDS[kind]

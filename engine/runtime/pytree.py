"""Trees of tensors: records, sequences and dicts of them, however deep."""

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


def planted(tree: T, tensors: Iterator[Tensor]) -> T:
    """The same tree with other tensors, taken in the order of `leaves`."""
    grown: Any = tree
    if isinstance(tree, Tensor):
        grown = next(tensors)
    elif names := _fields(type(tree)):
        grown = type(tree)(*(planted(getattr(tree, name), tensors) for name in names))
    elif isinstance(tree, dict):
        grown = {key: planted(value, tensors) for key, value in tree.items()}
    elif isinstance(tree, (list, tuple)):
        grown = type(tree)([planted(branch, tensors) for branch in tree])
    return grown  # type: ignore[no-any-return]


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

"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with the path of a neighbour of `path` and renames that when complete; a kill leaves no half."""
    partial = path.with_name(path.name + f".{os.getpid()}.part")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check_target(path: Path, suffix: str) -> None:
    """Raises ValueError if a file to be written has another suffix or its folder does not exist."""
    if path.suffix.lower() != suffix:
        raise ValueError(f"{path} does not end in {suffix}, the only format that is written")
    if not path.parent.is_dir():
        raise ValueError(f"the folder {path.parent} does not exist: make it first")

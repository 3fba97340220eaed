"""Golden cases of the folder beside, by name."""

from __future__ import annotations

from pathlib import Path

from engine.published.case import TOLERANCE, Case, load_case, relative_error

__all__ = ["FOLDER", "TOLERANCE", "Golden", "load", "relative_error"]

FOLDER = Path(__file__).parent / "data" / "golden"
Golden = Case


def load(name: str) -> Golden:
    """Reads a case of the folder by its name without ending."""
    return load_case(FOLDER / name)

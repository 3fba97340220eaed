"""Measurements of a device, kept on disk, so that every later process on it decides alike.

A choice that two processes made differently would change the last bits of a video. One JSON file a subject, in the
folder that `LANDIFF_CACHE` names, else in the user's cache folder; entries belong to a device and the versions of what
compiles for it.
"""

import functools
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

FOLDER = "LANDIFF_CACHE"  # environment variable: where files are kept

logger = logging.getLogger(__name__)


def folder() -> Path:
    """The folder of the files; it need not exist."""
    chosen = os.environ.get(FOLDER)
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "landiff-live"


@functools.cache
def device_key(device: torch.device) -> str:
    """Names the device's model and what compiles for it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    try:
        compiler = version("triton")
    except PackageNotFoundError:
        compiler = "none"
    return f"{name}, torch {torch.__version__}, triton {compiler}"


def recall(subject: str, device: torch.device) -> dict[str, Any]:
    """The entries about a subject for this device; empty if there are none or the file cannot be read."""
    entries = _read(folder() / f"{subject}.json").get(device_key(device), {})
    return entries if isinstance(entries, dict) else {}


def remember(subject: str, device: torch.device, entries: Mapping[str, Any]) -> Path | None:
    """Adds to what is kept about a subject for this device.

    Returns:
        The file, replaced as a whole; None, with a warning, where it cannot be written.
    """
    path = folder() / f"{subject}.json"
    everything = _read(path)
    everything[device_key(device)] = recall(subject, device) | dict(entries)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False) as file:
            json.dump(everything, file, indent=2, sort_keys=True)
        os.replace(file.name, path)
    except OSError as error:
        logger.warning("%s cannot be written, so the next process will measure again: %s", path, error)
        return None
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read and is passed over: %s", path, error)
        return {}
    return found if isinstance(found, dict) else {}

"""The engine: prompts to video. Importing the package imports nothing else; what is taken from it imports torch."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def load(
    preset: str, weights: str | None = None, device: str = "auto", steps: int | None = None, picture: str = "small"
) -> Any:
    """A generator of endless videos: `load("mini").stream("a red ball", seed=0)` yields RGB frames [H, W, 3] uint8.

    The stream's `change(prompt)` gives it a new prompt at any time, from the next chunk on.

    Args:
        weights: folder or hub id; the preset's own if None.
        device: "auto", "cpu" or "cuda".
        steps: denoising steps a chunk; the preset's own if None.
        picture: "small", or "large": twice as wide, high and many frames a second, of preset "mini".

    Raises:
        ValueError: if there is no such preset, picture, device or folder, or a file of weights is damaged.
    """
    return import_module("engine.video.stream").VideoGenerator.load(preset, weights, device, steps, picture)


def __getattr__(name: str) -> Any:
    """`LanDiffPipeline`, a callable in the habit of diffusers: see `engine.video.pipeline`."""
    if name != "LanDiffPipeline":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("engine.video.pipeline").LanDiffPipeline

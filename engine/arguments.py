"""What words of a command line must be, for every command; nothing heavy is imported for it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from engine.wire.messages import SEED_LIMIT

T = TypeVar("T")

MOST_STEPS = 1000


def checked(check: Callable[[str], T]) -> Callable[[str], T]:
    """A converter whose ValueError argparse shows as it is."""

    def convert(text: str) -> T:
        try:
            return check(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def picture(text: str) -> Path:
    """Where a picture of figures goes. Raises ValueError without matplotlib, which only those need."""
    if find_spec("matplotlib") is None:
        raise ValueError(f"{text} cannot be drawn without matplotlib: pip install -e '.[train]'")
    return Path(text)


def seconds(text: str) -> float:
    """Raises ValueError unless above 0."""
    return _above(text, "seconds")


def gigabytes(text: str) -> float:
    """Raises ValueError unless above 0."""
    return _above(text, "gigabytes")


def reach(text: str) -> float:
    """Of reused layers (`EngineConfig.reuse`). Raises ValueError unless 0 or above."""
    number = _number(text)
    if not 0 <= number < math.inf:
        raise ValueError(f"{text!r} is not a number from 0 on")
    return number


def seed(text: str) -> int:
    """Raises ValueError unless it is one that messages can carry."""
    if not text.isascii() or not text.isdigit() or int(text) >= SEED_LIMIT:
        raise ValueError(f"{text!r} is not a seed, 0 to {SEED_LIMIT - 1}")
    return int(text)


def steps(text: str) -> int:
    """Denoising steps of a hop. Raises ValueError unless 1 to MOST_STEPS."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MOST_STEPS:
        raise ValueError(f"{text!r} is not a number of steps, 1 to {MOST_STEPS}")
    return int(text)


def add_rendering(options: argparse.ArgumentParser) -> None:
    """How a hop is rendered: `--steps`, `--reuse` and `--memory`."""
    options.add_argument("--steps", type=checked(steps), metavar="N", help="denoising steps a hop (the preset's own)")
    options.add_argument(
        "--reuse",
        type=checked(reach),
        default=0.0,
        metavar="REACH",
        help="spare layers of a long run, approximately: how far the time embedding may move meanwhile, such as 0.4",
    )
    options.add_argument("--memory", type=checked(gigabytes), metavar="GB", help="most of the device's memory to use")


def _above(text: str, unit: str) -> float:
    number = _number(text)
    if not 0 < number < math.inf:
        raise ValueError(f"{text!r} is not a number of {unit} above 0")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan

"""Options that several commands share, and checks of their values. Imports nothing heavy."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from engine.wire.settings import MOST_STEPS, PICTURES, SEED_LIMIT

MOST = 1e9  # of seconds, or of gigabytes

T = TypeVar("T")


def checked(check: Callable[[str], T]) -> Callable[[str], T]:
    """A converter whose ValueError argparse shows as it is."""

    def convert(text: str) -> T:
        try:
            return check(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def seconds(text: str) -> float:
    """Raises ValueError unless above 0."""
    return _above(text, "seconds")


def gigabytes(text: str) -> float:
    """Raises ValueError unless above 0."""
    return _above(text, "gigabytes")


def folder(text: str) -> Path:
    """A folder, made if it is not there. Raises ValueError where files cannot be written to it."""
    path = Path(text)
    probe = path / f".{os.getpid()}.probe"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{text!r} is no folder that can be written ({error.strerror}): give another") from error
    return path


def seed(text: str) -> int:
    """Raises ValueError unless it is one that messages can carry."""
    if not text.isascii() or not text.isdigit() or int(text) >= SEED_LIMIT:
        raise ValueError(f"{text!r} is not a seed, 0 to {SEED_LIMIT - 1}")
    return int(text)


def steps(text: str) -> int:
    """Denoising steps of a chunk. Raises ValueError unless 1 to MOST_STEPS."""
    return whole("steps", int(text) if text.isascii() and text.isdigit() else text, MOST_STEPS)


def ranks(text: str) -> int:
    """Processes that make one video. Raises ValueError unless 1 or more."""
    return whole("ranks", int(text) if text.isascii() and text.isdigit() else text)


def whole(name: str, value: object, most: int | None = None) -> int:
    """`value`, which is called `name`. Raises ValueError unless it is a whole number, 1 to `most` if that is given."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (most is not None and value > most):
        raise ValueError(f"{name} {value!r} is not a whole number, 1 {'or more' if most is None else f'to {most}'}")
    return value


def add_model(options: argparse.ArgumentParser) -> None:
    """Options that choose the model: `--preset`, and those of `add_weights`."""
    options.add_argument("--preset", default="mini", help="which model (default: mini)")
    add_weights(options)


def add_weights(options: argparse.ArgumentParser) -> None:
    """Options that say where weights are and where to compute: `--weights` and `--device`."""
    options.add_argument("--weights", metavar="DIR|HUB_ID", help="weights to use instead of the preset's own")
    options.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")


def add_rendering(options: argparse.ArgumentParser) -> None:
    """Options of rendering: `--steps` and `--memory`."""
    options.add_argument(
        "--steps", type=checked(steps), metavar="N", help="denoising steps a chunk (default: the preset's own)"
    )
    add_memory(options)


def add_ranks(options: argparse.ArgumentParser, otherwise: str = "one") -> None:
    """The option `--ranks`; `otherwise` says what goes without it."""
    told = f"make it with N processes of this machine, a GPU each (default: {otherwise})"
    options.add_argument("--ranks", type=checked(ranks), metavar="N", help=told)


def add_live_rendering(options: argparse.ArgumentParser) -> None:
    """The same for a server, which may choose the steps: None is `auto`."""
    options.add_argument(
        "--steps",
        type=checked(lambda text: None if text == "auto" else steps(text)),
        metavar="N|auto",
        help="denoising steps a chunk; auto (the default) takes fewer than the preset's own where time is short",
    )
    add_memory(options)


def add_picture(options: argparse.ArgumentParser) -> None:
    """The option `--picture`."""
    told = "size of pictures: large is twice as wide, high and many, of preset mini (default: small)"
    options.add_argument("--picture", choices=PICTURES, default="small", help=told)


def add_live_picture(options: argparse.ArgumentParser) -> None:
    """The same for a server, which may choose it: None is `auto`."""
    options.add_argument(
        "--picture",
        type=checked(_live_picture),
        default="small",
        metavar="auto|large|small",
        help="size of pictures of preset mini (default: small); auto takes the large ones where there is time for them",
    )


def add_memory(options: argparse.ArgumentParser) -> None:
    """The option `--memory`."""
    options.add_argument("--memory", type=checked(gigabytes), metavar="GB", help="most of the device's memory to use")


def _live_picture(text: str) -> str | None:
    if text not in ("auto", *PICTURES):
        raise ValueError(f"{text!r} is not auto, {', '.join(PICTURES)}")
    return None if text == "auto" else text


def _above(text: str, unit: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= MOST:
        raise ValueError(f"{text!r} is not a number of {unit} above 0, {MOST:.0e} at most")
    return number

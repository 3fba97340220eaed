"""Plain values that come out of files, which may be damaged or made up: each is what it should be, or a ValueError."""

from __future__ import annotations

from engine.wire.prompt import check_prompt
from engine.wire.settings import MOST_STEPS, SEED_LIMIT

LIMIT = 1 << 62  # of numbers: a little can be added to them
THREADS_LIMIT = 1 << 10


def whole(value: object, least: int = 0, limit: int = LIMIT) -> int:
    """A whole number from `least` on and below `limit`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < limit:
        raise ValueError(f"{value!r} is no number from {least} on and below {limit}")
    return value


def seed(value: object) -> int:
    """The seed of a video."""
    return whole(value, 0, SEED_LIMIT)


def steps(value: object) -> int:
    """Denoising steps of a chunk."""
    return whole(value, 1, MOST_STEPS + 1)


def threads(value: object) -> int:
    """How many threads compute: OpenMP ends a process that cannot have as many as it asks for."""
    return whole(value, 1, THREADS_LIMIT)


def text(value: object) -> str:
    """Any text, but for halves of surrogate pairs, which JSON can hold and no file."""
    if not isinstance(value, str) or any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{value!r} is no text")
    return value


def prompt(value: object) -> str:
    """A prompt as it was accepted."""
    if check_prompt(text(value)) != value:
        raise ValueError(f"{value!r} is no prompt")
    return str(value)


def one_line(error: Exception) -> str:
    """The first line of what an error says, or its kind; names from a file, which it repeats, may hold anything."""
    said = "".join(character if character.isprintable() else " " for character in str(error).strip().partition("\n")[0])
    return said or type(error).__name__


def file_name(value: object) -> str:
    """A file beside the one that names it: it must not lead elsewhere."""
    name = text(value)
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} is no name of a file beside it")
    return name

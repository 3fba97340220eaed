"""Options of `server.py` about its engines: how many, and whether one waits. Imports nothing heavy."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, BooleanOptionalAction, Namespace
from typing import TYPE_CHECKING

from engine.wire.ring import MOST_CHANNELS

if TYPE_CHECKING:
    from streaming.engines.process import SupervisorConfig

SPARE_S = 5.0  # from the beginning of an engine to that of its spare, at least


def add_engines(options: ArgumentParser) -> None:
    """Adds the options."""
    options.add_argument(
        "--engines",
        type=number,
        default=1,
        metavar="N",
        help="engine processes, each on a GPU of its own where there are several; channels go to the least loaded, and "
        "to another when theirs ends (default: 1)",
    )
    options.add_argument(
        "--spare-engine",
        action=BooleanOptionalAction,
        help="keep a second engine process warm, which goes on when the first one ends (default: with preset mini and "
        "one engine)",
    )


def number(text: str) -> int:
    """Raises ArgumentTypeError unless it is a number of engines that channels can be shared among."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MOST_CHANNELS:
        raise ArgumentTypeError(f"{text!r} is no number of engines: give 1 to {MOST_CHANNELS}, the most channels")
    return int(text)


def supervisor_config(arguments: Namespace) -> SupervisorConfig:
    """Settings of the supervisors from the command line."""
    from streaming.engines.process import SupervisorConfig

    alone = arguments.preset == "mini" and arguments.engines == 1
    spare = alone if arguments.spare_engine is None else arguments.spare_engine
    return SupervisorConfig(spare_s=SPARE_S if spare else None)

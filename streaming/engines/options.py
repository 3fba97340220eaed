"""Options of `server.py` about its engines: how many, where, and whether one waits. Imports nothing heavy."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, BooleanOptionalAction, Namespace
from typing import TYPE_CHECKING

from engine.wire.ring import MOST_CHANNELS

if TYPE_CHECKING:
    from engine.wire.settings import EngineSettings
    from streaming.engines.process import EngineTarget, LocalEngines, SupervisorConfig
    from streaming.engines.ray_cluster import RayCluster

SPARE_S = 5.0  # from the beginning of an engine to that of its spare, at least


def add_engines(options: ArgumentParser) -> None:
    """Adds the options."""
    options.add_argument(
        "--engines",
        type=number,
        metavar="N",
        help="engine processes, each on a GPU of its own where there are several; channels go to the least loaded, and "
        "to another when theirs ends (default: 1; with --ray as many as the cluster has room for)",
    )
    options.add_argument(
        "--ray",
        metavar="HOST:PORT|auto",
        help="run the engines on the nodes of this Ray cluster, which this machine has joined",
    )
    options.add_argument(
        "--spare-engine",
        action=BooleanOptionalAction,
        help="keep a second engine process warm, which goes on when the first one ends (default: with preset mini and "
        "one engine of one rank; not with --ray)",
    )


def number(text: str) -> int:
    """Raises ArgumentTypeError unless it is a number of engines that channels can be shared among."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MOST_CHANNELS:
        raise ArgumentTypeError(f"{text!r} is no number of engines: give 1 to {MOST_CHANNELS}, the most channels")
    return int(text)


def supervisor_config(arguments: Namespace) -> SupervisorConfig:
    """Settings of the supervisors from the command line. Raises ValueError for options that exclude each other."""
    from streaming.engines.process import SupervisorConfig

    if arguments.ray is not None and arguments.spare_engine:
        raise ValueError("--spare-engine is for engines of this machine; those of --ray stand in for each other")
    alone = arguments.engines in (None, 1) and arguments.ray is None and arguments.ranks in (None, 1)
    if arguments.ray is not None and arguments.ranks not in (None, 1):
        raise ValueError("--ranks is for engines of this machine: leave out --ranks or --ray")
    spare = arguments.preset == "mini" and alone if arguments.spare_engine is None else arguments.spare_engine
    return SupervisorConfig(spare_s=SPARE_S if spare else None)


async def places(
    arguments: Namespace, target: EngineTarget, config: SupervisorConfig, settings: EngineSettings
) -> LocalEngines | RayCluster:
    """Where engines run; the first one, with these settings, begins at once if that is here.

    Raises ValueError, in one line, where they cannot.
    """
    from streaming.engines.process import LocalEngines

    if arguments.ray is None:
        engines = LocalEngines(target, config, arguments.engines or 1)
        engines.begin_early(settings)
        return engines
    from streaming.engines.ray_cluster import RayCluster, name_of

    cluster = RayCluster(name_of(target), arguments.device, config, arguments.engines or MOST_CHANNELS)
    await cluster.connect(arguments.ray)
    return cluster

"""`python server.py`: arguments to settings, engine processes under their supervisors, and the HTTP server beside it.

Heavy imports happen inside functions: the engine process imports this file too, and needs none of the server's.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from importlib import import_module
from multiprocessing import connection
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import TYPE_CHECKING

from engine.arguments import add_live_picture, add_live_rendering, add_ranks, checked, folder, gigabytes, seed
from engine.wire.priority import go_first, in_background
from engine.wire.prompt import check_prompt
from engine.wire.ring import RingWriter
from engine.wire.settings import ChannelSettings, EngineSettings
from engine.wire.startup import LOG_LEVELS, follow_parent, log_from
from engine.wire.state_folder import remove_abandoned, taken
from engine.wire.state_memory import StateMemory
from streaming.engines.options import add_engines, places, supervisor_config
from streaming.http import tls
from streaming.http.listening import listen
from streaming.http.options import add_access, app_config

if TYPE_CHECKING:
    from engine.wire.kept_state import KeptState
    from streaming.engines.pool import EnginePool
    from streaming.engines.process import EngineTarget, LocalEngines, SupervisorConfig
    from streaming.engines.ray_cluster import RayCluster
    from streaming.engines.supervisor import Engines
    from streaming.media.ice import IceAgent
    from streaming.media.metrics import Metrics

# Words after `landiff-live` and the module whose command line they begin; others are commands of `python -m engine`.
COMMANDS = {
    "train": "engine.training.__main__",
    "bench": "engine.bench.__main__",
    "bench-stream": "streaming.bench.__main__",
    "bench-kernels": "kernels.bench",
    "doctor": "streaming.doctor.__main__",
}
CHANNEL = "main"
SCRATCH = "landiff-"  # begins the name of a state folder that goes when the server ends
PROMPT = "a red ball moves slowly to the right over green hills by day"

log = logging.getLogger("server")


def console(argv: Sequence[str] | None = None) -> int:
    """`landiff-live`: the server, or the command that the first word names; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0].startswith("-"):
        return main(words)
    module = COMMANDS[words.pop(0)] if words[0] in COMMANDS else "engine.__main__"
    return int(import_module(module).main(words))


def run_engine(settings: EngineSettings, ring: RingWriter, control: connection.Connection, memory: StateMemory) -> None:
    """Runs in the engine process."""
    # What is imported stays: to look through it again and again would be a tenth of the start. `serve` goes on with it.
    gc.disable()
    follow_parent()
    log_from(settings.log_level)
    if settings.spare:
        # Some seconds of computing, which the engine that serves should not miss.
        in_background(import_module, "engine.live.process")
    from engine.live.process import serve

    serve(settings, ring, control, memory)


def main(argv: Sequence[str] | None = None, target: EngineTarget = run_engine) -> int:
    """Runs the server until a signal; returns the exit status: 1 the engine cannot start, 2 bad arguments."""
    arguments = parse(parser(), argv)
    log_from(arguments.log_level)
    go_first()
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    try:
        if arguments.tls_cert is not None:
            tls.context(arguments.tls_cert, arguments.tls_key)
        listener = listen(arguments.host, arguments.port)
    except ValueError as error:
        log.error("%s", error)
        return 2
    except OSError as error:
        log.error("cannot listen on %s port %d: %s", arguments.host, arguments.port, error.strerror)
        return 2
    remove_abandoned(Path(gettempdir()).glob(f"{SCRATCH}*"))
    with listener:
        return asyncio.run(_main(arguments, listener, target))


async def _main(arguments: argparse.Namespace, listener: socket.socket, target: EngineTarget) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    with TemporaryDirectory(prefix=SCRATCH) as scratch:
        if arguments.ray is None:
            # Other machines do not see it.
            arguments.state = arguments.state or scratch
        return await run(arguments, listener, target, stop)


async def run(arguments: argparse.Namespace, listener: socket.socket, target: EngineTarget, stop: asyncio.Event) -> int:
    """Serves until `stop` is set, then ends everything in order; returns the exit status."""
    async with AsyncExitStack() as stack:
        try:
            left = (
                stack.enter_context(taken(Path(arguments.state), arguments.preset, arguments.picture))
                if arguments.state
                else []
            )
            settings = engine_settings(arguments, left)
            config = supervisor_config(arguments)
            engines = await places(arguments, target, config, settings)
        except ValueError as error:
            log.error("%s", error)
            return 2
        stack.push_async_callback(engines.close)
        return await _serve(arguments, listener, engines, config, settings, stop, left)


async def _serve(
    arguments: argparse.Namespace,
    listener: socket.socket,
    engines: LocalEngines | RayCluster,
    config: SupervisorConfig,
    settings: EngineSettings,
    stop: asyncio.Event,
    left: Sequence[KeptState],
) -> int:
    """Serves, and goes on with the channels that another server left."""
    # An engine loads meanwhile.
    from streaming.channels.registry import Channels
    from streaming.engines.pool import EnginePool
    from streaming.http.app import HttpServer, create_app
    from streaming.http.state import ServerState
    from streaming.media import garbage, rtp_hooks
    from streaming.media.metrics import Metrics
    from streaming.media.push import Pushes
    from streaming.media.reader import Readers
    from streaming.media.recordings import Recordings
    from streaming.media.viewer import ViewerConfig
    from streaming.media.viewers import Viewers

    ice = await _ice(arguments)
    if ice is None:
        return 2
    await rtp_hooks.self_check()
    rtp_hooks.notice_dead_peers()
    metrics = Metrics()
    pool = EnginePool(settings, metrics, engines.places)
    limits = ViewerConfig(most=arguments.max_viewers, most_an_address=arguments.max_viewers_per_address)
    viewers, readers = Viewers(metrics, limits, ice), Readers(metrics)
    pushes = Pushes(metrics, ice=ice)
    recordings = Recordings(arguments.recordings, arguments.recordings_gb) if arguments.recordings else None
    channels = Channels(pool, metrics)
    channels.begin(CHANNEL, ChannelSettings(arguments.prompt, arguments.seed, arguments.steps), left)
    state = ServerState(pool, channels, viewers, readers, pushes, recordings, metrics, ice, stop)
    context = tls.context(arguments.tls_cert, arguments.tls_key) if arguments.tls_cert else None
    http = HttpServer(create_app(state, app_config(arguments)), context)
    supervision_of = _supervise(engines, pool, metrics, config, stop)
    async with asyncio.TaskGroup() as group:
        supervision = group.create_task(supervision_of, name="engines")
        air = group.create_task(channels.run(), name="channels")
        group.create_task(http.serve([listener]), name="http")
        lag = group.create_task(metrics.watch_loop(), name="loop lag")
        collecting = group.create_task(garbage.collect(), name="garbage")
        # What start-up made lives on: without it a full collection, which stops every viewer, is short.
        gc.freeze()
        host, port = listener.getsockname()[:2]
        log.info("%s://%s:%d%s/", "https" if context else "http", host, port, arguments.root_path)
        try:
            await stop.wait()
        finally:
            # Those who receive before the rest: each says goodbye while its connection still works.
            await state.end_receivers()
            for task in (air, supervision, lag, collecting):
                task.cancel()
            http.should_exit = True
    return 0 if supervision.cancelled() else supervision.result()


async def _ice(arguments: argparse.Namespace) -> IceAgent | None:
    """What gathers candidates for viewers; None, and one line in the log, where it can never work."""
    from streaming.media import network
    from streaming.media.ice import IceAgent
    from streaming.media.ice_requests import IceServerError

    try:
        ice = IceAgent(network.from_arguments(arguments))
        await ice.check()
    except (ValueError, IceServerError) as error:
        log.error("%s", error)
        return None
    return ice


async def _supervise(
    engines: Engines, pool: EnginePool, metrics: Metrics, config: SupervisorConfig, stop: asyncio.Event
) -> int:
    """Keeps the engines running; stops the server when none can start at all."""
    from streaming.engines.supervisor import EngineError, Supervisor, supervise

    try:
        await supervise(engines, pool, lambda link: Supervisor(engines, link, pool, metrics, config))
        return 0
    except EngineError as error:
        log.error("%s", error)
    # At last: it has this task cancelled.
    stop.set()
    return 1


def engine_settings(arguments: argparse.Namespace, left: Sequence[KeptState] = ()) -> EngineSettings:
    """Settings of the engine process from the command line, and from channels that another server left."""
    model = arguments.preset, arguments.weights, arguments.device, arguments.memory
    settings = EngineSettings(*model, arguments.log_level, arguments.state)
    picture = left[0].picture if left else arguments.picture
    # Where channels are left, who watches waits already.
    return replace(settings, picture=picture, ranks=arguments.ranks or 1, warm_up=not left)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    from streaming.media import network

    options = argparse.ArgumentParser(prog="server.py", description="Streams an endless generated video to browsers.")
    options.add_argument("--preset", choices=("mini", "landiff"), default="mini", help="which model (default: mini)")
    options.add_argument("--weights", metavar="DIR|HUB_ID", help="checkpoint to use instead of the preset's own")
    options.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    add_live_rendering(options)
    add_live_picture(options)
    add_ranks(options)
    options.add_argument("--host", default="127.0.0.1", help="HTTP address to listen on (default: 127.0.0.1)")
    options.add_argument(
        "--port", type=checked(_port), default=8000, help="HTTP port (default: 8000; 0 takes a free one)"
    )
    network.add_options(options)
    options.add_argument(
        "--state", metavar="DIR", help="keep journals and channels there, and go on with them (default: a new one)"
    )
    add_engines(options)
    options.add_argument(
        "--recordings", type=checked(folder), metavar="DIR", help="keep recordings there (default: none are kept)"
    )
    options.add_argument(
        "--recordings-gb",
        type=checked(gigabytes),
        default=10.0,
        metavar="N",
        help="most that all recordings may take, in 10^9 bytes (default: 10)",
    )
    options.add_argument("--prompt", type=checked(check_prompt), default=PROMPT, help="what the video begins with")
    options.add_argument("--seed", type=checked(seed), default=0, help="same seed, same video (default: 0)")
    options.add_argument(
        "--log-level", choices=LOG_LEVELS, default="info", help="least serious messages to log (default: info)"
    )
    add_access(options)
    return options


def parse(options: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The values of a command line; where they cannot work together it ends the process with status 2 and one line."""
    from streaming.media import network

    arguments = options.parse_args(argv)
    if (arguments.tls_cert is None) != (arguments.tls_key is None):
        options.error("--tls-cert and --tls-key belong together: give both")
    try:
        network.from_arguments(arguments)
    except ValueError as error:
        options.error(str(error))
    return arguments


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise ValueError(f"{text!r} is not a port, 0 to 65535")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())

"""Starts, watches and restarts an engine's process; plugs each one into the engine's link.

A process that ends, however it ends, is named in the log and to the link; the next one goes on where it stopped. It is
there already if there is a spare: a process that has loaded the model and waits. Where there is none, other engines of
the pool take the channels.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from engine.wire.messages import FromEngine, Ready, ToEngine
from engine.wire.settings import EngineSettings
from streaming.engines.link import EngineLink, FrameSource
from streaming.engines.pool import EnginePool
from streaming.engines.process import SupervisorConfig
from streaming.media.metrics import Metrics

POLL_S = 0.25  # between two looks at a process
SPARE_LIMIT_S = 300.0  # between two tries to begin a spare

log = logging.getLogger(__name__)


class EngineError(Exception):
    """The engine cannot start; the text is one line that says why."""


class RunningEngine(Protocol):
    """A process, wherever it runs. It is a spare until somebody takes its messages."""

    @property
    def name(self) -> str:
        """Its number, and where it is."""
        ...

    @property
    def ring(self) -> FrameSource: ...

    @property
    def ready(self) -> Ready | None:
        """What a spare said when it was warm."""
        ...

    @property
    def ended(self) -> bool: ...

    def send(self, message: ToEngine) -> None:
        """Sends without blocking; nothing after `stop`. An engine that leaves too many messages unread is ended."""
        ...

    def take(self, receive: Callable[[FromEngine], None]) -> None:
        """`receive` gets its messages from now on, and that it is warm; a ValueError from it ends the process."""
        ...

    def hurry(self) -> bool:
        """A spare that is not warm yet is wanted. False where it cannot get our own priority."""
        ...

    def silent_s(self) -> float:
        """Seconds since the process was heard last; 0 before its first word."""
        ...

    def end(self, why: str) -> None:
        """Kills the process; `wait` will say why."""
        ...

    async def wait(self) -> str:
        """Waits for the end of the process and says in one line why it ended."""
        ...

    @property
    def killed(self) -> bool:
        """Whether it was ended from outside, as by the kernel or with its machine; known behind `wait`."""
        ...

    async def stop(self) -> None:
        """Asks the process to stop, kills it when it does not, and frees everything; to be called once."""
        ...


class Engines(Protocol):
    """Where engines can run."""

    async def begin(self, settings: EngineSettings) -> RunningEngine:
        """A new process. Raises OSError, with the reason, where none can begin."""
        ...

    async def watch(self, pool: EnginePool, begin: Callable[[EngineLink], object]) -> None:
        """Adds engines for places that come, and has each begun; has those drained whose place goes."""
        ...

    async def close(self) -> None:
        """When no process is left."""
        ...


class Supervisor:
    """Keeps an engine process running behind its link, and a spare one beside it."""

    def __init__(
        self, engines: Engines, link: EngineLink, pool: EnginePool, metrics: Metrics, config: SupervisorConfig
    ) -> None:
        self._engines, self._link, self._pool = engines, link, pool
        self._metrics = metrics
        self._config = config
        self._ready_s: float | None = None
        self.engine: RunningEngine | None = None  # the one that runs now
        self.spare: RunningEngine | None = None  # the one that takes its place when it ends
        self._told: RunningEngine | None = None  # the spare of which the log says that it is warm

    async def run(self) -> None:
        """Runs engine processes until cancelled, then stops the last ones.

        Returns when it gave up on an engine that had been ready once; raises EngineError when the first one ends
        before it is ready, since nothing was shown that would be worth keeping.
        """
        await self._pool.turn(self._link)
        try:
            await self._run_engines()
        finally:
            spare, self.spare = self.spare, None
            if spare is not None:
                await spare.stop()

    async def _run_engines(self) -> None:
        failures = 0
        while True:
            self._ready_s = None
            error, killed = await self._run_engine()
            healthy = self._ready_s is not None and time.monotonic() - self._ready_s >= self._config.healthy_s
            if self._link.ready is None:
                self._detach(error, final=True, killed=killed)
                raise EngineError(error)
            failures = 1 if healthy else failures + 1
            final = failures > self._config.restarts
            self._detach(error, final, killed)
            if final:
                log.error("%s; giving up after %d restarts", error, failures - 1)
                return
            # A process that is there already costs nothing.
            delay_s = 0.0 if self._warm else self._config.delay_s(failures)
            log.error("%s; restarting it in %.0f s", error, delay_s)
            self._metrics.restarts.inc()
            await asyncio.sleep(delay_s)

    def _detach(self, error: str, final: bool, killed: bool) -> None:
        self._link.detach(error, final, killed)
        if final or not self._warm:
            self._pool.lost(self._link)

    async def _run_engine(self) -> tuple[str, bool]:
        """Runs one engine process to its end and says why it ended, and whether it was killed."""
        try:
            engine = self.engine = await self._next()
        except OSError as error:
            return f"no engine process can begin: {error.strerror}", False
        try:
            self._link.attach(engine.ring, engine.send)
            engine.take(self._on_message)
            async with asyncio.TaskGroup() as group:
                helpers = [group.create_task(self._watch(engine)), group.create_task(self._keep_spare())]
                try:
                    return await engine.wait(), engine.killed
                finally:
                    for helper in helpers:
                        helper.cancel()
        finally:
            self.engine = None
            await engine.stop()

    async def _next(self) -> RunningEngine:
        """The spare if there is one, else a new process."""
        engine, self.spare = self.spare, None
        if engine is not None and (engine.ended or (engine.ready is None and not engine.hurry())):
            # At the lowest priority it could take for ever to be warm.
            engine.end("it is not warm")
            await engine.stop()
            engine = None
        if engine is None:
            # Who watches waits already.
            settings = replace(self._link.settings, warm_up=self._link.ready is None and self._link.settings.warm_up)
            engine = await self._engines.begin(settings)
            log.info("engine process %s begins", engine.name)
        else:
            log.info("engine process %s, the spare, goes on", engine.name)
        return engine

    async def _keep_spare(self) -> None:
        """Begins a spare when the engine has been ready for a while, and another one when that ends."""
        wait_s = self._config.spare_s
        while wait_s is not None:
            await asyncio.sleep(wait_s)
            if self.spare is not None and self.spare.ended:
                spare, self.spare = self.spare, None
                log.warning("%s; it was the spare", await spare.wait())
                await spare.stop()
                wait_s = min(2 * wait_s, SPARE_LIMIT_S)
            elif self.spare is None and self._link.running:
                try:
                    self.spare = await self._engines.begin(replace(self._link.settings, spare=True))
                    log.info("engine process %s begins as the spare", self.spare.name)
                except OSError as error:
                    log.warning("no spare engine process can begin: %s", error.strerror)
                    wait_s = min(2 * wait_s, SPARE_LIMIT_S)

    @property
    def _warm(self) -> bool:
        """Whether there is a spare that can go on at once."""
        return self.spare is not None and self.spare.ready is not None and not self.spare.ended

    async def _watch(self, engine: RunningEngine) -> None:
        """Says that a silent process is stalled, and ends it when it stays silent."""
        while True:
            await asyncio.sleep(min(self._config.stalled_s / 10, POLL_S))
            silent_s = engine.silent_s()
            if self._warm and self.spare is not None and self.spare is not self._told:
                self._told = self.spare
                log.info("engine process %s, the spare, is ready", self.spare.name)
            replaced = self._warm or self._pool.others_run(self._link)
            if silent_s >= (self._config.replaced_s if replaced else self._config.hung_s):
                engine.end(f"the engine process hung: it was not heard for {silent_s:.0f} s")
            elif silent_s >= self._config.stalled_s:
                self._link.stall(silent_s)

    def _on_message(self, message: FromEngine) -> None:
        self._link.receive(message)
        if isinstance(message, Ready):
            self._ready_s = time.monotonic()
            log.info(
                "%s is ready, %dx%d at %g fps, warm after %.1f s",
                message.preset,
                message.width,
                message.height,
                message.fps,
                message.warm_up_s,
            )
            self._pool.came(self._link)


async def supervise(engines: Engines, pool: EnginePool, supervisor: Callable[[EngineLink], Supervisor]) -> None:
    """Keeps an engine running behind each link of the pool. Raises EngineError when none of them could start.

    `supervisor` makes that of a link.
    """
    errors: list[EngineError] = []

    async def run(link: EngineLink) -> None:
        try:
            await supervisor(link).run()
        except EngineError as error:
            errors.append(error)
            if len(errors) < len(pool.links):
                log.error("an engine cannot start: %s", error)
            else:
                growing.cancel()

    async with asyncio.TaskGroup() as group:
        growing = group.create_task(engines.watch(pool, lambda link: group.create_task(run(link))), name="places")
        for link in pool.links:
            group.create_task(run(link), name=f"engine {link.settings.number}")
    if len(errors) == len(pool.links):
        # The others were told.
        raise errors[-1]

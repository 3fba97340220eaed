"""Starts, watches and restarts the engine process; plugs each one into the engine's link.

A process that ends, however it ends, is named in the log and to the link; the next one goes on where it stopped. It is
there already if there is a spare: a process that has loaded the model and waits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace

from engine.wire.messages import FromEngine, Ready
from engine.wire.ring import RingConfig
from engine.wire.settings import EngineSettings
from engine.wire.state_memory import StateMemory
from streaming.engines.link import EngineLink
from streaming.engines.process import EngineProcess, EngineTarget, SupervisorConfig
from streaming.media.metrics import Metrics

POLL_S = 0.25  # between two looks at a process
SPARE_LIMIT_S = 300.0  # between two tries to begin a spare

log = logging.getLogger(__name__)


class EngineError(Exception):
    """The engine cannot start; the text is one line that says why."""


class Supervisor:
    """Keeps an engine process running behind its link, and a spare one beside it."""

    def __init__(
        self,
        target: EngineTarget,
        link: EngineLink,
        metrics: Metrics,
        config: SupervisorConfig | None = None,
        ring: RingConfig | None = None,
    ) -> None:
        self._target = target
        self._link = link
        self._metrics = metrics
        self._config = config or SupervisorConfig()
        self._ring = ring or RingConfig()
        self._memory = StateMemory()
        self._ready_s: float | None = None
        self.engine: EngineProcess | None = None  # the one that runs now
        self.spare: EngineProcess | None = None  # the one that takes its place when it ends

    async def run(self) -> None:
        """Runs engine processes until cancelled, then stops the last ones.

        Returns when it gave up on an engine that had been ready once; raises EngineError when the first one ends
        before it is ready, since nothing was shown that would be worth keeping.
        """
        try:
            await self._run_engines()
        finally:
            spare, self.spare = self.spare, None
            if spare is not None:
                await spare.stop()
            self._memory.close()

    async def _run_engines(self) -> None:
        failures = 0
        while True:
            self._ready_s = None
            error = await self._run_engine()
            healthy = self._ready_s is not None and time.monotonic() - self._ready_s >= self._config.healthy_s
            if self._link.ready is None:
                self._link.detach(error, final=True)
                raise EngineError(error)
            failures = 1 if healthy else failures + 1
            final = failures > self._config.restarts
            self._link.detach(error, final)
            if final:
                log.error("%s; giving up after %d restarts", error, failures - 1)
                return
            # A process that is there already costs nothing.
            delay_s = 0.0 if self._warm else self._config.delay_s(failures)
            log.error("%s; restarting it in %.0f s", error, delay_s)
            self._metrics.restarts.inc()
            await asyncio.sleep(delay_s)

    async def _run_engine(self) -> str:
        """Runs one engine process to its end and says why it ended."""
        try:
            engine = self.engine = await self._next()
        except OSError as error:
            return f"no engine process can begin: {error.strerror}"
        try:
            self._link.attach(engine.ring, engine.send)
            engine.take(self._on_message)
            async with asyncio.TaskGroup() as group:
                helpers = [group.create_task(self._watch(engine)), group.create_task(self._keep_spare())]
                try:
                    return await engine.wait()
                finally:
                    for helper in helpers:
                        helper.cancel()
        finally:
            self.engine = None
            await engine.stop()

    async def _next(self) -> EngineProcess:
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
            engine = self._begin(settings)
            log.info("engine process %d begins", engine.pid)
        else:
            log.info("engine process %d, the spare, goes on", engine.pid)
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
                    self.spare = self._begin(replace(self._link.settings, spare=True))
                    log.info("engine process %d begins as the spare", self.spare.pid)
                except OSError as error:
                    log.warning("no spare engine process can begin: %s", error.strerror)
                    wait_s = min(2 * wait_s, SPARE_LIMIT_S)

    def _begin(self, settings: EngineSettings) -> EngineProcess:
        return EngineProcess(self._target, settings, self._ring, self._memory, self._config)

    @property
    def _warm(self) -> bool:
        """Whether there is a spare that can go on at once."""
        return self.spare is not None and self.spare.ready is not None and not self.spare.ended

    async def _watch(self, engine: EngineProcess) -> None:
        """Says that a silent process is stalled, and ends it when it stays silent."""
        while True:
            await asyncio.sleep(min(self._config.stalled_s / 10, POLL_S))
            silent_s = engine.silent_s()
            if silent_s >= (self._config.replaced_s if self._warm else self._config.hung_s):
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

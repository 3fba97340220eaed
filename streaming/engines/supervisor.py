"""Starts, watches and restarts the engine process; plugs each one into the engine's link.

The engine process is known here only as a function to call in a spawned process, by its messages and by the ring.
A process that ends, however it ends, is named in the log and to the link; the next one goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection

from engine.wire.messages import Failed, FromEngine, Ready, Stop, ToEngine
from engine.wire.ring import RingConfig, RingReader, RingWriter
from engine.wire.settings import EngineSettings
from streaming.engines.link import EngineLink
from streaming.media.metrics import Metrics

EngineTarget = Callable[[EngineSettings, RingWriter, Connection], None]

log = logging.getLogger(__name__)


class EngineError(Exception):
    """The engine cannot start; the text is one line that says why."""


@dataclass(frozen=True, slots=True)
class SupervisorConfig:
    """Limits for restarts of the engine process, and for its silence."""

    restarts: int = 5  # in a row, each ending before `healthy_s`
    healthy_s: float = 60.0  # an engine that ran this long begins a new row
    backoff_s: float = 1.0  # before the second restart of a row, doubled for each further one; the first is at once
    backoff_limit_s: float = 30.0
    stop_s: float = 1.5  # from asking an engine to stop to killing it
    outbox: int = 512  # messages that wait for an engine that does not read
    stalled_s: float = 5.0  # without a heartbeat: the engine is said to be stalled
    hung_s: float = 15.0  # without a heartbeat: the process is ended

    def __post_init__(self) -> None:
        if self.restarts < 0 or self.outbox < 1:
            raise ValueError(f"restarts is {self.restarts} and outbox {self.outbox}; at least 0 and 1 are needed")
        times = (self.healthy_s, self.backoff_s, self.backoff_limit_s, self.stop_s, self.stalled_s, self.hung_s)
        if min(times) < 0:
            raise ValueError("times of the supervisor must not be negative")

    def delay_s(self, failures: int) -> float:
        """Seconds before the restart after that many failures in a row."""
        return 0.0 if failures <= 1 else min(self.backoff_s * 2.0 ** (failures - 2), self.backoff_limit_s)


class EngineProcess:
    """One spawned engine process with its pipe. `receive` gets its messages; a ValueError from it ends the process."""

    def __init__(
        self,
        target: EngineTarget,
        settings: EngineSettings,
        ring: RingReader,
        receive: Callable[[FromEngine], None],
        config: SupervisorConfig,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._receive = receive
        self._config = config
        self._outbox: deque[ToEngine] = deque()
        self._why: str | None = None
        self._heard_s: float | None = None  # when the last message came; None before the first
        self._ended = asyncio.Event()
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=target, args=(settings, ring.writer(), theirs), name="engine")
        # The child inherits the blocked signal: Ctrl-C, which a terminal sends to every process, is ours to handle.
        # The tracker, which multiprocessing needs for the child, comes first: its start unblocks the signal.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        theirs.close()
        self._loop.add_reader(self._pipe.fileno(), self._read)
        self._loop.add_reader(self._process.sentinel, self._on_end)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send(self, message: ToEngine) -> None:
        """Sends without blocking. An engine that leaves too many messages unread is ended."""
        if len(self._outbox) >= self._config.outbox:
            self.end("the engine process does not read its messages")
            return
        self._outbox.append(message)
        self._flush()

    def silent_s(self) -> float:
        """Seconds since the process was heard last; 0 before its first word, since to start may take long."""
        return 0.0 if self._heard_s is None else time.monotonic() - self._heard_s

    def end(self, why: str) -> None:
        """Kills the process; `wait` will say why."""
        if not self._ended.is_set():
            self._why = self._why or why
            os.kill(self.pid, signal.SIGKILL)

    async def wait(self) -> str:
        """Waits for the end of the process and says in one line why it ended."""
        await self._ended.wait()
        self._read()
        self._process.join()
        code = self._process.exitcode
        if self._why is not None:
            return self._why
        if code is not None and code < 0:
            return f"the engine process was ended by {signal.Signals(-code).name}"
        return f"the engine process ended with status {code}"

    async def stop(self) -> None:
        """Asks the process to stop, kills it when it does not, and frees everything; to be called once."""
        self.send(Stop())
        with suppress(TimeoutError):
            async with asyncio.timeout(self._config.stop_s):
                await self._ended.wait()
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        for descriptor in (self._pipe.fileno(), self._process.sentinel):
            self._loop.remove_reader(descriptor)
            self._loop.remove_writer(descriptor)
        self._pipe.close()
        self._process.close()

    def _on_end(self) -> None:
        self._loop.remove_reader(self._process.sentinel)
        self._ended.set()

    def _read(self) -> None:
        try:
            while self._pipe.poll():
                message = self._pipe.recv()
                self._heard_s = time.monotonic()
                if isinstance(message, Failed):
                    self._why = message.error
                else:
                    self._receive(message)
        except (EOFError, OSError):
            self._loop.remove_reader(self._pipe.fileno())
            if not self._ended.is_set():
                # A process that closed its pipe is ending; one that only lost it would run on for nobody.
                self._loop.call_later(self._config.stop_s, self.end, "the engine process closed its pipe")
        except ValueError as error:
            self.end(f"the engine process broke the protocol: {error}")

    def _flush(self) -> None:
        writable = select.poll()
        writable.register(self._pipe.fileno(), select.POLLOUT)
        try:
            # A socket is writable only when far more than one message fits, so that `send` cannot block.
            while self._outbox and writable.poll(0):
                self._pipe.send(self._outbox.popleft())
        except OSError:
            # The process is gone, which `wait` reports.
            self._outbox.clear()
        if self._outbox:
            self._loop.add_writer(self._pipe.fileno(), self._flush)
        else:
            self._loop.remove_writer(self._pipe.fileno())


class Supervisor:
    """Keeps an engine process running behind its link."""

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
        self._ready_s: float | None = None
        self.engine: EngineProcess | None = None  # the one that runs now

    async def run(self) -> None:
        """Runs engine processes until cancelled, then stops the last one.

        Returns when it gave up on an engine that had been ready once; raises EngineError when the first one ends
        before it is ready, since nothing was shown that would be worth keeping.
        """
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
            delay_s = self._config.delay_s(failures)
            log.error("%s; restarting it in %.0f s", error, delay_s)
            self._metrics.restarts.inc()
            await asyncio.sleep(delay_s)

    async def _run_engine(self) -> str:
        """Runs one engine process to its end and says why it ended."""
        ring = RingReader(self._ring)
        try:
            self.engine = EngineProcess(self._target, self._link.settings, ring, self._on_message, self._config)
            try:
                log.info("engine process %d begins", self.engine.pid)
                self._link.attach(ring, self.engine.send)
                watch = asyncio.create_task(self._watch(self.engine), name="heartbeat")
                try:
                    return await self.engine.wait()
                finally:
                    watch.cancel()
            finally:
                engine, self.engine = self.engine, None
                await engine.stop()
        finally:
            ring.close()

    async def _watch(self, engine: EngineProcess) -> None:
        """Says that a silent process is stalled, and ends it when it stays silent."""
        while True:
            await asyncio.sleep(self._config.stalled_s / 10)
            silent_s = engine.silent_s()
            if silent_s >= self._config.hung_s:
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

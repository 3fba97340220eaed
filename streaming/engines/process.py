"""One engine process as the server knows it: a function to call in a spawned process, its messages and its ring."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path

from engine.wire.messages import Failed, FromEngine, Ready, Stop, ToEngine
from engine.wire.ring import RingConfig, RingReader, RingWriter
from engine.wire.settings import EngineSettings
from engine.wire.state_memory import StateMemory

EngineTarget = Callable[[EngineSettings, RingWriter, Connection, StateMemory], None]


@dataclass(frozen=True, slots=True)
class SupervisorConfig:
    """Limits for restarts of the engine process, and for its silence."""

    restarts: int = 20  # in a row, each ending before `healthy_s`
    healthy_s: float = 5.0  # an engine that ran this long begins a new row
    backoff_s: float = 1.0  # before the second restart of a row, doubled for each further one; the first is at once
    backoff_limit_s: float = 30.0
    stop_s: float = 1.5  # from asking an engine to stop to killing it
    outbox: int = 512  # messages that wait for an engine that does not read
    stalled_s: float = 5.0  # without a heartbeat: the engine is said to be stalled
    hung_s: float = 15.0  # without a heartbeat: the process is ended
    replaced_s: float = 2.5  # the same where a spare is warm
    spare_s: float | None = None  # from an engine to its spare, which also waits until it is ready; None: no spare

    def __post_init__(self) -> None:
        if self.restarts < 0 or self.outbox < 1:
            raise ValueError(f"restarts is {self.restarts} and outbox {self.outbox}; at least 0 and 1 are needed")
        times = [self.healthy_s, self.backoff_s, self.backoff_limit_s, self.stop_s, self.stalled_s, self.hung_s]
        times += [self.replaced_s, self.spare_s or 0.0]
        if min(times) < 0:
            raise ValueError("times of the supervisor must not be negative")

    def delay_s(self, failures: int) -> float:
        """Seconds before the restart after that many failures in a row."""
        return 0.0 if failures <= 1 else min(self.backoff_s * 2.0 ** (failures - 2), self.backoff_limit_s)


class LocalEngines:
    """Engine processes of this machine, and the memory with the states of their channels."""

    def __init__(self, target: EngineTarget, config: SupervisorConfig, places: int = 1) -> None:
        """`places` is the number of engines."""
        self._target, self._config, self.places = target, config, places
        self._memory = StateMemory()
        self._early: EngineProcess | None = None

    def begin_early(self, settings: EngineSettings) -> None:
        """Begins a process with which `begin` will answer, so that it loads while the server does."""
        with suppress(OSError):  # as `begin` will say
            self._early = self._new(settings)

    async def begin(self, settings: EngineSettings) -> EngineProcess:
        """A new process. Raises OSError where the system gives no memory, descriptor or process."""
        early, self._early = self._early, None
        if early is not None and early.settings == settings:
            return early
        await _drop(early)
        return self._new(settings)

    def _new(self, settings: EngineSettings) -> EngineProcess:
        return EngineProcess(self._target, settings, RingConfig(), self._memory, self._config)

    async def watch(self, pool: object, begin: object) -> None:
        """There are as many as there were."""

    async def close(self) -> None:
        """When no process is left but one that nobody has asked for."""
        await _drop(self._early)
        self._memory.close()


class EngineProcess:
    """One spawned engine process with its ring and pipe.

    It is a spare until somebody takes its messages.
    """

    def __init__(
        self,
        target: EngineTarget,
        settings: EngineSettings,
        ring: RingConfig,
        memory: StateMemory,
        config: SupervisorConfig,
    ) -> None:
        """Raises OSError where the system gives no memory, descriptor or process."""
        self._loop = asyncio.get_running_loop()
        self.settings = settings
        self._receive: Callable[[FromEngine], None] = self._note
        self._config = config
        self.ready: Ready | None = None  # what a spare said when it was warm
        self._outbox: deque[ToEngine] = deque()
        self._why: str | None = None
        self.killed = False  # from outside; known behind `wait`
        self._heard_s: float | None = None  # when the last message came; None before the first
        self._ended = asyncio.Event()
        context = multiprocessing.get_context("spawn")
        with ExitStack() as undo:
            self.ring = RingReader(ring)
            undo.callback(self.ring.close)
            self._pipe, theirs = context.Pipe()
            undo.callback(self._pipe.close)
            with theirs:
                arguments = settings, self.ring.writer(), theirs, memory
                self._process = context.Process(target=target, args=arguments, name="engine")
                # The child inherits the blocked signal: Ctrl-C, which a terminal sends to every process, is ours to
                # handle. The tracker, which multiprocessing needs for the child, comes first: its start unblocks it.
                resource_tracker.ensure_running()
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                try:
                    self._process.start()
                finally:
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            undo.pop_all()
        self._loop.add_reader(self._pipe.fileno(), self._read)
        self._loop.add_reader(self._process.sentinel, self._on_end)

    @property
    def name(self) -> str:
        return str(self.pid)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send(self, message: ToEngine) -> None:
        """Sends without blocking; nothing after `stop`. An engine that leaves too many messages unread is ended."""
        if self._pipe.closed:
            return
        if len(self._outbox) >= self._config.outbox:
            self.end("the engine process does not read its messages")
            return
        self._outbox.append(message)
        self._flush()

    def take(self, receive: Callable[[FromEngine], None]) -> None:
        """`receive` gets its messages from now on, and that it is warm; a ValueError from it ends the process."""
        self._receive = receive
        if self.ready is not None:
            self._hand_on(self.ready)

    def hurry(self) -> bool:
        """A spare that is not warm yet is wanted: it gets our own priority. False where that is not allowed."""
        niceness = os.getpriority(os.PRIO_PROCESS, 0)
        try:
            for thread in Path(f"/proc/{self.pid}/task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(thread.name), niceness)
        except OSError:
            return False
        return True

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def silent_s(self) -> float:
        """Seconds since the process was heard last; 0 before its first word, since to start may take long."""
        # What waits was not read by us, who may have stood still too.
        return 0.0 if self._heard_s is None or self._pipe.poll() else time.monotonic() - self._heard_s

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
        self.killed = code == -signal.SIGKILL
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
        self.ring.close()

    def _note(self, message: FromEngine) -> None:
        """Of a spare."""
        if isinstance(message, Ready):
            self.ready = message

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
                    self._hand_on(message)
        except (EOFError, OSError):
            self._loop.remove_reader(self._pipe.fileno())
            if not self._ended.is_set():
                # A process that closed its pipe is ending; one that only lost it would run on for nobody.
                self._loop.call_later(self._config.stop_s, self.end, "the engine process closed its pipe")

    def _hand_on(self, message: FromEngine) -> None:
        try:
            self._receive(message)
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


async def _drop(engine: EngineProcess | None) -> None:
    """Ends a process that began early and that nobody has asked for."""
    if engine is not None:
        engine.end("it is not wanted")
        await engine.stop()

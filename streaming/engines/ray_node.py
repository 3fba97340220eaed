"""What runs on a node of a Ray cluster: an engine process as on the server's own machine, and what passes between both.

A `NodeEngine` becomes an actor, and never imports Ray itself. The server asks it for news and gets all there is:
messages, frames copied out of the ring, and the states that were kept since. Slots stay credits of the server, so no
more frames are on the way than it has room for.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.wire.kept_state import KeptState
from engine.wire.messages import FramesReady, FromEngine, Heartbeat, OpenChannel, Paused, Ready, Shown, ToEngine
from engine.wire.priority import go_first
from engine.wire.ring import RingConfig
from engine.wire.settings import EngineSettings
from engine.wire.state_folder import LOCK
from engine.wire.state_memory import StateMemory, Written
from streaming.engines.process import EngineProcess, SupervisorConfig

MOST_BATCHES = 8  # of frames in one answer, so that a server that was busy gets no gigabyte at once
GATHER_S = 0.2  # from one answer to the next where nobody waits: each costs Ray some milliseconds in four processes
ASKED_S = 2.0  # behind a request, for which all is told at once: its answer, and the first frames under it
UNANSWERED = Shown, Paused  # what the server tells and nobody waits for
THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True, slots=True)
class AreaState:
    """What is kept of a channel in an area of the state memory."""

    area: int
    kept: KeptState
    snapshot: npt.NDArray[np.uint8] | None  # its bytes, as Ray hands them on without a copy; None: it is there already

    @classmethod
    def of(cls, area: int, kept: KeptState, snapshot: bytes | None) -> AreaState:
        return cls(area, kept, None if snapshot is None else np.frombuffer(snapshot, np.uint8))

    def put(self, memory: StateMemory) -> None:
        """Writes it there. Raises OSError and ValueError as `StateMemory.write`."""
        memory.write(self.area, self.kept, None if self.snapshot is None else self.snapshot.data)


@dataclass(frozen=True, slots=True)
class News:
    """All that came since the last answer: states first, since nothing is told before it is kept."""

    states: tuple[AreaState, ...]
    messages: tuple[tuple[FromEngine, npt.NDArray[np.uint8] | None], ...]  # with frames [F, 3H/2, W] uint8
    ended: str | None = None  # why, behind the last message
    killed: bool = False  # from outside


class NodeEngine:
    """One engine process of this node."""

    def __init__(self, target: str, settings: EngineSettings, config: SupervisorConfig) -> None:
        """`target` is the function of the process, as `module:name`."""
        self._target, self._settings, self._config = target, settings, config
        self._news = asyncio.Event()
        self._asked = asyncio.Event()  # not long ago
        self._forgets: asyncio.TimerHandle | None = None  # that it was asked
        self._messages: deque[FromEngine] = deque()
        self._areas: dict[int, Written] = {}  # and what the server knows of them
        self._ready: Ready | None = None
        self._ended: str | None = None
        self._told_s = -GATHER_S  # when the last answer was given, on the loop's clock

    async def begin(self) -> int:
        """Starts the process; returns its number. Raises ValueError where this node cannot run it, OSError too."""
        state = self._settings.state
        if state is not None and not (Path(state) / LOCK).exists():
            raise ValueError(f"there is no state folder {state}: give --state a folder that all nodes share")
        _undo_ray()
        # Ray 2.60 starts its workers at niceness 15, behind all other programs of the node.
        go_first()
        module, name = self._target.split(":")
        target = getattr(import_module(module), name)
        self._memory = StateMemory()
        self._engine = EngineProcess(target, self._settings, RingConfig(), self._memory, self._config)
        self._engine.take(self._receive)
        self._waiting = asyncio.get_running_loop().create_task(self._wait(), name="engine's end")
        return self._engine.pid

    async def send(self, messages: Sequence[tuple[ToEngine, AreaState | None]]) -> None:
        """Hands on messages in order, and before one that opens a channel the state that it goes on from."""
        for message, state in messages:
            if isinstance(message, OpenChannel):
                self._memory.forget(message.area)
                if state is not None:
                    state.put(self._memory)
                self._areas[message.area] = self._memory.written(message.area)
            if not isinstance(message, UNANSWERED):
                self._hurry()
            self._engine.send(message)

    async def news(self) -> News:
        """What came since the last call; waits until there is something, and gathers it where nobody waits for it."""
        await self._news.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._told_s + GATHER_S):
                await self._asked.wait()
        told = []
        batches = 0
        while self._messages and batches < MOST_BATCHES:
            message, frames = self._messages.popleft(), None
            if isinstance(message, FramesReady):
                assert self._ready is not None, "frames come from an engine that is warm"
                size = self._ready.height, self._ready.width
                frames = self._engine.ring.frames(message.slot, message.frames, *size).copy()
                batches += 1
            told.append((message, frames))
        ended = None if self._messages else self._ended
        if not self._messages and ended is None:
            self._news.clear()
        # What did not fit follows at once.
        self._told_s = -GATHER_S if self._messages else asyncio.get_running_loop().time()
        return News(tuple(self._states()), tuple(told), ended, self._engine.killed)

    async def stop(self) -> None:
        """Ends the process, in good order if it listens; to be called once."""
        await self._engine.stop()
        self._waiting.cancel()
        self._memory.close()

    def _receive(self, message: FromEngine) -> None:
        if isinstance(message, Ready):
            self._ready = message
        if not (isinstance(message, Heartbeat) and self._messages):
            # What waits says as well that it lives.
            self._messages.append(message)
        self._news.set()

    def _hurry(self) -> None:
        if self._forgets is not None:
            self._forgets.cancel()
        self._asked.set()
        self._forgets = asyncio.get_running_loop().call_later(ASKED_S, self._asked.clear)

    async def _wait(self) -> None:
        self._ended = await self._engine.wait()
        self._hurry()
        self._news.set()

    def _states(self) -> list[AreaState]:
        """Those that were written since the server was told."""
        found = []
        for area, known in self._areas.items():
            while (written := self._memory.written(area)) != known:
                kept = self._memory.record(area)
                snapshot = None if written.snapshots == known.snapshots else self._memory.snapshot(area)
                if self._memory.written(area) != written:
                    # The engine wrote meanwhile.
                    continue
                self._areas[area] = known = written
                if kept is not None:
                    found.append(AreaState.of(area, kept, snapshot))
        return found


def _undo_ray() -> None:
    """Takes back what Ray does to its worker and what an engine process would inherit."""
    with suppress(OSError):
        given = Path("/proc/self/environ").read_bytes().split(b"\0")
        if not any(line.startswith(THREADS.encode()) for line in given):
            # Ray allows each worker a thread for each of its CPUs, which are none.
            os.environ.pop(THREADS, None)
    # A process that is spawned would import Ray's program first.
    vars(sys.modules["__main__"])["__file__"] = None

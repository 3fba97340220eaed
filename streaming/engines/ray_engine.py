"""An engine on a node of a Ray cluster, as the server knows it: an actor there, its messages and its frames."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.wire.messages import Failed, FramesReady, FromEngine, OpenChannel, Ready, ToEngine
from engine.wire.state_memory import StateMemory
from streaming.engines.process import SupervisorConfig
from streaming.engines.ray_node import AreaState, News

STOOD_S = 1.0  # between two questions how long it was silent: then it was we who did not listen

log = logging.getLogger(__name__)


class UnansweredError(Exception):
    """A node went, or did not answer in time."""


class TakenFrames:
    """Frames that came and nobody has asked for yet, by slot: memory of Ray, which goes with the last view of it."""

    def __init__(self) -> None:
        self._frames: dict[int, npt.NDArray[np.uint8]] = {}

    def put(self, slot: int, i420: npt.NDArray[np.uint8]) -> None:
        self._frames[slot] = i420

    def frames(self, slot: int, frames: int, height: int, width: int) -> npt.NDArray[np.uint8]:
        """The frames [F, 3H/2, W] of a slot, once. Raises ValueError when they are not there, or others."""
        i420 = self._frames.pop(slot, None)
        if i420 is None or i420.shape != (frames, height * 3 // 2, width):
            raise ValueError(f"slot {slot} has no {frames} frames of {width}x{height}")
        return i420


class RayEngine:
    """One engine process on a node. It is a spare until somebody takes its messages."""

    def __init__(self, actor: Any, pid: int, node: str, memory: StateMemory, config: SupervisorConfig) -> None:
        """`actor` is a `NodeEngine` that has begun; `memory` takes the states of its channels."""
        self.name = f"{pid} on {node}"
        self.ring = TakenFrames()
        self.ready: Ready | None = None
        self.unfit = False  # it says that its node cannot run an engine
        self._actor, self._node, self._memory, self._config = actor, node, memory, config
        self._receive: Callable[[FromEngine], None] = lambda message: None
        self._outbox: deque[tuple[ToEngine, AreaState | None]] = deque()
        self._waits = asyncio.Event()  # something is in the outbox
        self._why: str | None = None
        self.killed = False  # from outside, or its node is gone; known behind `wait`
        self._heard_s: float | None = None  # None before its first word: to load may take long
        self._asked_s = time.monotonic()
        self._ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._send_all()), loop.create_task(self._take_all())]

    def send(self, message: ToEngine) -> None:
        """Sends without blocking; nothing after `stop`. An engine that leaves too many messages unread is ended."""
        if self._ended.is_set():
            return
        if len(self._outbox) >= self._config.outbox:
            self.end("the engine process does not read its messages")
            return
        state = None
        if isinstance(message, OpenChannel) and message.settings.start.goes_on:
            found = self._memory.read(message.area)
            if found is not None:
                state = AreaState.of(message.area, *found)
        self._outbox.append((message, state))
        self._waits.set()

    def take(self, receive: Callable[[FromEngine], None]) -> None:
        """`receive` gets its messages from now on, and that it is warm; a ValueError from it ends the process."""
        self._receive = receive
        if self.ready is not None:
            self._hand_on(self.ready)

    def hurry(self) -> bool:
        """There are no spares on nodes."""
        return False

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def silent_s(self) -> float:
        """Seconds since it was heard last, while we listened; 0 before its first word."""
        now_s = time.monotonic()
        stood, self._asked_s = now_s - self._asked_s > STOOD_S, now_s
        if self._heard_s is None:
            return 0.0
        if stood:
            self._heard_s = now_s
        return now_s - self._heard_s

    def end(self, why: str) -> None:
        """Ends it, whether or not its node can be reached; `wait` will say why."""
        if not self._ended.is_set():
            self._why = self._why or why
            self._ended.set()
            kill(self._actor)

    async def wait(self) -> str:
        """Waits for its end and says in one line why it ended."""
        await self._ended.wait()
        return f"node {self._node}: {self._why}"

    async def stop(self) -> None:
        """Asks the process to stop, kills it when it does not, and frees everything; to be called once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        if not self._ended.is_set():
            self._ended.set()
            with suppress(TimeoutError, *lost()):
                async with asyncio.timeout(2 * self._config.stop_s):
                    await self._actor.stop.remote()
        kill(self._actor)

    async def _send_all(self) -> None:
        """One call at a time, so that they come in order."""
        while True:
            await self._waits.wait()
            self._waits.clear()
            messages = tuple(self._outbox)
            self._outbox.clear()
            try:
                await self._actor.send.remote(messages)
            except lost() as error:
                self._lose(error)

    async def _take_all(self) -> None:
        while not self._ended.is_set():
            try:
                news: News = await self._actor.news.remote()
            except lost() as error:
                self._lose(error)
                return
            self._heard_s = time.monotonic()
            for state in news.states:
                self._keep(state)
            for message, frames in news.messages:
                if frames is not None:
                    assert isinstance(message, FramesReady), "no other message has frames"
                    self.ring.put(message.slot, frames)
                self._hand_on(message)
            if news.ended is not None:
                self.killed = news.killed
                self.end(news.ended)

    def _lose(self, error: Exception) -> None:
        if not self._ended.is_set():
            # Unless by us; what the actor raises itself is its own fault.
            self.killed = is_gone(error)
        self.end(reason(error))

    def _keep(self, state: AreaState) -> None:
        try:
            state.put(self._memory)
        except (OSError, ValueError) as error:
            log.warning("a state of channel %s cannot be kept: %s", state.kept.channel, error)

    def _hand_on(self, message: FromEngine) -> None:
        if self._ended.is_set():
            return
        if isinstance(message, Failed):
            self._why, self.unfit = message.error, self.ready is None
            return
        if isinstance(message, Ready):
            self.ready = message
        try:
            self._receive(message)
        except ValueError as error:
            self.end(f"the engine process broke the protocol: {error}")


def lost() -> tuple[type[Exception], ...]:
    """Errors by which Ray says that an actor does not answer."""
    from ray.exceptions import RayError

    return (RayError,)


def is_gone(error: Exception) -> bool:
    """Whether that is of an actor that was ended, or of a node that is not there."""
    from ray.exceptions import RayActorError, RayTaskError

    return isinstance(error, RayActorError) and not isinstance(error, RayTaskError)


def is_own(error: Exception) -> bool:
    """Whether that is of what ran on the node, and not of the node or of the way to it."""
    from ray.exceptions import RayActorError, RayError, RayTaskError

    if isinstance(error, RayActorError):
        return error.actor_init_failed or isinstance(error, RayTaskError)
    return isinstance(error, RayTaskError) or not isinstance(error, RayError)


def reason(error: Exception) -> str:
    """What Ray or another library says, in one line."""
    from ray.exceptions import RayTaskError

    if isinstance(error, RayTaskError):
        return str(error.cause)
    return "the node is gone, or its worker was killed" if is_gone(error) else first_line(error)


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def kill(actor: Any) -> None:
    """Ends an actor and its engine process at once."""
    import ray

    # One that is gone already, or a cluster that is.
    with suppress(Exception):
        ray.kill(actor)

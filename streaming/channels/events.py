"""A channel's events, fanned out to bounded queues: one for each listener of the event stream."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from streaming.errors import Unavailable

MOST_LISTENERS = 256
MOST_AN_ADDRESS = 64
EVENTS_KEPT = 16  # prompt events of a listener; one that falls further behind is cut off and may come back


@dataclass(frozen=True, slots=True)
class PromptShown:
    """The first frame of a prompt went on air."""

    prompt: str
    frame: int


@dataclass(frozen=True, slots=True)
class PromptDropped:
    """A prompt that was accepted is never shown: another took its place."""

    prompt: str
    frame: int
    replaced_by: str


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The channel's report says something new."""


Event = PromptShown | PromptDropped | StateChanged


class Listener:
    """One listener's place: its prompt events, and whether the state changed since it looked."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._changed = False
        self._wake = asyncio.Event()
        self.ended = False  # it fell too far behind, or the channel is no more

    def offer(self, event: Event) -> None:
        """Takes an event; changes of state are one, however many there were."""
        if isinstance(event, StateChanged):
            self._changed = True
        elif len(self._events) < EVENTS_KEPT:
            self._events.append(event)
        else:
            self.ended = True
        self._wake.set()

    async def get(self) -> Event:
        """The next event; prompts come before a change of state."""
        while True:
            if self._events:
                return self._events.popleft()
            if self._changed:
                self._changed = False
                return StateChanged()
            self._wake.clear()
            await self._wake.wait()


class Broadcast:
    """Listeners of one channel. None of them can hold the publisher."""

    def __init__(self) -> None:
        self._listeners: dict[Listener, str] = {}  # and their addresses

    @contextmanager
    def listen(self, address: str) -> Iterator[Listener]:
        """A place among the listeners while the block runs. Raises Unavailable when too many listen already."""
        if len(self._listeners) >= MOST_LISTENERS:
            raise Unavailable(f"There are {MOST_LISTENERS} listeners already; try again later.")
        if list(self._listeners.values()).count(address) >= MOST_AN_ADDRESS:
            raise Unavailable(f"There are {MOST_AN_ADDRESS} listeners from your address already; try again later.")
        listener = Listener()
        self._listeners[listener] = address
        try:
            yield listener
        finally:
            del self._listeners[listener]

    def publish(self, event: Event) -> None:
        """Hands the event to every listener."""
        for listener in self._listeners:
            listener.offer(event)

    def end(self) -> None:
        """Ends every listener's place, which a change of state tells it."""
        for listener in self._listeners:
            listener.ended = True
            listener.offer(StateChanged())

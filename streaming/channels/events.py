"""A channel's events, fanned out to bounded queues: one for each listener of the event stream."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from streaming.errors import Unavailable

MOST_LISTENERS = 256
EVENTS_KEPT = 16  # per listener; one that falls further behind is cut off and may come back


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


class Broadcast:
    """Listeners of one channel. A full queue never holds the publisher: its listener is cut off."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[Event]] = set()

    @contextmanager
    def listen(self) -> Iterator[asyncio.Queue[Event]]:
        """A queue of the events while the block runs. Raises Unavailable when too many listen already."""
        if len(self._queues) >= MOST_LISTENERS:
            raise Unavailable(f"There are {MOST_LISTENERS} listeners already; try again later.")
        queue: asyncio.Queue[Event] = asyncio.Queue(EVENTS_KEPT)
        self._queues.add(queue)
        try:
            yield queue
        finally:
            self._queues.discard(queue)

    def reaches(self, queue: asyncio.Queue[Event]) -> bool:
        """Whether the listener with this queue was not cut off."""
        return queue in self._queues

    def publish(self, event: Event) -> None:
        """Hands the event to every listener."""
        for queue in tuple(self._queues):
            try:
                queue.put_nowait(event)
            except asyncio.QueueFull:
                self._queues.discard(queue)

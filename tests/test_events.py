import asyncio

import pytest

from streaming.channels.events import EVENTS_KEPT, MOST_LISTENERS, Broadcast, PromptShown, StateChanged
from streaming.errors import Unavailable


async def test_every_listener_gets_every_event() -> None:
    """Two listeners get the same events in order."""
    broadcast = Broadcast()
    with broadcast.listen() as first, broadcast.listen() as second:
        broadcast.publish(StateChanged())
        broadcast.publish(PromptShown("a", 3))
        for queue in (first, second):
            assert [queue.get_nowait() for _ in range(2)] == [StateChanged(), PromptShown("a", 3)]


async def test_slow_listener_is_cut_off() -> None:
    """A listener that does not read loses its place; others and the publisher go on."""
    broadcast = Broadcast()
    with broadcast.listen() as slow, broadcast.listen() as fast:
        for _ in range(EVENTS_KEPT + 1):
            broadcast.publish(StateChanged())
            fast.get_nowait()
        assert not broadcast.reaches(slow)
        assert broadcast.reaches(fast)
        assert slow.qsize() == EVENTS_KEPT


async def test_number_of_listeners_is_bounded() -> None:
    """One too many is refused, and a place becomes free when a listener leaves."""
    broadcast = Broadcast()
    listeners = [broadcast.listen() for _ in range(MOST_LISTENERS)]
    queues: list[asyncio.Queue[object]] = [listener.__enter__() for listener in listeners]  # type: ignore[misc]
    with pytest.raises(Unavailable, match=str(MOST_LISTENERS)), broadcast.listen():
        pass
    listeners[0].__exit__(None, None, None)
    with broadcast.listen() as queue:
        assert broadcast.reaches(queue)
    assert len(queues) == MOST_LISTENERS
    for listener in listeners[1:]:
        listener.__exit__(None, None, None)

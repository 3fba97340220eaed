import asyncio
from contextlib import ExitStack

import pytest

from streaming.channels.events import EVENTS_KEPT, MOST_AN_ADDRESS, MOST_LISTENERS, Broadcast, PromptShown, StateChanged
from streaming.errors import Unavailable


async def test_every_listener_gets_every_event() -> None:
    """Two listeners get the prompts in order, and one word of a state that changed often."""
    broadcast = Broadcast()
    with broadcast.listen("one") as first, broadcast.listen("one") as second:
        for _ in range(500):
            broadcast.publish(StateChanged())
        broadcast.publish(PromptShown("a", 3))
        broadcast.publish(PromptShown("b", 5))
        for listener in (first, second):
            expected = [PromptShown("a", 3), PromptShown("b", 5), StateChanged()]
            assert [await listener.get() for _ in expected] == expected
            assert not listener.ended
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(listener.get(), 0.01)


async def test_slow_listener_is_cut_off() -> None:
    """A listener that does not read loses its place for prompts; others and the publisher go on."""
    broadcast = Broadcast()
    with broadcast.listen("one") as slow, broadcast.listen("one") as fast:
        for number in range(EVENTS_KEPT + 1):
            broadcast.publish(PromptShown("a", number))
            assert await fast.get() == PromptShown("a", number)
        assert slow.ended and not fast.ended


async def test_number_of_listeners_is_bounded() -> None:
    """One too many is refused, of all or of one address, and a place becomes free when a listener leaves."""
    broadcast = Broadcast()
    with ExitStack() as most:
        for number in range(MOST_LISTENERS):
            most.enter_context(broadcast.listen(f"address {number // MOST_AN_ADDRESS}"))
        with pytest.raises(Unavailable, match=str(MOST_LISTENERS)), broadcast.listen("new"):
            pass
    with ExitStack() as most:
        for _ in range(MOST_AN_ADDRESS):
            most.enter_context(broadcast.listen("one"))
        with pytest.raises(Unavailable, match="from your address"), broadcast.listen("one"):
            pass
        with broadcast.listen("other"):
            pass
    with broadcast.listen("one"):
        pass

import asyncio

import pytest

from engine.wire.messages import PromptSet, Refused
from streaming.channels.events import PromptShown
from streaming.channels.prompts import MOST_REQUESTS, PROMPTS_KEPT, PromptBook, PromptRefused
from streaming.errors import Unavailable


async def test_answer_reaches_who_asked() -> None:
    """Answers may come in any order; each settles its own request."""
    book = PromptBook("first", 0)
    (one, first), (two, second) = book.ask(), book.ask()
    book.accept(PromptSet(two, "main", "b", 48))
    book.refuse(Refused(one, "main", "no"))
    assert (await second).frame == 48
    with pytest.raises(PromptRefused, match="no"):
        await first
    assert book.newest == "b"


async def test_open_requests_are_bounded() -> None:
    """One request too many is refused; a cancelled one makes room."""
    book = PromptBook("first", 0)
    futures = [book.ask()[1] for _ in range(MOST_REQUESTS)]
    with pytest.raises(Unavailable, match="waiting"):
        book.ask()
    futures[0].cancel()
    await asyncio.sleep(0)
    book.ask()


async def test_answer_to_a_request_that_left_still_counts() -> None:
    """The engine changed the prompt, so the book says so, even when nobody waits for the answer any more."""
    book = PromptBook("first", 0)
    number, future = book.ask()
    future.cancel()
    book.accept(PromptSet(number, "main", "b", 24))
    assert book.newest == "b"


async def test_prompt_is_shown_once() -> None:
    """A prompt is told when its first frame is on air, once, also when that very frame was skipped."""
    book = PromptBook("first", 0)
    book.accept(PromptSet(1, "main", "b", 24))
    assert book.show(0) == [PromptShown("first", 0)]
    assert book.show(23) == []
    assert book.show(30) == [PromptShown("b", 24)]
    assert book.show(31) == []


async def test_interruption_moves_prompts_forward() -> None:
    """After a crash the newest prompt begins where the next engine begins; open requests fail."""
    book = PromptBook("first", 0)
    _, future = book.ask()
    book.accept(PromptSet(7, "main", "b", 48))
    book.interrupt(40)
    with pytest.raises(Unavailable, match="stopped"):
        await future
    assert [(record.prompt, record.frame) for record in book.report()] == [("first", 0), ("b", 40)]


def test_only_the_last_prompts_are_kept() -> None:
    """The book does not grow."""
    book = PromptBook("first", 0)
    for number in range(100):
        book.accept(PromptSet(number, "main", str(number), number))
    assert [record.prompt for record in book.report()] == [str(number) for number in range(100 - PROMPTS_KEPT, 100)]

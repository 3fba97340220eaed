import asyncio

import pytest

from engine.text.asked import Asked
from engine.wire.messages import ChannelOpened, PromptReplaced, PromptSet, Refused
from streaming.channels.events import PromptDropped, PromptShown
from streaming.channels.prompts import PROMPTS_KEPT, PromptBook, RequestRefused
from streaming.channels.report import PromptReport
from streaming.errors import Unavailable


async def test_one_change_is_with_the_engine_and_the_newest_waits() -> None:
    """Of those that come meanwhile the last one counts; the others learn at once by what they were replaced."""
    book = PromptBook("first", 0)
    futures = [book.ask(prompt, "flow") for prompt in "a"]
    sent = book.next()
    assert sent is not None and sent.prompt == "a"
    futures += [book.ask(prompt, "flow") for prompt in "bcd"]
    assert book.next() is None
    assert [await future for future in futures[1:3]] == [
        PromptReport("b", None, replaced_by="c"),
        PromptReport("c", None, replaced_by="d"),
    ]
    book.accept(PromptSet(sent.number, "main", "a", 48))
    assert (await futures[0]).frame == 48
    following = book.next()
    assert following is not None and following.prompt == "d" and not futures[3].done()


async def test_the_first_prompt_is_read_too() -> None:
    """What the engine read of the prompt that it was opened with is in its report."""
    book = PromptBook("first", 0)
    understood = Asked("ball").understood(1, ("shiny",))
    assert book.read(ChannelOpened("main", ("shiny",), understood), 0) == []
    assert book.report() == [PromptReport("first", 0, unread=("shiny",), understood=understood)]


async def test_refusal_reaches_who_asked() -> None:
    """The reason comes out of the future, the prompt stays, and the next change can go."""
    book = PromptBook("first", 0)
    future = book.ask("b", "flow")
    sent = book.next()
    assert sent is not None
    book.refuse(Refused(sent.number, "main", "no"))
    with pytest.raises(RequestRefused, match="no"):
        await future
    book.ask("c", "flow")
    assert book.newest.prompt == "first" and book.next() is not None


async def test_answer_to_a_request_that_left_still_counts() -> None:
    """The engine changed the prompt, so the book says so, even when nobody waits for the answer any more."""
    book = PromptBook("first", 0)
    future = book.ask("b", "flow")
    sent = book.next()
    assert sent is not None
    future.cancel()
    book.accept(PromptSet(sent.number, "main", "b", 24))
    assert book.newest.prompt == "b"


async def test_prompt_is_shown_once() -> None:
    """A prompt is told when its first frame is on air, once, also when that very frame was skipped."""
    book = PromptBook("first", 0)
    book.accept(PromptSet(1, "main", "b", 24))
    assert book.show(0) == [PromptShown("first", 0)]
    assert book.show(23) == []
    assert book.show(30) == [PromptShown("b", 24)]
    assert book.show(31) == []


async def test_a_replaced_prompt_is_never_shown() -> None:
    """Of two prompts for the same frame the later one is told; the earlier one says what came in its place, once."""
    book = PromptBook("first", 0)
    book.accept(PromptSet(1, "main", "a", 24))
    assert book.replace(PromptReplaced(1, "main", "b")) == [PromptDropped("a", 24, "b")]
    assert book.accept(PromptSet(2, "main", "b", 24)) == []
    assert book.replace(PromptReplaced(1, "main", "c")) == book.replace(PromptReplaced(9, "main", "c")) == []
    assert book.show(24) == [PromptShown("first", 0), PromptShown("b", 24)]
    assert [(one.prompt, one.shown, one.replaced_by) for one in book.report()] == [
        ("first", True, None), ("a", False, "b"), ("b", True, None),
    ]  # fmt: skip


async def test_interruption_ends_what_was_not_answered() -> None:
    """After a crash open changes fail, those that were answered stay; the next engine may answer them again."""
    book = PromptBook("first", 0)
    book.accept(PromptSet(1, "main", "a", 48))
    futures = [book.ask("c", "flow")]
    book.next()
    futures.append(book.ask("d", "flow"))
    book.interrupt("it stopped")
    for future in futures:
        with pytest.raises(Unavailable, match="it stopped"):
            await future
    assert book.next() is None
    book.show(48)
    assert book.read(ChannelOpened("main", went_on=True), 40) == []
    assert book.accept(PromptSet(1, "main", "a", 48)) == []
    # It took one whose answer was lost.
    book.accept(PromptSet(2, "main", "c", 72))
    assert [(one.prompt, one.frame, one.shown) for one in book.report()] == [
        ("first", 0, True), ("a", 48, True), ("c", 72, False),
    ]  # fmt: skip


async def test_an_engine_that_begins_anew_moves_prompts_forward() -> None:
    """The newest prompt begins where that engine begins; unseen ones before it are over."""
    book = PromptBook("first", 0)
    book.accept(PromptSet(1, "main", "a", 48))
    book.accept(PromptSet(2, "main", "b", 72))
    assert book.read(ChannelOpened("main"), 40) == [PromptDropped("a", 48, "b")]
    assert [(one.prompt, one.frame) for one in book.report()] == [("first", 0), ("a", 48), ("b", 40)]


async def test_only_the_last_prompts_are_kept() -> None:
    """The book does not grow, and replaced prompts go first: the one on air stays as long as it can."""
    book = PromptBook("first", 0)
    for number in range(1, 100):
        book.accept(PromptSet(number, "main", str(number), 24))
        if number > 1:
            book.replace(PromptReplaced(number - 1, "main", str(number)))
    kept = [one.prompt for one in book.report()]
    assert len(kept) == PROMPTS_KEPT and kept[0] == "first" and kept[-1] == "99"
    for number in range(100, 200):
        book.accept(PromptSet(number, "main", str(number), number))
    assert [one.prompt for one in book.report()] == [str(number) for number in range(200 - PROMPTS_KEPT, 200)]
    await asyncio.sleep(0)


async def test_a_cut_drops_the_prompts_behind_it() -> None:
    """Those that were to begin at its frame or later are never shown; those before it are."""
    book = PromptBook("first", 0)
    book.show(0)
    for number, (prompt, frame) in enumerate([("a", 24), ("b", 48), ("c", 72)], 1):
        book.accept(PromptSet(number, "main", prompt, frame))
    assert book.accept(PromptSet(4, "main", "d", 48)) == [PromptDropped("b", 48, "d"), PromptDropped("c", 72, "d")]
    assert book.show(50) == [PromptShown("a", 24), PromptShown("d", 48)]
    # One that is on air stays, however late the cut's frame comes.
    assert book.accept(PromptSet(5, "main", "e", 48)) == []


async def test_prompt_and_seed_change_apart() -> None:
    """A change without one of them keeps what is newest, that of a change included whose place it takes."""
    book = PromptBook("first", 0, seed=3)
    book.ask(None, "flow", 5)
    sent = book.next()
    assert sent is not None and (sent.prompt, sent.seed) == ("first", 5)
    waiting = book.ask("a", "flow")
    book.ask(None, "cut", 7)
    assert (await waiting).replaced_by == "a"
    book.accept(PromptSet(sent.number, "main", "first", 24))
    assert (book.newest.prompt, book.newest.seed) == ("first", 5)
    following = book.next()
    assert following is not None and (following.prompt, following.seed, following.mode) == ("a", 7, "cut")
    book.accept(PromptSet(following.number, "main", "a", 30))
    book.ask("b", "flow")
    last = book.next()
    assert last is not None and (last.prompt, last.seed) == ("b", 7)

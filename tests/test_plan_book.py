"""What is known in the server of a channel's plan."""

import asyncio
from typing import Any

import pytest
from fakes import WIDTH, test_frame

from engine.wire.messages import DiscardPlan, LookAhead, PlanAhead, PlanDiscarded, PlannedPart, PlanPicture, Refused
from engine.wire.understood import Understood
from streaming.channels.plan_book import KEPT_S, PlanBook
from streaming.channels.prompts import PromptBook, RequestRefused
from streaming.errors import Unavailable

PARTS = (PlannedPart(8, 8, True, {"subject": "fish"}, 3), PlannedPart(16, 8, False, {}, None))


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def book() -> tuple[PlanBook, list[Any], PromptBook, Clock]:
    sent, prompts, clock = list[Any](), PromptBook("a fish", 0), Clock()
    return PlanBook("main", sent.append, lambda: prompts, clock), sent, prompts, clock


def picture(number: int) -> PlanPicture:
    return PlanPicture("main", number, WIDTH, test_frame(number).tobytes())


async def test_many_who_look_are_one_question() -> None:
    """They get one answer, which is good for a moment; then the engine is asked anew."""
    plan, sent, _, clock = book()
    waiting = [asyncio.create_task(plan.parts()) for _ in range(50)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    assert sent == [LookAhead("main")]
    plan.receive(PlanAhead("main", PARTS))
    answers = await asyncio.gather(*waiting[1:])
    assert all(answer == answers[0] for answer in answers)
    assert [(one.frame, one.rendered, one.prompt, one.picture) for one in answers[0]] == [
        (8, True, "a fish", None),
        (16, False, "a fish", None),
    ]
    await plan.parts()
    assert len(sent) == 1
    clock.now_s = KEPT_S
    asyncio.get_running_loop().call_soon(plan.receive, PlanAhead("main", ()))
    assert await plan.parts() == [] and len(sent) == 2


async def test_pictures_are_kept_as_long_as_the_plan_has_them() -> None:
    """Under a name by their content; one that is dropped is not there any more."""
    plan, _, _, clock = book()
    asyncio.get_running_loop().call_soon(plan.receive, PlanAhead("main", PARTS))
    await plan.parts()
    plan.receive(picture(3))
    plan.receive(picture(4))
    (name, none) = [one.picture for one in await plan.parts()]
    assert name is not None and none is None
    still = await plan.jpeg(name)
    assert still is not None and still.jpeg[:2] == b"\xff\xd8" and await plan.jpeg(name) is still
    clock.now_s = 1
    asyncio.get_running_loop().call_soon(plan.receive, PlanAhead("main", PARTS))
    assert [one.picture for one in await plan.parts()] == [name, None]
    assert len(plan._stills) == 1
    clock.now_s = 2
    asyncio.get_running_loop().call_soon(plan.receive, PlanAhead("main", PARTS[1:]))
    await plan.parts()
    assert await plan.jpeg(name) is None


async def test_discards_take_turns() -> None:
    """The engine has one at a time; each gets its own answer, and the newest prompt the new seed."""
    plan, sent, prompts, _ = book()
    both = [asyncio.create_task(plan.discard(frame, seed)) for frame, seed in ((16, None), (24, 7))]
    await asyncio.sleep(0)
    assert sent == [DiscardPlan(1, "main", 16, None)]
    shown = Understood("fish", "red", "sea", "left", "normal", "none", None, None, None, (), ())
    first = PlanDiscarded(1, "main", 16, 1, shown)
    plan.receive(first)
    assert await both[0] is first and (prompts.newest.seed, prompts.newest.understood) == (1, shown)
    await asyncio.sleep(0)
    assert sent[1:] == [DiscardPlan(2, "main", 24, 7)]
    plan.refuse(Refused(2, "main", "frame 24 was on air"))
    with pytest.raises(RequestRefused, match="frame 24 was on air"):
        await both[1]


async def test_an_answer_that_nobody_waits_for_counts() -> None:
    """The plan is another, whoever gave up."""
    plan, sent, prompts, _ = book()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await plan.discard(16, 5)
    assert len(sent) == 1
    plan.receive(PlanDiscarded(1, "main", 16, 5))
    plan.refuse(Refused(1, "main", "too late"))
    assert prompts.newest.seed == 5


async def test_who_waits_for_an_engine_that_ends_is_told() -> None:
    """Both for those who look and those who drop; what that engine planned is forgotten."""
    plan, _, _, clock = book()
    asyncio.get_running_loop().call_soon(plan.receive, PlanAhead("main", PARTS))
    await plan.parts()
    plan.receive(picture(3))
    clock.now_s = 1
    waiting = [asyncio.create_task(plan.parts()), asyncio.create_task(plan.discard(16, None))]
    await asyncio.sleep(0)
    plan.interrupt("The engine stopped.")
    for task in waiting:
        with pytest.raises(Unavailable, match=r"The engine stopped\."):
            await task
    assert plan._stills == {}
    plan.interrupt("Again.")


def test_the_prompt_of_a_frame() -> None:
    """The last one that begins at or before it; of frames before the first that is known, that one."""
    prompts = PromptBook("first", 10)
    assert prompts.at(3).prompt == prompts.at(10).prompt == "first"


def test_a_prompt_that_was_to_come_later_comes_with_the_plan() -> None:
    """Its frame is that of the answer if that is sooner; one that is on air keeps its own."""
    prompts = PromptBook("first", 10)
    prompts.replan(PlanDiscarded(1, "main", 4, 2))
    assert (prompts.newest.frame, prompts.newest.seed) == (4, 2)
    prompts.show(4)
    prompts.replan(PlanDiscarded(2, "main", 2, 3))
    assert (prompts.newest.frame, prompts.newest.seed) == (4, 3)

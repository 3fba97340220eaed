"""A channel's prompts: the last ones with their first frames, and the changes that wait for the engine's answer.

One change at a time is with the engine. Of those that come meanwhile the newest waits, the others are replaced by it:
so the engine is never flooded, however fast people type.
"""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass
from itertools import count

from engine.wire.messages import ChannelOpened, PlanDiscarded, PromptReplaced, PromptSet, Refused
from engine.wire.settings import ChannelSettings
from streaming.channels.events import PromptDropped, PromptShown
from streaming.channels.report import PromptReport
from streaming.errors import Unavailable

PROMPTS_KEPT = 8


class RequestRefused(Exception):
    """The engine refused what it was asked for; the text is its reason."""


@dataclass(slots=True)
class PromptRequest:
    """A change on its way."""

    number: int
    prompt: str | None  # None for the one that is newest when the change goes to the engine
    seed: int | None  # likewise
    mode: str
    report: asyncio.Future[PromptReport]  # of the change, once it is taken or replaced


class PromptBook:
    """Prompts of one channel, whose first prompt begins at frame `frame`."""

    def __init__(self, prompt: str, frame: int, seed: int = 0) -> None:
        self._reports = {0: PromptReport(prompt, frame, seed=seed)}  # by request, oldest first
        self._asked: PromptRequest | None = None  # with the engine
        self._waiting: PromptRequest | None = None
        self._numbers = count(1)

    @classmethod
    def of(cls, settings: ChannelSettings) -> PromptBook:
        """That of a channel; without a prompt or seed where a fork is not told of its own yet."""
        return cls(settings.prompt or "", settings.start.frame, settings.seed or 0)

    @property
    def newest(self) -> PromptReport:
        """The prompt that was accepted last, shown or not."""
        return self._current[-1]

    def number(self) -> int:
        """A number for a request of any kind."""
        return next(self._numbers)

    def at(self, frame: int) -> PromptReport:
        """The prompt that a frame is rendered under, as far as is known."""
        begun = [one for one in self._current if one.frame is not None and one.frame <= frame]
        return begun[-1] if begun else self._current[0]

    def ask(self, prompt: str | None, mode: str, seed: int | None = None) -> asyncio.Future[PromptReport]:
        """A new change, to be sent with `next`; it takes the place of the one that waits.

        Without prompt or seed it keeps that of the change before it.
        """
        future: asyncio.Future[PromptReport] = asyncio.get_running_loop().create_future()
        new = PromptRequest(self.number(), prompt, seed, mode, future)
        if self._waiting is not None:
            self._put_before(self._waiting, new)
        self._waiting = new
        return future

    def _put_before(self, earlier: PromptRequest, new: PromptRequest) -> None:
        """A change takes the place of one that is not answered."""
        new.prompt = earlier.prompt if new.prompt is None else new.prompt
        new.seed = earlier.seed if new.seed is None else new.seed
        words = new.prompt or self.newest.prompt
        _set(earlier.report, PromptReport(earlier.prompt or self.newest.prompt, None, replaced_by=words))

    def next(self) -> PromptRequest | None:
        """The change to send to the engine now, if any; prompt and seed are known."""
        if self._asked is not None or self._waiting is None:
            return None
        self._asked, self._waiting = self._waiting, None
        if self._asked.prompt is None:
            self._asked.prompt = self.newest.prompt
        if self._asked.seed is None:
            self._asked.seed = self.newest.seed
        return self._asked

    def accept(self, answer: PromptSet) -> list[PromptDropped]:
        """The engine took a prompt; whoever asked gets its report. Prompts that it leaves no frame are never shown.

        What another process answered before counts once.
        """
        known = self._reports.get(answer.request)
        if known is not None and known.frame == answer.frame:
            return []
        asked = self._asked if self._asked is not None and self._asked.number == answer.request else None
        seed = self.newest.seed if asked is None or asked.seed is None else asked.seed
        report = PromptReport(
            answer.prompt, answer.frame, unread=answer.unread, seed=seed, understood=answer.understood
        )
        dropped = [
            _drop(one, answer.prompt)
            for one in self._current
            if not one.shown and one.frame is not None and one.frame >= answer.frame
        ]
        self._reports[answer.request] = report
        while len(self._reports) > PROMPTS_KEPT:
            # Those that are never shown go first.
            replaced = (number for number, one in self._reports.items() if one.replaced_by)
            del self._reports[next(replaced, next(iter(self._reports)))]
        if asked is not None:
            _set(asked.report, report)
            self._asked = None
        return dropped

    def read(self, answer: ChannelOpened, frame: int) -> list[PromptDropped]:
        """The engine read the prompt that it was opened with, which is the newest; its first frame is `frame`.

        Unless it went on with what another answered, the prompts before that one are over.
        """
        *others, newest = self._current
        newest.unread, newest.understood = answer.unread, answer.understood
        if answer.went_on:
            return []
        dropped = [_drop(one, newest.prompt) for one in others if one.frame is not None and one.frame >= frame]
        if newest.frame is not None:
            newest.frame = min(newest.frame, frame)
        return dropped

    def replan(self, answer: PlanDiscarded) -> None:
        """The engine plans anew under the newest prompt, with another seed."""
        newest = self.newest
        newest.seed, newest.understood = answer.seed, answer.understood
        if not newest.shown and newest.frame is not None:
            newest.frame = min(newest.frame, answer.frame)

    def replace(self, answer: PromptReplaced) -> list[PromptDropped]:
        """The engine took another prompt for the chunk of an earlier one, which is never shown."""
        report = self._reports.get(answer.request)
        if report is None or report.replaced_by is not None:
            return []
        return [_drop(report, answer.replaced_by)]

    def refuse(self, answer: Refused) -> None:
        """The engine refused; whoever asked gets RequestRefused."""
        if self._asked is not None and self._asked.number == answer.request:
            if not self._asked.report.done():
                self._asked.report.set_exception(RequestRefused(answer.reason))
            self._asked = None

    def interrupt(self, reason: str, again: bool = False) -> None:
        """The engine is gone: open changes fail or, with `again`, are asked of another. Those that it took stay."""
        if again:
            asked, self._asked = self._asked, None
            if asked is not None and self._waiting is not None:
                self._put_before(asked, self._waiting)
            self._waiting = self._waiting or asked
            return
        for request in (self._asked, self._waiting):
            if request is not None and not request.report.done():
                request.report.set_exception(Unavailable(reason))
        self._asked = self._waiting = None

    def show(self, frame: int) -> list[PromptShown]:
        """Frame number `frame` is on air: the prompts that begin with it, or began unseen before it, each once."""
        begun = [one for one in self._current if not one.shown and one.frame is not None and one.frame <= frame]
        for report in begun:
            report.shown = True
        return [PromptShown(report.prompt, report.frame or 0) for report in begun]

    def report(self) -> list[PromptReport]:
        """Copies of the last prompts, oldest first."""
        return [dataclasses.replace(one) for one in self._reports.values()]

    @property
    def _current(self) -> list[PromptReport]:
        return [one for one in self._reports.values() if one.replaced_by is None]


def _drop(report: PromptReport, replaced_by: str) -> PromptDropped:
    report.replaced_by = replaced_by
    return PromptDropped(report.prompt, report.frame or 0, replaced_by)


def _set(future: asyncio.Future[PromptReport], report: PromptReport) -> None:
    if not future.done():
        future.set_result(report)

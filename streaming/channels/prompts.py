"""A channel's prompts: the last ones with their first frames, and the changes that wait for the engine's answer."""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import count

from engine.wire.messages import PromptSet, Refused
from streaming.channels.events import PromptShown
from streaming.channels.report import PromptReport
from streaming.errors import Unavailable

PROMPTS_KEPT = 8
MOST_REQUESTS = 16


class PromptRefused(Exception):
    """The engine refused a prompt; the text is its reason."""


class PromptBook:
    """Prompts of one channel, whose first prompt begins at frame `frame`."""

    def __init__(self, prompt: str, frame: int) -> None:
        self._records = deque([PromptReport(prompt, frame, False)], PROMPTS_KEPT)
        self._requests: dict[int, asyncio.Future[PromptSet]] = {}
        self._numbers = count(1)

    @property
    def newest(self) -> str:
        """The prompt that was accepted last, shown or not."""
        return self._records[-1].prompt

    def ask(self) -> tuple[int, asyncio.Future[PromptSet]]:
        """A number for a new request and the future of its answer. Raises Unavailable when too many wait."""
        if len(self._requests) >= MOST_REQUESTS:
            raise Unavailable(f"{MOST_REQUESTS} prompt changes are waiting already; try again in a moment.")
        number = next(self._numbers)
        future: asyncio.Future[PromptSet] = asyncio.get_running_loop().create_future()
        self._requests[number] = future
        future.add_done_callback(lambda _: self._requests.pop(number, None))
        return number, future

    def accept(self, answer: PromptSet) -> None:
        """The engine took a prompt; whoever asked gets the answer."""
        self._records.append(PromptReport(answer.prompt, answer.frame, False))
        future = self._requests.get(answer.request)
        if future is not None and not future.done():
            future.set_result(answer)

    def refuse(self, answer: Refused) -> None:
        """The engine refused; whoever asked gets PromptRefused."""
        future = self._requests.get(answer.request)
        if future is not None and not future.done():
            future.set_exception(PromptRefused(answer.reason))

    def interrupt(self, frame: int) -> None:
        """The engine is gone. Its successor begins at `frame` under the newest prompt; open requests fail."""
        for record in self._records:
            record.frame = min(record.frame, frame)
        for future in tuple(self._requests.values()):
            if not future.done():
                future.set_exception(Unavailable("The engine stopped before it took the prompt; try again."))

    def show(self, frame: int) -> list[PromptShown]:
        """Frame number `frame` is on air: the prompts that begin with it, or began unseen before it, each once."""
        begun = [record for record in self._records if not record.shown and record.frame <= frame]
        for record in begun:
            record.shown = True
        return [PromptShown(record.prompt, record.frame) for record in begun]

    def report(self) -> list[PromptReport]:
        """Copies of the last prompts, oldest first."""
        return [PromptReport(record.prompt, record.frame, record.shown) for record in self._records]

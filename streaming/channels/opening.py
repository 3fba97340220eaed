"""The engine's answer to a new channel, who waits for it, and where the next process begins."""

from __future__ import annotations

import asyncio

from engine.wire.settings import ChannelStart
from streaming.errors import Unavailable


class Opening:
    """Pending from `ask` until `settle`."""

    def __init__(self, first: ChannelStart) -> None:
        """`first` is where the channel begins."""
        self._first = first
        self._killed = False  # the last process was, from outside
        self._answer: asyncio.Future[None] | None = None
        self.done = False  # it was open once

    def start(self, frame: int, chunk: int, shown: int | None) -> ChannelStart:
        """For the next process: number of the first frame and chunk that are not there, and of the next to show."""
        goes_on, from_disk = self.done or self._first.goes_on, self._first.from_disk and not self.done
        return ChannelStart(frame, chunk, shown, goes_on, from_disk, self._killed)

    def check(self) -> None:
        """Raises Unavailable while it is pending."""
        if self._answer is not None:
            raise Unavailable("The channel is being made; try again.")

    def ask(self) -> asyncio.Future[None]:
        """What to await, when the engine has been asked."""
        self._answer = asyncio.get_running_loop().create_future()
        return self._answer

    def interrupt(self, killed: bool) -> None:
        """The process ended, or gives the channel away: who waits gets Unavailable."""
        self._killed = killed
        self.settle(Unavailable("The engine stopped before it made the channel; try again."))

    def settle(self, error: Exception | None = None) -> None:
        """The channel is open, or cannot be; does nothing where nobody waits."""
        answer, self._answer = self._answer, None
        self.done = self.done or error is None
        if answer is None or answer.done():
            return
        if error is None:
            answer.set_result(None)
        else:
            answer.set_exception(error)

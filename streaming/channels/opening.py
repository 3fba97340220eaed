"""The engine's answer to a new channel, and who waits for it."""

from __future__ import annotations

import asyncio

from streaming.errors import Unavailable


class Opening:
    """Pending from `ask` until `settle`."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[None] | None = None
        self.done = False  # it was open once

    def check(self) -> None:
        """Raises Unavailable while it is pending."""
        if self._answer is not None:
            raise Unavailable("The channel is being made; try again.")

    def ask(self) -> asyncio.Future[None]:
        """What to await, when the engine has been asked."""
        self._answer = asyncio.get_running_loop().create_future()
        return self._answer

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

"""What the engine has planned of a channel: asked for when somebody looks, and dropped on demand.

However many look, the engine is asked once at a time, and a picture becomes a JPEG when it is first fetched.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engine.wire.messages import (
    ChannelMessage,
    DiscardPlan,
    LookAhead,
    PlanAhead,
    PlanDiscarded,
    PlannedPart,
    PlanPicture,
    Refused,
    ToEngine,
)
from streaming.channels.prompts import PromptBook, RequestRefused
from streaming.errors import Unavailable
from streaming.media.hub import Picture
from streaming.media.still import LazyStill, Still

ENDED = "The channel has ended."
KEPT_S = 0.2  # that an answer is good for all who ask


@dataclass(frozen=True, slots=True)
class ComingPart:
    """About a second of what comes."""

    frame: int  # number of its first frame
    frames: int
    prompt: str
    rendered: bool
    picture: str | None  # name of a preview of its beginning; None before that is made
    words: dict[str, str]  # what it shows, of a model that can say, once enough of it is planned


class PlanBook:
    """The plan of one channel, as the engine told it last."""

    def __init__(
        self,
        channel: str,
        send: Callable[[ToEngine], None],
        prompts: Callable[[], PromptBook],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`send` raises Unavailable when no engine makes the channel; `prompts` are the channel's by now."""
        self._ended = False
        self._channel, self._send, self._prompts, self._clock = channel, send, prompts, clock
        self._parts: tuple[PlannedPart, ...] = ()
        self._told_s = float("-inf")
        self._asked: asyncio.Future[None] | None = None
        self._names: dict[int, str] = {}  # of pictures, by the engine's numbers
        self._stills: dict[str, LazyStill] = {}
        self._discarding: tuple[int, asyncio.Future[PlanDiscarded]] | None = None
        self._turn = asyncio.Lock()

    async def parts(self) -> list[ComingPart]:
        """All that is planned, from the frame on air on. Raises Unavailable when no engine answers."""
        if self._asked is None and self._clock() - self._told_s >= KEPT_S:
            self._ask(LookAhead(self._channel))
            self._asked = asyncio.get_running_loop().create_future()
        if self._asked is not None:
            await asyncio.shield(self._asked)
        prompts = self._prompts()
        return [
            ComingPart(
                *(part.frame, part.frames, prompts.at(part.frame).prompt, part.rendered),
                None if part.picture is None else self._names.get(part.picture),
                part.words,
            )
            for part in self._parts
        ]

    async def jpeg(self, name: str) -> Still | None:
        """The preview of this name; None for one that is not there any more."""
        still = self._stills.get(name)
        return None if still is None else await still.get()

    async def discard(self, frame: int, seed: int | None) -> PlanDiscarded:
        """Has all from a frame on planned anew; one request at a time.

        Raises Unavailable when the engine stops meanwhile, RequestRefused with its reason.
        """
        async with self._turn:
            number = self._prompts().number()
            future: asyncio.Future[PlanDiscarded] = asyncio.get_running_loop().create_future()
            self._ask(DiscardPlan(number, self._channel, frame, seed))
            self._discarding = number, future
            try:
                return await future
            finally:
                self._discarding = None

    def receive(self, message: ChannelMessage) -> None:
        """Takes one message of the engine about the plan."""
        match message:
            case PlanAhead():
                self._take(message)
            case PlanPicture():
                self._keep(message)
            case PlanDiscarded():
                self._prompts().replan(message)
                self._told_s = float("-inf")
                if (future := self._waiting(message.request)) is not None:
                    future.set_result(message)

    def refuse(self, answer: Refused) -> None:
        """The engine refused; whoever asked gets RequestRefused."""
        if (future := self._waiting(answer.request)) is not None:
            future.set_exception(RequestRefused(answer.reason))

    def end(self) -> None:
        """The channel is no more: who waits, and who waits for a turn, gets Unavailable."""
        self._ended = True
        self.interrupt(ENDED)

    def interrupt(self, reason: str) -> None:
        """The engine is gone, and what it planned: who waits for it gets Unavailable."""
        self._parts, self._told_s = (), float("-inf")
        self._names, self._stills = {}, {}
        asked, self._asked = self._asked, None
        if asked is not None:
            asked.set_exception(Unavailable(reason))
            asked.exception()  # perhaps nobody waits any more
        if self._discarding is not None and (future := self._waiting(self._discarding[0])) is not None:
            future.set_exception(Unavailable(reason))

    def _ask(self, message: ToEngine) -> None:
        if self._ended:
            raise Unavailable(ENDED)
        self._send(message)

    def _waiting(self, request: int) -> asyncio.Future[PlanDiscarded] | None:
        """The future of a request that is still waited for."""
        number, future = self._discarding or (None, None)
        return future if number == request and future is not None and not future.done() else None

    def _take(self, answer: PlanAhead) -> None:
        self._parts, self._told_s = answer.parts, self._clock()
        asked, self._asked = self._asked, None
        if asked is not None:
            asked.set_result(None)
        kept = {part.picture for part in answer.parts}
        self._names = {number: name for number, name in self._names.items() if number in kept}
        self._stills = {name: self._stills[name] for name in self._names.values()}

    def _keep(self, message: PlanPicture) -> None:
        name = hashlib.blake2s(message.i420, digest_size=8).hexdigest()
        self._names[message.number] = name
        i420 = np.frombuffer(message.i420, np.uint8).reshape(-1, message.width)
        self._stills.setdefault(name, LazyStill(Picture(message.number, i420)))

"""Carries a receiver, a viewer or the far end of a push, between the two rungs, as `rate.py` decides.

It also lets a receiver that loses packets hold pictures back, as `playout_delay.py` decides.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any, Protocol

from streaming.media.feed import Feed
from streaming.media.playout_delay import PlayoutDelay
from streaming.media.rate import Decision, Feedback, Move, Probe, RateController, Refresh, Rung
from streaming.media.rtp_hooks import SenderHooks

log = logging.getLogger(__name__)

TURN_S = 0.02  # between the parts of a probe


class Stream(Protocol):
    """The packets of one receiver."""

    def pause(self) -> None:
        """Sends nothing until the next `change`."""
        ...

    def change(self, rung: Rung) -> None:
        """Goes on with a key frame of a rung."""
        ...

    def request_keyframe(self) -> None:
        """Asks for a key frame of the rung."""
        ...

    def hold(self, delay_s: float) -> None:
        """Tells the receiver to show pictures that much later than it could."""
        ...


class Link(Protocol):
    """The connection of one receiver."""

    def limit(self, rate_bps: int) -> None:
        """The video has another bit rate from now on; what was sent before is not sent again."""
        ...

    @property
    def can_probe(self) -> bool:
        """True if `probe` can be used."""
        ...

    def probe(self, size: int) -> None:
        """Sends about that many bytes of what the receiver has already."""
        ...

    async def ask_report(self) -> None:
        """Lets the receiver tell the round trip."""
        ...


class Adaptation:
    """One receiver's. `link` must be set before anything is heard; `close` ends what runs."""

    def __init__(self, name: str, stream: Stream, controller: RateController) -> None:
        self.changes = 0
        self.link: Link | None = None
        self._name, self._stream, self._controller = name, stream, controller
        self._playout = PlayoutDelay()
        self._timer: asyncio.TimerHandle | None = None
        self._probing: asyncio.Task[None] | None = None

    @property
    def rung(self) -> Rung:
        return self._controller.rung

    def heard(self, feedback: Feedback) -> None:
        """Takes what the receiver says."""
        now_s = time.monotonic()
        self._stream.hold(self._playout.take(feedback, now_s))
        self._act(self._controller.take(feedback, now_s))
        self.tick()

    def tick(self) -> None:
        """Does what is due; to be called some times a second."""
        if self.link is not None and self._timer is None and self._probing is None:
            self._act(self._controller.due(self.link.can_probe, time.monotonic()))

    def close(self) -> None:
        """Ends a pause or a probe; idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        if self._probing is not None:
            self._probing.cancel()

    def _act(self, decision: Decision) -> None:
        match decision:
            case Move(rung, pause_s, reason):
                log.info("%s: to the %s rung, %s", self._name, rung, reason)
                assert self.link is not None, "somebody was heard"
                self.close()
                self.changes += 1
                self._stream.pause()
                self.link.limit(self._controller.rates_bps[rung])
                self._timer = asyncio.get_running_loop().call_later(pause_s, self._enter, rung)
            case Refresh():
                self._stream.request_keyframe()
            case Probe():
                self._probing = asyncio.create_task(self._probe(decision), name=f"probe {self._name}")

    def _enter(self, rung: Rung) -> None:
        self._timer = None
        self._stream.change(rung)

    async def _probe(self, probe: Probe) -> None:
        """Sends a probe, in small parts where it has time."""
        assert self.link is not None, "somebody was heard"
        turns = max(1, round(probe.seconds / TURN_S))
        try:
            for turn in range(turns):
                if turn:
                    await asyncio.sleep(TURN_S)
                self.link.probe(round(probe.octets / turns))
            await self.link.ask_report()
        except ConnectionError:
            # The connection is closing.
            return
        finally:
            self._probing = None


def adapt(name: str, feed: Feed, sender: Any, rates_bps: Mapping[Rung, int]) -> tuple[Adaptation, SenderHooks]:
    """The adaptation of one aiortc RTCRtpSender before it connects, and the hooks by which it hears its receiver."""
    adaptation = Adaptation(name, feed, RateController(rates_bps, time.monotonic()))
    hooks = SenderHooks(sender, feed.packets, feed.request_keyframe, rates_bps[Rung.HIGH], heard=adaptation.heard)
    adaptation.link = hooks
    return adaptation, hooks

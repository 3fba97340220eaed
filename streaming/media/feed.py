"""A viewer's feed: from its hub, which offers packets, to its connection, which sends them at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import av

from streaming.errors import Unavailable
from streaming.media.hub import Hub
from streaming.media.metrics import Metrics
from streaming.media.rate import Rung
from streaming.media.rtp_sender import RtpSender


class Feed:
    """Sends one viewer's packets. It joins its channel once it is connected."""

    def __init__(self, sender: Any, join: Callable[[Feed, Rung], Hub], metrics: Metrics) -> None:
        self.packets = RtpSender(sender, self._connected)
        self._join = join
        self._metrics = metrics
        self._hub: Hub | None = None
        self._ended = False
        self._waits_for_key = True
        self._paused = False
        self.keyframes = 0  # that were sent
        self.first_sent_s: float | None = None

    def offer(self, packet: av.Packet) -> None:
        """Sends a packet, or drops it until a key frame comes: a hole would corrupt the picture."""
        if self._hub is None or self._paused:
            return
        if self._waits_for_key and not packet.is_keyframe:
            self.request_keyframe()
            return
        self._waits_for_key = not self.packets.send(self._hub.payloads(packet), packet.pts)
        if self._waits_for_key:
            self._metrics.overflows.inc()
        self.keyframes += packet.is_keyframe
        self.first_sent_s = self.first_sent_s or time.monotonic()

    def pause(self) -> None:
        """Sends nothing until `change`."""
        self._paused = True

    def change(self, rung: Rung) -> None:
        """Goes on with a key frame of a rung."""
        self._paused, self._waits_for_key = False, True
        if self._hub is not None:
            # A channel that has ended ends its viewers too.
            with suppress(Unavailable):
                self._hub = self._join(self, rung)

    def request_keyframe(self) -> None:
        """Asks the hub for a key frame."""
        if self._hub is not None:
            self._hub.request_keyframe()

    def hold(self, delay_s: float) -> None:
        """Lets the receiver show pictures later, if it can be told."""
        self.packets.hold(delay_s)

    def end(self) -> None:
        """Sends nothing any more; idempotent."""
        self._ended, self._hub = True, None
        self.packets.close()

    def _connected(self) -> None:
        # A session may end in the moment in which it connects.
        if not self._ended:
            self._hub = self._join(self, Rung.HIGH)

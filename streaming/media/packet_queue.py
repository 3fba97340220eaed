"""The bounded queue between a hub and one output that is not a peer connection: a reader or a recording."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import av

from streaming.media.pacer import MEDIA_CLOCK_HZ


class PacketQueue:
    """A `Sink` that keeps packets from a key frame on. Whoever falls `patience_s` of video behind is cut off."""

    def __init__(self, patience_s: float, cut_off: Callable[[], None]) -> None:
        """`cut_off` is called when that happens; it must not block."""
        self._most_ticks = round(patience_s * MEDIA_CLOCK_HZ)
        self._cut_off = cut_off
        self._packets: deque[av.Packet] = deque()
        self._begun = self._ended = False
        self._wake = asyncio.Event()

    @property
    def ended(self) -> bool:
        return self._ended

    def offer(self, packet: av.Packet) -> None:
        """Takes a packet. Those before the first key frame, and those after the end, are dropped."""
        if self._ended or not (self._begun or packet.is_keyframe):
            return
        self._begun = True
        self._packets.append(packet)
        self._wake.set()
        if packet.pts - self._packets[0].pts > self._most_ticks:
            self._packets.clear()
            self.end()
            self._cut_off()

    async def get(self) -> list[av.Packet]:
        """All packets that wait, at least one; none after the end."""
        while not self._packets and not self._ended:
            self._wake.clear()
            await self._wake.wait()
        packets = list(self._packets)
        self._packets.clear()
        return packets

    def end(self) -> None:
        """Takes nothing more, and wakes its reader; idempotent."""
        self._ended = True
        self._wake.set()

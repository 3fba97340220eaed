"""A viewer's feed: the bounded queue of packets between its hub and its connection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import av
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError

from streaming.media.hub import Hub
from streaming.media.metrics import Metrics


class Feed(MediaStreamTrack):  # type: ignore[misc]  # aiortc is untyped here
    """A viewer's bounded queue of packets. It joins its channel when aiortc asks for the first one, once connected."""

    kind = "video"

    def __init__(self, size: int, join: Callable[[Feed], Hub], metrics: Metrics) -> None:
        super().__init__()
        self._queue: asyncio.Queue[av.Packet | None] = asyncio.Queue(size)
        self._join = join
        self._metrics = metrics
        self._hub: Hub | None = None
        self._waits_for_key = True
        self.first_sent_s: float | None = None

    def offer(self, packet: av.Packet) -> None:
        """Queues a packet. A full queue is emptied and waits for a key frame: a hole would corrupt the picture."""
        if self._queue.full():
            while not self._queue.empty():
                self._queue.get_nowait()
            self._waits_for_key = True
            self._metrics.overflows.inc()
        if self._waits_for_key and not packet.is_keyframe:
            self.request_keyframe()
            return
        self._waits_for_key = False
        self._queue.put_nowait(packet)

    def request_keyframe(self) -> None:
        """Asks the hub for a key frame."""
        if self._hub is not None:
            self._hub.request_keyframe()

    async def recv(self) -> av.Packet:
        """The next packet. Raises MediaStreamError once the feed ended."""
        if self.readyState != "live":
            raise MediaStreamError
        if self._hub is None:
            self._hub = self._join(self)
        packet = await self._queue.get()
        if packet is None:
            raise MediaStreamError
        self.first_sent_s = self.first_sent_s or time.monotonic()
        return packet

    def end(self) -> None:
        """Ends the feed and wakes its reader; idempotent."""
        self.stop()
        if self._queue.full():
            self._queue.get_nowait()
        self._queue.put_nowait(None)

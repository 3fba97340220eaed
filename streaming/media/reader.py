"""Readers of `live.mp4`: one HTTP answer without end each, from a key frame on. A slow one is cut off.

Readers share the encoder of the channel's H.264 hub; each has a muxer of its own, so that its time begins at 0.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from streaming.errors import Unavailable
from streaming.media.fragments import Fragments
from streaming.media.hub import KEYFRAME_GAP_S
from streaming.media.metrics import Metrics
from streaming.media.packet_queue import PacketQueue
from streaming.media.viewer import Broadcaster

# Bytes a second at least. A client's kernel takes some 128 kB before anybody can see that the client reads nothing; of
# a video that needs less than this it would take them for minutes. Free boxes fill up, which players pass over.
LEAST_BYTES_S = 28_000
BOX_HEADER_BYTES = 8


@dataclass(frozen=True, slots=True)
class ReaderConfig:
    """Limits of readers."""

    most: int = 64
    most_an_address: int = 64
    patience_s: float = 2.0  # of video that waits for one reader; with what sockets hold this is below 10 s

    def __post_init__(self) -> None:
        if min(self.most, self.most_an_address) < 1 or self.patience_s <= 0:
            raise ValueError(f"numbers and times of readers must be positive, not {self}")


class Reader:
    """One reader's place; made by `Readers.open`."""

    def __init__(self, channel: Broadcaster, queue: PacketQueue, turn_s: float, header_alone: bool) -> None:
        self._channel, self._queue, self._turn_s = channel, queue, turn_s
        self._header_alone = header_alone

    async def parts(self) -> AsyncIterator[bytes]:
        """The mp4 stream in parts, from the next key frame on, until the reader is cut off or the server stops."""
        await asyncio.sleep(max(0.0, self._turn_s - time.monotonic()))
        if self._queue.ended:
            return
        hub = self._channel.join(self._queue, "h264", False)
        fragments = Fragments(hub.geometry, self._header_alone)
        while packets := await self._queue.get():
            data = b"".join(map(fragments.add, packets))
            if data:
                yield _filled(data, round(LEAST_BYTES_S * len(packets) / hub.geometry.fps))
        yield fragments.finish()


def _filled(data: bytes, least: int) -> bytes:
    """Whole boxes with a free box behind them, so that they have `least` bytes or about that."""
    short = max(least - len(data), BOX_HEADER_BYTES)
    return data + short.to_bytes(4, "big") + b"free" + bytes(short - BOX_HEADER_BYTES)


class Readers:
    """All readers of the server, within the limit of how many."""

    def __init__(self, metrics: Metrics, config: ReaderConfig | None = None) -> None:
        self._metrics = metrics
        self._config = config or ReaderConfig()
        self._queues: dict[PacketQueue, tuple[Broadcaster, str]] = {}  # and their channels and addresses
        self._turns_s: WeakKeyDictionary[Broadcaster, float] = WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._queues)

    @contextmanager
    def open(
        self, channel: Broadcaster, address: str, abort: Callable[[], None], header_alone: bool = False
    ) -> Iterator[Reader]:
        """A place while the block runs; `abort` ends the connection of a reader that is cut off. The stream is as
        `Fragments` says.

        Raises Unavailable when there are too many readers, or the channel has no video yet.
        """
        self._check(channel, address)

        def cut_off() -> None:
            self._metrics.readers_cut_off.inc()
            channel.leave(queue)
            abort()

        queue = PacketQueue(self._config.patience_s, cut_off)
        self._queues[queue] = channel, address
        try:
            yield Reader(channel, queue, self._turn(channel), header_alone)
        finally:
            channel.leave(queue)
            del self._queues[queue]

    def close(self, channel: Broadcaster | None = None) -> None:
        """Ends the readers of a channel, or all of them; their answers end well."""
        for queue, (theirs, _) in self._queues.items():
            if channel is None or theirs is channel:
                queue.end()

    def _check(self, channel: Broadcaster, address: str) -> None:
        channel.check()
        if len(self._queues) >= self._config.most:
            raise Unavailable(f"{self._config.most} readers watch live.mp4, which is the limit; try again later.")
        if [theirs for _, theirs in self._queues.values()].count(address) >= self._config.most_an_address:
            most = self._config.most_an_address
            raise Unavailable(f"{most} readers watch live.mp4 from your address, which is the limit; try again later.")

    def _turn(self, channel: Broadcaster) -> float:
        """When a new reader joins. Each join makes a key frame for all, so those that come together share one."""
        now_s = time.monotonic()
        turn_s = self._turns_s.get(channel, float("-inf"))
        if turn_s <= now_s:
            turn_s = self._turns_s[channel] = max(now_s, turn_s + KEYFRAME_GAP_S)
        return turn_s

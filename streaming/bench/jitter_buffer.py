"""aiortc's jitter buffer, which goes on as browsers' do when a packet is lost for good.

aiortc 1.16 asks for a lost packet once and then waits for it until 512 later ones are there: half a minute of a small
picture's. Browsers go on with the next key frame, and ask for one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import takewhile
from typing import Any

from aiortc.jitterbuffer import JitterBuffer, JitterFrame
from aiortc.utils import uint16_add, uint16_gt

CAPACITY = 512  # packets, as in aiortc
PATIENCE_S = 1.0  # for a packet that was asked for; then a key frame is asked for, as often
VP8_START, VP8_START_MASK = 0x10, 0x17  # of a payload descriptor: the first partition begins (RFC 7741)
VP8_INTER = 0x01  # of a frame's first byte
H264_START = 4  # bytes before a NAL unit in a byte stream
H264_KEY = (5, 7)  # types of NAL units: IDR picture, sequence parameters
BUFFER = "_RTCRtpReceiver__jitter_buffer"
CODECS = "_RTCRtpReceiver__codecs"


class BrowserJitterBuffer(JitterBuffer):  # type: ignore[misc]
    """In place of that of a video receiver."""

    def __init__(self, codec_of: Callable[[int], str], now: Callable[[], float] = time.monotonic) -> None:
        """`codec_of` a payload type is its MIME type."""
        super().__init__(CAPACITY, is_video=True)
        self._codec_of, self._now = codec_of, now
        self._newest = 0  # sequence number
        self._lost_s: float | None = None  # when it began to wait for a lost packet, or asked for a key frame

    @classmethod
    def put_into(cls, receiver: Any) -> None:
        """To be called before the RTCRtpReceiver gets packets."""
        receiver.__dict__[BUFFER] = cls(lambda kind: str(receiver.__dict__[CODECS][kind].mimeType))

    def add(self, packet: Any) -> tuple[bool, JitterFrame | None]:
        """Whether to ask for a key frame, and a frame that is whole."""
        if not self._misses(packet.sequence_number):
            self._lost_s = None
        elif self._begins_key_frame(packet):
            self.remove(self.capacity)
            self._origin, self._lost_s = packet.sequence_number, None
        elif self._lost_s is None:
            self._lost_s = self._now()
        wanted, frame = super().add(packet)
        if self._lost_s is not None and self._now() - self._lost_s >= PATIENCE_S:
            wanted, self._lost_s = True, self._now()
        return wanted, frame

    def _misses(self, number: int) -> bool:
        """True while a packet is not there that was sent before this or another one."""
        if self._origin is None:
            self._newest = number
            return False
        if uint16_gt(number, self._newest):
            self._newest = number
        places = (self._packets[(self._origin + count) % self.capacity] for count in range(self.capacity))
        there = sum(1 for _ in takewhile(lambda packet: packet is not None, places))
        ahead: int = uint16_add(self._newest, -self._origin)
        return there < ahead < 1 << 15

    def _begins_key_frame(self, packet: Any) -> bool:
        data: bytes = packet._data
        if self._codec_of(packet.payload_type).lower() == "video/vp8":
            starts = bool(packet.payload) and packet.payload[0] & VP8_START_MASK == VP8_START
            return starts and bool(data) and not data[0] & VP8_INTER
        return len(data) > H264_START and data[H264_START] & 0x1F in H264_KEY

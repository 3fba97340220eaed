"""Frames to packets, once per codec for all viewers of a channel.

A `Hub` owns one encoder and one thread for it. Viewers' queues are `Sink`s: a sink never blocks the hub.
Shapes: `H` x `W` picture size; a picture is I420, [3H/2, W] uint8.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import av
import numpy as np
import numpy.typing as npt
from aiortc.codecs.h264 import H264Encoder
from aiortc.codecs.vpx import Vp8Encoder
from av.video.frame import PictureType

from engine.wire.colours import tag
from streaming.media import marker
from streaming.media.metrics import ChannelMetrics
from streaming.media.pacer import MEDIA_CLOCK_HZ
from streaming.media.rate import Rung

log = logging.getLogger(__name__)

CODECS = ("vp8", "h264")
KEYFRAME_GAP_S = 0.5  # at least this long between key frames that viewers ask for; a join does not wait
ENDLESS_GOP = 1 << 24  # frames; key frames come on request only
BITS_PER_PIXEL = 1.5
LEAST_BPS, MOST_BPS = 500_000, 2_500_000
LOW_BPS = 200_000  # of the low rung: fits a link of 300 kbit/s, with retransmissions and headers
LOW_BUFFER_S = 0.5  # of that rate, which a key frame of the low rung may take at most
LOW_KEYFRAME = 500  # percent of a frame's bits

X264_OPTIONS = {
    "preset": "veryfast",
    "tune": "zerolatency",
    "forced-idr": "1",
    "level": "31",
    "x264-params": "scenecut=0:repeat-headers=1",
}
LIBVPX_OPTIONS = {"deadline": "realtime", "cpu-used": "-6", "lag-in-frames": "0", "static-thresh": "1"}


@dataclass(frozen=True, slots=True)
class Geometry:
    """Size and rate of a channel's video."""

    width: int  # pixels
    height: int  # pixels
    fps: float

    def __post_init__(self) -> None:
        if self.width < 2 or self.height < 4 or self.width % 2 or self.height % 2:
            raise ValueError(f"picture of {self.height}x{self.width}: both sides must be even for I420")
        if not 0 < self.fps <= 240:
            raise ValueError(f"fps is {self.fps}; it must be above 0 and at most 240")

    def rate_bps(self, rung: Rung = Rung.HIGH) -> int:
        """Bit rate of the encoded video."""
        if rung is Rung.LOW:
            return LOW_BPS
        return round(min(max(self.width * self.height * self.fps * BITS_PER_PIXEL, LEAST_BPS), MOST_BPS))


@dataclass(frozen=True, slots=True)
class Picture:
    """A frame on its way to the encoders, which only read it."""

    index: int  # frame number since the video began
    i420: npt.NDArray[np.uint8]  # [3H/2, W]


class Sink(Protocol):
    """A receiver of packets: the bounded queue of one viewer, reader or recording."""

    def offer(self, packet: av.Packet) -> None:
        """Takes a packet or drops it; never blocks."""
        ...


class Encoder:
    """One encoder context; used by one thread at a time. Every frame gives one packet."""

    def __init__(self, codec: str, geometry: Geometry, rung: Rung = Rung.HIGH) -> None:
        if codec not in CODECS:
            raise ValueError(f"codec is {codec!r}; it must be one of {', '.join(CODECS)}")
        rate, low = geometry.rate_bps(rung), rung is Rung.LOW
        self._context = av.CodecContext.create("libvpx" if codec == "vp8" else "libx264", "w")
        self._context.width, self._context.height = geometry.width, geometry.height
        self._context.pix_fmt = "yuv420p"
        self._context.time_base = Fraction(1, MEDIA_CLOCK_HZ)
        self._context.framerate = Fraction(geometry.fps).limit_denominator(1001)
        self._context.bit_rate = rate
        self._context.gop_size = ENDLESS_GOP
        self._context.thread_count = 1
        limits = {"maxrate": str(rate), "bufsize": str(round(rate * LOW_BUFFER_S) if low else rate)}
        if codec == "vp8":
            self._context.qmin, self._context.qmax = 4, 63 if low else 56
            # minrate = maxrate = bit rate chooses the constant rate control that fits a live link.
            limits["minrate"] = str(rate)
            if low:
                limits["max-intra-rate"] = str(LOW_KEYFRAME)
            self._context.options = LIBVPX_OPTIONS | limits
        else:
            self._context.max_b_frames = 0
            self._context.options = X264_OPTIONS | limits
            self._context.profile = "Baseline"
        tag(self._context)

    def encode(self, i420: npt.NDArray[np.uint8], pts: int, key: bool) -> av.Packet:
        """Encodes a picture [3H/2, W] with a timestamp in 1/90000 s; `key` forces a key frame."""
        frame = av.VideoFrame.from_ndarray(i420, format="yuv420p")
        tag(frame)
        frame.pts, frame.time_base = pts, Fraction(1, MEDIA_CLOCK_HZ)
        frame.pict_type = PictureType.I if key else PictureType.NONE
        packets = self._context.encode(frame)
        assert len(packets) == 1, f"the encoder gave {len(packets)} packets for one frame"
        packet = packets[0]
        packet.pts, packet.time_base = pts, Fraction(1, MEDIA_CLOCK_HZ)
        return packet


class Hub:
    """One codec of one channel at one rung, with or without the marker, sent to all its sinks."""

    def __init__(
        self,
        codec: str,
        geometry: Geometry,
        marked: bool,
        metrics: ChannelMetrics,
        clock: Callable[[], float] = time.monotonic,
        rung: Rung = Rung.HIGH,
    ) -> None:
        self.geometry = geometry
        self._encoder = Encoder(codec, geometry, rung)
        self._packer = Vp8Encoder() if codec == "vp8" else H264Encoder()
        self._packed: tuple[av.Packet, list[bytes]] | None = None
        self._marked = marked
        self._metrics = metrics
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"hub-{codec}")
        self._sinks: set[Sink] = set()
        self._key_wanted = False
        self._joined = False
        self._last_key_s = float("-inf")

    @property
    def sinks(self) -> int:
        return len(self._sinks)

    @property
    def joined(self) -> bool:
        """True while a sink waits for its first key frame."""
        return self._joined

    def add(self, sink: Sink) -> None:
        """Sends to `sink` from the next picture on, which will be a key frame."""
        self._sinks.add(sink)
        self._joined = True

    def discard(self, sink: Sink) -> None:
        self._sinks.discard(sink)

    def payloads(self, packet: av.Packet) -> list[bytes]:
        """A packet of this hub as payloads of RTP, made once for all viewers."""
        if self._packed is None or self._packed[0] is not packet:
            self._packed = packet, self._packer.pack(packet)[0]
        return self._packed[1]

    def request_keyframe(self) -> None:
        """Asks for a key frame: the next picture, or the first one after KEYFRAME_GAP_S."""
        self._key_wanted = True

    async def encode(self, picture: Picture, pts: int) -> None:
        """Encodes in the hub's thread and hands the packet to every sink. One call at a time."""
        now_s = self._clock()
        key = self._joined or (self._key_wanted and now_s - self._last_key_s >= KEYFRAME_GAP_S)
        if key:
            self._joined = self._key_wanted = False
            self._last_key_s = now_s
            self._metrics.keyframes.inc()
        loop = asyncio.get_running_loop()
        packet = await loop.run_in_executor(self._thread, self._encode, picture, pts, key)
        self._metrics.encode_s.observe(self._clock() - now_s)
        for sink in tuple(self._sinks):
            try:
                sink.offer(packet)
            except Exception:
                # The others' video must not end with it.
                log.exception("a receiver failed, which is a defect: it gets no more video")
                self.discard(sink)

    def close(self) -> None:
        """Ends the thread; idempotent."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _encode(self, picture: Picture, pts: int, key: bool) -> av.Packet:
        i420 = picture.i420
        if self._marked:
            i420 = i420.copy()
            marker.draw(i420, marker.Mark(picture.index, int(self._clock() * 1000)))
        return self._encoder.encode(i420, pts, key)

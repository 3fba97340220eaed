"""A hub's H.264 packets as fragmented mp4, a frame a fragment: what was written so far always plays to its end.

libav's muxer writes a fragment when it sees the packet after it, from whose time it learns how long the frame lasts.
"""

from __future__ import annotations

from fractions import Fraction

import av

from streaming.media.hub import Geometry
from streaming.media.pacer import MEDIA_CLOCK_HZ

# Without `skip_trailer` the muxer remembers the place of every fragment, so that memory grows with the video.
MOVFLAGS = "frag_every_frame+default_base_moof+skip_trailer"


class _Written:
    """What the muxer wrote. It cannot seek, so that the muxer never wants back what was taken."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


class Fragments:
    """One mp4 stream, whose time begins at 0 with its first packet, a key frame. It keeps nothing that was taken."""

    def __init__(self, geometry: Geometry, header_alone: bool = True) -> None:
        """`header_alone`: no frame is in the header, as Media Source Extensions want it.

        FFmpeg's demuxer, which Chromium's `<video src>` has too, does not learn the frame rate from such a header, and
        reads 20 frames before it shows one (FFmpeg 8.0, `avformat_find_stream_info`).
        """
        self._header_alone = header_alone
        self._file = _Written()
        flags = MOVFLAGS + "+empty_moov" * header_alone
        self._container = av.open(self._file, "w", format="mp4", options={"movflags": flags})
        self._stream = self._container.add_mux_stream(
            "h264",
            Fraction(geometry.fps).limit_denominator(1001),
            width=geometry.width,
            height=geometry.height,
            time_base=Fraction(1, MEDIA_CLOCK_HZ),
        )
        self._period = round(MEDIA_CLOCK_HZ / geometry.fps)
        self._first_pts: int | None = None
        self._last_pts = 0

    @property
    def seconds(self) -> float:
        """Length of the video so far."""
        if self._first_pts is None:
            return 0.0
        return (self._last_pts - self._first_pts + self._period) / MEDIA_CLOCK_HZ

    def add(self, packet: av.Packet) -> bytes:
        """Takes a packet, which is left as it is; returns what can be sent now: whole boxes, or nothing."""
        begins = self._first_pts is None
        if self._first_pts is None:
            self._first_pts = packet.pts
        self._last_pts = packet.pts
        own = av.Packet(bytes(packet))
        own.pts = own.dts = packet.pts - self._first_pts
        own.time_base = packet.time_base
        own.duration = self._period
        own.is_keyframe = packet.is_keyframe
        own.stream = self._stream
        self._container.mux_one(own)
        # A header with a frame says where that lies, counted from the beginning: nothing may come between.
        return b"" if begins and not self._header_alone else self._file.take()

    def finish(self) -> bytes:
        """Ends the stream and returns its last fragment; idempotent."""
        self._container.close()
        return self._file.take()

"""The film of a video file: its one stream of moving pictures, decoded in order, at times that never jump."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
from av.container import InputContainer
from av.format import Flags
from av.stream import Disposition
from av.video.reformatter import ColorTrc
from av.video.stream import VideoStream

from engine.video.packet_clock import PacketClock

_UNKNOWN_RATE_HZ = 25
_COVER = Disposition.attached_pic
_MISSING_S = Fraction(1, 2)  # a file that ends this much before its stated end is cut short
_READ_AHEAD_BYTES = 32 << 20  # at most, to tell a poster from a film where the header does not
_TORN_BEFORE_SEAM = 1  # packets between the one that FFmpeg takes for torn and a seam
_POSTERS = Disposition.still_image | Disposition.timed_thumbnails
_HDR = {int(ColorTrc.SMPTE2084): "PQ", int(ColorTrc.ARIB_STD_B67): "HLG"}


class Film(AbstractContextManager["Film"]):
    """Reads one file once; use it in a `with` block."""

    def __init__(self, path: Path, formats: str | None = None) -> None:
        """`formats`: names of FFmpeg's that are taken, with commas between them; all if None.

        Raises ValueError if the file is missing, empty, of no known kind, cut short before its index, or no film."""
        self._path = path
        try:
            _refuse_animated_webp(path)
            # FFmpeg takes what stands before a colon for a protocol.
            options = {} if formats is None else {"format_whitelist": formats, "protocol_whitelist": "file"}
            self._container: InputContainer = av.open(f"file:{path}", options=options)
        except (av.FFmpegError, OSError) as error:
            raise ValueError(f"{path} is no video that can be read, empty or cut short ({error.strerror})") from error
        try:
            self._ahead: list[av.Packet] = []  # packets that are read and not decoded
            self._stream = self._choose()
            self._refuse_hdr(self._stream.codec_context.color_trc)
        except BaseException:
            self._container.close()
            raise
        stream, jumps = self._stream, bool(self._container.format.flags & Flags.ts_discont.value)
        assert stream.time_base is not None, "a stream that is read has one"
        self._tick_s = Fraction(stream.time_base)
        self.period_s = 1 / Fraction(stream.average_rate or stream.guessed_rate or _UNKNOWN_RATE_HZ)
        self._clock = PacketClock(jumps, self._tick_s, self.period_s)
        self._skipped_s = Fraction(0)  # of the stream, before the first picture
        # Where a clock may jump the length is no promise, but found by FFmpeg between the first time and the last.
        self.promised = not jumps and stream.duration is not None

    @property
    def stated_s(self) -> Fraction | None:
        """Length by the file's header, or as FFmpeg finds it, less what turned out so far not to be there."""
        ticks: int | None = self._stream.duration
        if ticks is None:
            return None
        return (ticks + self._clock.shift) * self._tick_s - self._skipped_s

    @property
    def pixels(self) -> int:
        """Of a picture."""
        return self._stream.width * self._stream.height

    @property
    def pixel_aspect(self) -> float:
        """A pixel's width over its height."""
        return float(self._stream.sample_aspect_ratio or 1)

    def frames(self) -> Iterator[tuple[av.VideoFrame, Fraction]]:
        """All frames, and until when each is shown, in seconds since the first began: until the next one begins.

        Raises ValueError for a file that is damaged, cut short, or has no pictures.
        """
        frame, start_s = None, Fraction(0)
        origin_s: Fraction | None = None  # the file's time when the first frame begins, once a frame has a time
        for following in self._decoded():
            time_s = None if following.pts is None else following.pts * Fraction(following.time_base)
            next_s = Fraction(0) if frame is None else start_s + self.period_s
            if origin_s is None and time_s is not None:
                origin_s = time_s - next_s
                self._begin(origin_s)
            elif origin_s is not None and time_s is not None:
                # A file may miss times or have some that go back.
                next_s = max(time_s - origin_s, start_s)
            if frame is not None:
                yield frame, next_s
            frame, start_s = following, next_s
        if frame is None:
            raise ValueError(f"{self._path} has no pictures: it is damaged or cut short")
        end_s = start_s + (frame.duration * frame.time_base if frame.duration else self.period_s)
        self._check_end(end_s)
        yield frame, end_s

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def _choose(self) -> VideoStream:
        """The first stream of moving pictures; of still ones where there are no others. Covers are not looked at."""
        streams = [stream for stream in self._container.streams.video if stream.codec_context]
        streams = [stream for stream in streams if not stream.disposition & _COVER]
        if not streams:
            raise ValueError(f"{self._path} has no video in a coding that can be read: give a file that has pictures")
        films = [stream for stream in streams if stream.frames != 1 and not stream.disposition & _POSTERS] or streams
        if len(films) == 1 or films[0].frames:
            return films[0]
        # Not every header says how many pictures a stream has.
        seen, read_bytes = Counter[int](), 0
        with suppress(av.FFmpegError):  # of which more is said when the film is read
            for packet in self._container.demux(films):
                if packet.size:
                    self._ahead.append(packet)
                    seen[packet.stream.index] += 1
                    read_bytes += packet.size
                if seen[films[0].index] > 1 or read_bytes > _READ_AHEAD_BYTES:
                    break
        return next((stream for stream in films if seen[stream.index] > 1), films[0])

    def _begin(self, origin_s: Fraction) -> None:
        """The first picture begins then, perhaps behind the stream, which may begin between key frames."""
        start: int | None = self._stream.start_time
        if start is not None:
            self._skipped_s = origin_s - start * self._tick_s

    def _check_end(self, end_s: Fraction) -> None:
        """Raises ValueError if the last picture ends long before the stated end of the stream."""
        if self.promised and self.stated_s is not None and self.stated_s - end_s > max(_MISSING_S, self.period_s):
            there = f"{float(end_s):.1f} s of {float(self.stated_s):.1f} s can be read"
            raise ValueError(f"{self._path} is cut short: {there}; copy it again")

    def _decoded(self) -> Iterator[av.VideoFrame]:
        place_s, begun = 0.0, False
        try:
            for packet in self._packets():
                if packet.pts is not None:
                    place_s = float(packet.pts * packet.time_base)
                begun = begun or packet.is_keyframe
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    if begun:
                        raise
                    continue  # what depends on a key frame that the file does not have
                for frame in frames:
                    self._refuse_hdr(frame.color_trc)
                    yield frame
        except av.FFmpegError as error:
            raise ValueError(f"{self._path} cannot be read near {place_s:.1f} s ({error.strerror})") from error

    def _packets(self) -> Iterator[av.Packet]:
        """The stream's packets at times that never jump. Raises ValueError where one is torn."""
        held: list[av.Packet] = []  # a torn one, and what follows
        for packet in chain(self._ahead, self._container.demux(self._stream)):
            if packet.stream.index != self._stream.index:
                continue
            jumped = self._clock.follow(packet)
            self.promised &= not jumped
            # Where files were put end to end, a packet close before the seam is taken for torn.
            if held and (jumped or packet.is_keyframe):
                yield from held
                held.clear()
            elif len(held) > _TORN_BEFORE_SEAM:
                break
            if held or packet.is_corrupt:
                held.append(packet)
            else:
                yield packet
        if held:
            place_s = float((held[0].pts or 0) * held[0].time_base)
            raise ValueError(f"{self._path} is damaged or cut short near {place_s:.1f} s: copy it again")
        self._ahead.clear()

    def _refuse_hdr(self, transfer: int) -> None:
        if transfer in _HDR:
            raise ValueError(
                f"{self._path} is HDR ({_HDR[transfer]} transfer), which is not read: convert it to SDR first, such as "
                f"with FFmpeg's filters zscale and tonemap"
            )


def _refuse_animated_webp(path: Path) -> None:
    """FFmpeg reads still WebP pictures only."""
    if not path.is_file():
        return  # a pipe is read once
    with path.open("rb") as file:
        head = file.read(21)
    if len(head) == 21 and head[:4] + head[8:16] == b"RIFFWEBPVP8X" and head[20] & 0x02:
        raise ValueError(f"{path} is an animated WebP, which is not read: convert it to mp4 or GIF first")

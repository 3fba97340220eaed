"""Reads a video file of any length, size and frame rate as pictures of one size at one rate.

*Time.* Picture k is what the file shows k / fps seconds after its first frame: fast files lose frames, slow ones repeat
them. There are as many pictures as fit in the file's duration, at least one. *Size.* The picture is turned upright, cut
in the middle to the wanted shape, and scaled. Memory holds a frame or two, however long the file is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from fractions import Fraction
from itertools import repeat
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.stream import Disposition
from PIL import Image

_ROUNDING_S = Fraction(1, 1000)  # containers round times; a frame this late is still in time
_UNKNOWN_RATE_HZ = 25
_MISSING_S = 0.5  # a file that ends this much before its stated end is cut short


class Clip(AbstractContextManager["Clip"]):
    """Reads one file once; use it in a `with` block."""

    def __init__(self, path: Path, height: int, width: int, fps: float) -> None:
        """Pictures will have `height` x `width` pixels, `fps` of them a second.

        Raises:
            ValueError: if the file is missing, empty, of no known kind, cut short before its index, or has no video.
        """
        self._path, self._height, self._width, self._fps = path, height, width, Fraction(fps)
        self.frames = 0  # pictures that were read, also those that were left out
        try:
            self._container = av.open(str(path))
        except av.FFmpegError as error:
            raise ValueError(f"{path} is no video that can be read, empty or cut short ({error.strerror})") from error
        covers, streams = Disposition.attached_pic, self._container.streams.video
        streams = [stream for stream in streams if stream.codec_context and not stream.disposition & covers]
        if not streams:
            self._container.close()
            raise ValueError(f"{path} has no video in a coding that can be read: give a file that has pictures")
        self._stream = streams[0]
        duration: int | None = self._stream.duration
        self._stated_s = None if duration is None else duration * Fraction(self._stream.time_base)

    @property
    def frames_stated(self) -> int | None:
        """Pictures that the file's header promises."""
        return None if self._stated_s is None else max(1, math.ceil(self._stated_s * self._fps))

    def pictures(self, every: int = 1) -> Iterator[npt.NDArray[np.uint8]]:
        """Pictures 0, `every`, 2 `every`, ... and always the last, [H, W, 3]. Raises ValueError for a damaged file."""
        last = None
        for frame, end_s in self._timed():
            stop = max(math.ceil((end_s - _ROUNDING_S) * self._fps), 1)
            shown = len(range(-(-self.frames // every) * every, stop, every))
            if stop > self.frames:
                self.frames, last = stop, frame
            if shown:
                yield from repeat(self._fitted(frame), shown)
        if (self.frames - 1) % every:
            yield self._fitted(last)

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def _timed(self) -> Iterator[tuple[av.VideoFrame, Fraction]]:
        """All frames, and until when each is shown, in seconds since the first began: until the next one begins."""
        period_s = 1 / Fraction(self._stream.average_rate or self._stream.guessed_rate or _UNKNOWN_RATE_HZ)
        frame, origin_s, start_s = None, Fraction(0), Fraction(0)
        for following in self._decoded():
            time_s = None if following.pts is None else following.pts * Fraction(following.time_base)
            if frame is None:
                origin_s = time_s or Fraction(0)
            else:
                # A file may miss times or have some that go back.
                next_s = start_s + period_s if time_s is None else max(time_s - origin_s, start_s)
                yield frame, next_s
                start_s = next_s
            frame = following
        if frame is None:
            raise ValueError(f"{self._path} has no pictures: it is damaged or cut short")
        end_s = start_s + (frame.duration * frame.time_base if frame.duration else period_s)
        if self._stated_s is not None and self._stated_s - end_s > max(_MISSING_S, float(period_s)):
            there = f"{float(end_s):.1f} s of {float(self._stated_s):.1f} s can be read"
            raise ValueError(f"{self._path} is cut short: {there}; copy it again")
        yield frame, end_s

    def _decoded(self) -> Iterator[av.VideoFrame]:
        place_s = 0.0
        try:
            for packet in self._container.demux(self._stream):
                if packet.pts is not None:
                    place_s = float(packet.pts * packet.time_base)
                if packet.is_corrupt:
                    raise ValueError(f"{self._path} is damaged or cut short near {place_s:.1f} s: copy it again")
                yield from packet.decode()
        except av.FFmpegError as error:
            raise ValueError(f"{self._path} cannot be read near {place_s:.1f} s ({error.strerror})") from error

    def _fitted(self, frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
        """The frame upright, cut in the middle and scaled: [H, W, 3]."""
        turns = round(frame.rotation / 90)
        rgb = np.rot90(frame.to_ndarray(format="rgb24"), turns)
        height, width = rgb.shape[:2]
        # A pixel's width over its height.
        pixel = float(self._stream.sample_aspect_ratio or 1) ** (-1 if turns % 2 else 1)
        cut_height = min(height, width * pixel * self._height / self._width)
        cut_width = min(width, height / pixel * self._width / self._height)
        left, top = (width - cut_width) / 2, (height - cut_height) / 2
        size, box = (self._width, self._height), (left, top, left + cut_width, top + cut_height)
        return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC, box))

"""A video file of any length, size and frame rate, read as pictures of one size at one rate.

*Time.* Picture k is what the file shows k / fps seconds after its first frame, so fast files lose frames, slow ones
repeat them, and variable rates need no rule of their own. There are as many pictures as fit in the file's time, at
least one. *Size.* The picture is turned upright, cut in the middle to the wanted shape, and scaled.
Only a frame or two are held, however long the file is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
import numpy.typing as npt
from av.stream import Disposition
from PIL import Image

_ROUNDING_S = Fraction(1, 1000)  # containers round times; a frame that comes so little late is still in time
_UNKNOWN_RATE_HZ = 25
_MISSING_S = 0.5  # a file that ends so much before its stated end is cut short


@dataclass(frozen=True, slots=True)
class Picture:
    """What the clip shows at one time."""

    index: int  # at the rate that was asked for
    rgb: npt.NDArray[np.uint8]  # [H, W, 3]


@dataclass(frozen=True, slots=True)
class Shown:
    """A frame of the file and until when it is on show."""

    frame: av.VideoFrame
    end_s: Fraction  # since the first frame began


class Clip:
    """Reads one file once; use it in a `with` block."""

    def __init__(self, path: Path, height: int, width: int, fps: float) -> None:
        """Pictures will have `height` x `width` pixels, `fps` of them a second.

        Raises:
            ValueError: if the file is missing, empty, of no known kind, cut short before its index, or has no video.
        """
        if not path.is_file():
            raise ValueError(f"{path} is no file: give a video")
        if not path.stat().st_size:
            raise ValueError(f"{path} is empty: give a video")
        self._path, self._height, self._width, self._fps = path, height, width, Fraction(fps)
        try:
            self._container = av.open(str(path))
        except av.FFmpegError as error:
            raise ValueError(f"{path} is no video that can be read, or it is cut short ({error.strerror})") from error
        covers = Disposition.attached_pic
        streams = [stream for stream in self._container.streams.video if not stream.disposition & covers]
        if not streams or streams[0].codec_context is None:
            self._container.close()
            missing = "in a coding that can be read" if streams else "in it"
            raise ValueError(f"{path} has no video {missing}: give a file that has pictures")
        self._stream = streams[0]

    @property
    def frames_stated(self) -> int | None:
        """Pictures that the file's header promises."""
        duration_s = self._stated_s()
        return None if duration_s is None else max(1, math.ceil(duration_s * self._fps))

    def pictures(self, every: int = 1) -> Iterator[Picture]:
        """Pictures 0, `every`, 2 `every`, ... and always the last.

        Raises:
            ValueError: if the file turns out damaged or cut short, with the place.
        """
        count, last = 0, None
        for shown in self._shown():
            stop = max(math.ceil((shown.end_s - _ROUNDING_S) * self._fps), 1)
            if stop <= count:
                continue
            rgb = None
            for index in range(-(-count // every) * every, stop, every):
                rgb = self._fitted(shown.frame) if rgb is None else rgb
                yield Picture(index, rgb)
            count, last = stop, shown.frame
        if last is None:
            raise ValueError(f"{self._path} has no pictures: it is damaged or cut short")
        if (count - 1) % every:
            yield Picture(count - 1, self._fitted(last))

    def __enter__(self) -> Clip:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    def _shown(self) -> Iterator[Shown]:
        """All frames; each is on show until the next begins, the last for its own duration."""
        period_s = 1 / Fraction(self._stream.average_rate or self._stream.guessed_rate or _UNKNOWN_RATE_HZ)
        frame, origin_s, start_s = None, Fraction(0), Fraction(0)
        for following in self._decoded():
            time_s = _time_s(following)
            if frame is None:
                origin_s = time_s or Fraction(0)
            else:
                # A file may miss times or have some that go back.
                next_s = start_s + period_s if time_s is None else max(time_s - origin_s, start_s)
                yield Shown(frame, next_s)
                start_s = next_s
            frame = following
        if frame is None:
            return
        end_s = start_s + (frame.duration * frame.time_base if frame.duration else period_s)
        stated_s = self._stated_s()
        if stated_s is not None and stated_s - end_s > max(_MISSING_S, float(period_s)):
            raise ValueError(
                f"{self._path} is cut short: {float(end_s):.1f} s of {float(stated_s):.1f} s can be read; copy it again"
            )
        yield Shown(frame, end_s)

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

    def _stated_s(self) -> Fraction | None:
        """How long the video is by the file's header."""
        duration: int | None = self._stream.duration
        return None if duration is None else duration * Fraction(self._stream.time_base)

    def _fitted(self, frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
        """The frame upright, cut in the middle and scaled: [H, W, 3]."""
        turns = round(frame.rotation / 90)
        rgb = np.rot90(frame.to_ndarray(format="rgb24"), turns)
        height, width = rgb.shape[:2]
        # How much wider than high a pixel is shown.
        pixel = float(self._stream.sample_aspect_ratio or 1) ** (-1 if turns % 2 else 1)
        cut_height = min(height, width * pixel * self._height / self._width)
        cut_width = min(width, height / pixel * self._width / self._height)
        left, top = (width - cut_width) / 2, (height - cut_height) / 2
        picture = Image.fromarray(np.ascontiguousarray(rgb)).resize(
            (self._width, self._height),
            Image.Resampling.BICUBIC,
            box=(left, top, left + cut_width, top + cut_height),
        )
        return np.asarray(picture)


def _time_s(frame: av.VideoFrame) -> Fraction | None:
    return None if frame.pts is None else frame.pts * Fraction(frame.time_base)

"""Reads a video file of any length, size and frame rate as pictures of one size at one rate.

*Time.* Picture k is what the file shows k / fps seconds after its first frame: fast files lose frames, slow ones repeat
them. There are as many pictures as fit in the file's duration, at least one. *Size.* The picture is turned upright, cut
in the middle to the wanted shape, and scaled. Memory holds a frame or two, however long the file is.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager
from fractions import Fraction
from itertools import repeat
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type
from PIL import Image

from engine.video.film import Film

_ROUNDING_S = Fraction(1, 1000)  # containers round times; a frame this late is still in time
_MATRIX = struct.Struct("=9i")  # of a display: a b u, c d v, x y w


class Clip(AbstractContextManager["Clip"]):
    """Reads one file once; use it in a `with` block."""

    def __init__(self, path: Path, height: int, width: int, fps: float, formats: str | None = None) -> None:
        """Pictures will have `height` x `width` pixels, `fps` of them a second.

        Args:
            formats: names of those that are taken, with commas between them; all that FFmpeg knows if None.

        Raises:
            ValueError: if the file is missing, empty, of no known kind, cut short before its index, or has no video.
        """
        self._height, self._width, self._fps = height, width, Fraction(fps)
        self.frames = 0  # pictures that were read, also those that were left out
        self._film = Film(path, formats)

    @property
    def frames_stated(self) -> int | None:
        """Pictures by the file's header, or as they are estimated without one; better known while it is read."""
        stated_s = self._film.stated_s
        return None if stated_s is None else max(1, math.ceil(stated_s * self._fps))

    @property
    def pixels(self) -> int:
        """Of a picture of the file."""
        return self._film.pixels

    @property
    def frames_promised(self) -> int | None:
        """`frames_stated` if that is more than an estimate; right once the first picture is read."""
        return self.frames_stated if self._film.promised else None

    def pictures(self, every: int = 1) -> Iterator[npt.NDArray[np.uint8]]:
        """Pictures 0, `every`, 2 `every`, ... and always the last, [H, W, 3]. Raises ValueError for a damaged file."""
        last = None
        for frame, end_s in self._film.frames():
            stop = max(math.ceil((end_s - _ROUNDING_S) * self._fps), 1)
            shown = len(range(-(-self.frames // every) * every, stop, every))
            if stop > self.frames:
                self.frames, last = stop, frame
            if shown:
                yield from repeat(self._fitted(frame), shown)
        if (self.frames - 1) % every:
            yield self._fitted(last)

    def __exit__(self, *error: object) -> None:
        self._film.__exit__(*error)

    def _fitted(self, frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
        """The frame upright, cut in the middle and scaled: [H, W, 3]."""
        rgb, pixel, turned = frame.to_ndarray(format="rgb24"), self._film.pixel_aspect, False
        if Type.DISPLAYMATRIX in frame.side_data:
            rgb, turned = upright(rgb, bytes(frame.side_data[Type.DISPLAYMATRIX]))
        height, width = rgb.shape[:2]
        # A pixel's width over its height.
        pixel = 1 / pixel if turned else pixel
        cut_height = min(height, width * pixel * self._height / self._width)
        cut_width = min(width, height / pixel * self._width / self._height)
        left, top = (width - cut_width) / 2, (height - cut_height) / 2
        size, box = (self._width, self._height), (left, top, left + cut_width, top + cut_height)
        return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC, box))


def upright(rgb: npt.NDArray[np.uint8], matrix: bytes) -> tuple[npt.NDArray[np.uint8], bool]:
    """A picture [H, W, 3] as a display matrix shows it, and whether rows became columns.

    The matrix takes column x and row y to column ax + cy and row bx + dy. Of other turns than quarters the nearest of
    the eight orientations is shown.
    """
    a, b, _, c, d, *_ = _MATRIX.unpack(matrix)
    turned = abs(b) + abs(c) > abs(a) + abs(d)
    if turned:
        rgb, a, d = rgb.swapaxes(0, 1), c, b
    return rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1], turned

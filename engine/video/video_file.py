"""I420 frames to an mp4 file that browsers play. The engine's only encoder; the engine process does not use it."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace

CRF = 18  # visually lossless
TIME_SCALE_HZ = 90_000


class VideoFile:
    """Writes H.264 to a neighbour of `path`, which takes its place when the `with` block ends without an error."""

    def __init__(self, path: Path, width: int, height: int, fps: float) -> None:
        """Frames are `width` x `height` pixels, both even.

        Raises:
            ValueError: if the name does not end in .mp4 or its folder cannot be written.
        """
        if path.suffix.lower() != ".mp4":
            raise ValueError(f"{path} does not end in .mp4, the only format that is written")
        if not path.parent.is_dir():
            raise ValueError(f"the folder {path.parent} does not exist: make it first")
        self._path = path
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._ticks = round(TIME_SCALE_HZ / fps)
        self._frames = 0
        try:
            # The index goes in front, so that a browser can begin before it has the whole file.
            self._container = av.open(str(self._partial), "w", format="mp4", options={"movflags": "faststart"})
        except OSError as error:
            raise ValueError(f"{path} cannot be written: {error.strerror}") from error
        rate = Fraction(fps).limit_denominator(1001)
        self._stream = self._container.add_stream("libx264", rate=rate, options={"crf": str(CRF)})
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        context = self._stream.codec_context
        context.time_base = Fraction(1, TIME_SCALE_HZ)
        context.color_range, context.colorspace = ColorRange.MPEG, Colorspace.ITU601

    def write(self, i420: npt.NDArray[np.uint8]) -> None:
        """Appends frames [F, 3H/2, W] uint8."""
        for planes in i420:
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = self._frames * self._ticks, Fraction(1, TIME_SCALE_HZ)
            frame.color_range, frame.colorspace = ColorRange.MPEG, Colorspace.ITU601
            self._container.mux(self._stream.encode(frame))
            self._frames += 1

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._container.mux(self._stream.encode())
            self._container.close()
            if kind is None:
                os.replace(self._partial, self._path)
        finally:
            self._partial.unlink(missing_ok=True)

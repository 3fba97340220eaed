"""Writes I420 frames as an mp4 file that browsers play. The engine process does not use it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from engine.runtime.files import check_target
from engine.wire.colours import tag
from engine.wire.frames import FrameBatch

TIME_SCALE_HZ = 90_000
# Constant quality, visually lossless. x264's macroblock tree reads memory it has not written where the processor has
# AVX-512 (a picture 192 pixels wide shows it), so that the same frames make different files. Without it they make the
# same file on one machine.
OPTIONS = {"crf": "20", "mbtree": "0"}


def to_rgb(i420: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A frame's planes [3H/2, W] to its pixels [H, W, 3]."""
    rgb: npt.NDArray[np.uint8] = av.VideoFrame.from_ndarray(i420, format="yuv420p").to_ndarray(format="rgb24")
    return rgb


class VideoFile(AbstractContextManager["VideoFile"]):
    """Writes H.264 to a neighbour of `path`, which takes its place when the `with` block ends without an error."""

    def __init__(self, path: Path, width: int, height: int, fps: float) -> None:
        """Frames are `width` x `height` pixels, both even. Raises ValueError or OSError if `path` cannot be written."""
        check_target(path, ".mp4")
        self._path = path
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._ticks = round(TIME_SCALE_HZ / fps)
        self._frames = 0
        # The index goes in front, so that a browser can begin before it has the whole file.
        self._container = av.open(str(self._partial), "w", format="mp4", options={"movflags": "faststart"})
        rate = Fraction(fps).limit_denominator(1001)
        self._stream = self._container.add_stream("libx264", rate=rate, options=OPTIONS)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        context = self._stream.codec_context
        context.time_base = Fraction(1, TIME_SCALE_HZ)
        tag(context)

    def write(self, i420: npt.NDArray[np.uint8]) -> None:
        """Appends frames [F, 3H/2, W] uint8."""
        for planes in i420:
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = self._frames * self._ticks, Fraction(1, TIME_SCALE_HZ)
            tag(frame)
            self._container.mux(self._stream.encode(frame))
            self._frames += 1

    def write_batches(self, batches: Iterable[FrameBatch], frames: int) -> None:
        """Appends batches of `frames` frames in all, with a progress bar."""
        with tqdm(total=frames, unit="frame", desc=self._path.name) as bar:
            for batch in batches:
                self.write(batch.i420)
                bar.update(batch.frames)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._container.mux(self._stream.encode())
            self._container.close()
            if kind is None:
                os.replace(self._partial, self._path)
        finally:
            self._partial.unlink(missing_ok=True)

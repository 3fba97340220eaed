"""Writes I420 frames as an mp4 file that browsers play. The engine process does not use it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from engine.wire.colours import tag
from engine.wire.files import check_target, explained, is_stream, new_file
from engine.wire.frames import FrameBatch

SUFFIX = ".mp4"
TIME_SCALE_HZ = 90_000
# Constant quality, visually lossless. x264's macroblock tree reads memory it has not written where the processor has
# AVX-512 (a picture 192 pixels wide shows it), so that the same frames make different files. Without it they make the
# same file on one machine.
OPTIONS = {"crf": "20", "mbtree": "0"}
LOSSLESS = {"qp": "0"}


def to_rgb(i420: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A frame's planes [3H/2, W] to its pixels [H, W, 3]."""
    rgb: npt.NDArray[np.uint8] = av.VideoFrame.from_ndarray(i420, format="yuv420p").to_ndarray(format="rgb24")
    return rgb


def check_video_target(path: Path, source: Path | None = None) -> None:
    """Raises ValueError or OSError if no video can be written to a path; `source` is a file that is read meanwhile."""
    check_target(path, SUFFIX, source)
    if is_stream(path):
        raise ValueError(f"{path} is a device or a pipe, and an mp4 is not written in order: give the name of a file")


class VideoFile(AbstractContextManager["VideoFile"]):
    """Writes H.264 to a neighbour of `path`, which takes its place when the `with` block ends without an error."""

    def __init__(self, path: Path, width: int, height: int, fps: float, lossless: bool = False) -> None:
        """Frames are `width` x `height` pixels, both even. `lossless` keeps each of their values, in a profile of H.264
        that browsers do not play. Raises ValueError or OSError if `path` cannot be written."""
        check_video_target(path)
        self._path, self._width, self._height, self._fps = path, width, height, fps
        self._options = LOSSLESS if lossless else OPTIONS
        self._ticks = round(TIME_SCALE_HZ / fps)
        self.frames = 0  # that were written
        self._block = self._written()

    def __enter__(self) -> VideoFile:
        self._block.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._block.__exit__(kind, error, trace)

    @contextmanager
    def _written(self) -> Iterator[None]:
        with new_file(self._path) as partial:
            with explained(self._path):
                self._open(partial)
            try:
                yield
            except BaseException:
                # What is thrown away may fail to be closed for the same reason.
                with suppress(Exception):
                    self._container.close()
                raise
            with explained(self._path):
                self._container.mux(self._stream.encode())
                self._container.close()

    def _open(self, partial: Path) -> None:
        # FFmpeg takes what stands before a colon for a protocol. The index goes in front, so that a browser can begin
        # before it has the whole file.
        self._container = av.open(f"file:{partial}", "w", format="mp4", options={"movflags": "faststart"})
        rate = Fraction(self._fps).limit_denominator(1001)
        self._stream = self._container.add_stream("libx264", rate=rate, options=self._options)
        self._stream.width, self._stream.height, self._stream.pix_fmt = self._width, self._height, "yuv420p"
        context = self._stream.codec_context
        context.time_base = Fraction(1, TIME_SCALE_HZ)
        tag(context)

    def write(self, i420: npt.NDArray[np.uint8]) -> None:
        """Appends frames [F, 3H/2, W] uint8. Raises OSError where there is no room for them."""
        for planes in i420:
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = self.frames * self._ticks, Fraction(1, TIME_SCALE_HZ)
            tag(frame)
            with explained(self._path):
                self._container.mux(self._stream.encode(frame))
            self.frames += 1

    def write_batches(self, batches: Iterable[FrameBatch], frames: int) -> None:
        """Appends batches of `frames` frames in all, with a progress bar."""
        with tqdm(total=frames, unit="frame", desc=self._path.name) as bar:
            for batch in batches:
                self.write(batch.i420)
                bar.update(batch.frames)

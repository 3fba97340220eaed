"""The last pictures of a picture or video file, for a video that goes on from them.

`python -m engine.video.start_clip FILE HEIGHT WIDTH FPS COUNT` writes those of a stranger's file to stdout, raw
[F, H, W, 3]. It is a process of its own with little room and time, since a file may be made to crash or occupy what
reads it; its words on stderr are for whoever sent the file.
"""

from __future__ import annotations

import os
import resource
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.video.clip import Clip

# Of FFmpeg's formats those of one file with pictures: none that leads to other files or addresses, as playlists do.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,live_flv,mpegts,mpeg,asf,ogg,nut,mxf,ivf,h264,hevc,av1,obu,m4v,"
    "mpegvideo,mjpeg,yuv4mpegpipe,gif,apng,png_pipe,jpeg_pipe,jpegls_pipe,webp_pipe,bmp_pipe,tiff_pipe,jpegxl_pipe,"
    "j2k_pipe,ppm_pipe,pgm_pipe,pam_pipe,qoi_pipe,image2pipe"
)
LONGEST_S = 60.0
MOST_PIXELS = 50_000_000  # of a picture
COMPUTING_S = 20  # of the process
MEMORY_BYTES = 4 << 30  # of its addresses
NICE = 10  # beside what viewers wait for


def last_pictures(path: Path, height: int, width: int, fps: float, count: int) -> npt.NDArray[np.uint8]:
    """The last `count` pictures of a file, or all there are, [F, H, W, 3]. Raises ValueError as `tokenize` does."""
    with Clip(path, height, width, fps) as clip:
        return np.stack(deque(clip.pictures(), maxlen=count))


def strangers_pictures(path: Path, height: int, width: int, fps: float, count: int) -> npt.NDArray[np.uint8]:
    """As `last_pictures`, of a file that may be anything.

    Raises ValueError also for another format than FORMATS, and before a picture is read for a video that is longer or
    larger than is taken.
    """
    with Clip(path, height, width, fps, FORMATS) as clip:
        stated, pixels = clip.frames_stated, clip.pixels
        if pixels > MOST_PIXELS:
            raise ValueError(f"the file's pictures have {pixels} pixels, and {MOST_PIXELS} are the most")
        if stated is not None and stated > LONGEST_S * fps:
            raise ValueError(f"the file is {stated / fps:.0f} s long, and {LONGEST_S:.0f} s are the most")
        pictures: deque[npt.NDArray[np.uint8]] = deque(maxlen=count)
        for picture in clip.pictures():
            pictures.append(picture)
            if clip.frames > LONGEST_S * fps:
                raise ValueError(f"the file is longer than {LONGEST_S:.0f} s, which are the most")
        return np.stack(pictures)


def main(argv: Sequence[str]) -> int:
    """Runs the program; returns 2, with one line on stderr, for a file that is not taken."""
    path, (height, width, count), fps = Path(argv[0]), map(int, (argv[1], argv[2], argv[4])), float(argv[3])
    try:
        pictures = strangers_pictures(path, height, width, fps, count)
    except (ValueError, MemoryError) as error:
        told = str(error) or "the file takes too much memory: make it smaller"
        sys.stderr.write(told.replace(str(path), "the file"))
        return 2
    sys.stdout.buffer.write(pictures.tobytes())
    return 0


def limit() -> None:
    """Bounds what this process may take, for good."""
    os.nice(NICE)
    resource.setrlimit(resource.RLIMIT_CPU, (COMPUTING_S, COMPUTING_S + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    limit()
    sys.exit(main(sys.argv[1:]))

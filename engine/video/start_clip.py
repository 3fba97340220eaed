"""The last pictures of a picture or video file, for a video that goes on from them."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.video.clip import Clip


def last_pictures(path: Path, height: int, width: int, fps: float, count: int) -> npt.NDArray[np.uint8]:
    """The last `count` pictures of a file, or all there are, [F, H, W, 3]. Raises ValueError as `tokenize` does."""
    with Clip(path, height, width, fps) as clip:
        return np.stack(deque(clip.pictures(), maxlen=count))

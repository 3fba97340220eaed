"""The values that pass between stages and, as `FrameChunk`, across the process border.

Imports no torch at run time, so that the server process can use `FrameChunk` too.
Shapes: `T` latent or semantic frames, `F` video frames, `N` tokens, `D` width, `H` x `W` picture size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class TextEmbedding:
    """A prompt as the planner and the renderer read it."""

    planner: Tensor  # [1, N, D] of the planner's text encoder, padding removed
    renderer: Tensor  # [1, N', D'] of the renderer's text encoder, as long as its configuration says


@dataclass(frozen=True, slots=True)
class FeatureFrames:
    """Semantic features of consecutive frames, first frame number `start` since the video began."""

    features: Tensor  # [1, T, D, h, w]
    start: int


@dataclass(frozen=True, slots=True)
class FrameChunk:
    """Finished pictures, in order, on the host."""

    index: int  # number of the first frame since the video began
    hop: int
    i420: npt.NDArray[np.uint8]  # [F, 3H/2, W]: planes Y, U, V of each frame one after the other, limited range
    created_s: float  # time.monotonic() when the last picture was finished

    @property
    def frames(self) -> int:
        return int(self.i420.shape[0])

"""Finished frames, as they cross the border between the processes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class FrameBatch:
    """The frames of one VAE slice, in order, on the host."""

    index: int  # number of the first frame since the video began
    chunk: int  # number of the chunk that they belong to
    i420: npt.NDArray[np.uint8]  # [F, 3H/2, W]: planes Y, U, V of each frame one after the other, limited range

    @property
    def frames(self) -> int:
        return int(self.i420.shape[0])

"""When a picture became another one, seen in the pixels alone.

A frame is reduced to its *sketch*: mean colour of the cells of a coarse grid. Its *novelty* is the distance to the most
similar frame of a stretch that was watched before; motion, which comes back to where it was, has a little of it. The
picture changed when novelty rises above what the old prompt itself reached.

Shapes: `H` x `W` picture size; an I420 frame is [3H/2, W] uint8; a sketch is [ROWS * COLUMNS * 3] float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

ROWS, COLUMNS = 6, 8
TIMES = 1.5  # of the most that the old prompt reached
LEAST = 2.0  # levels of 255: what encoders make of a still picture stays below
LEAST_BEFORE = 4  # frames, or nothing is known of the motion
LASTING = 4  # frames in a row
CONTEXT_S = 10.0  # of video before a change, to which the frames behind it are compared

Sketch = npt.NDArray[np.float32]


class Seen(NamedTuple):
    """A frame's arrival and its sketch."""

    at_s: float
    sketch: Sketch


def sketch(i420: npt.NDArray[np.uint8], top: int = 0) -> Sketch:
    """The sketch of a frame [3H/2, W]; `top` lines are left out, which are a marker's."""
    height, width = i420.shape[0] * 2 // 3, i420.shape[1]
    chroma = i420[height:].reshape(2, height // 2, width // 2)
    return np.concatenate([_grid(i420[top:height]), _grid(chroma[0, top // 2 :]), _grid(chroma[1, top // 2 :])])


def _grid(plane: npt.NDArray[np.uint8]) -> Sketch:
    """Means of the cells of a plane, row by row."""
    rows = np.linspace(0, plane.shape[0], ROWS + 1).astype(int)
    columns = np.linspace(0, plane.shape[1], COLUMNS + 1).astype(int)
    sums = np.add.reduceat(np.add.reduceat(plane, rows[:-1], 0, np.float32), columns[:-1], 1)
    means: Sketch = (sums / np.outer(np.diff(rows), np.diff(columns))).ravel().astype(np.float32)
    return means


def novelty(sketches: Sequence[Sketch], known: Sequence[Sketch]) -> npt.NDArray[np.float32]:
    """For each sketch the root mean square distance, in levels of 255, to the most similar one that is known."""
    apart = np.stack(sketches)[:, None] - np.stack(known)[None]
    return np.asarray(np.sqrt((apart**2).mean(2)).min(1))


def first_change(seen: Sequence[Seen], sent_s: float, since_s: float = float("-inf")) -> float | None:
    """When the picture became another one after `sent_s`; None if it did not, or nothing was seen before.

    The frames before, from `since_s` on, are halved: the novelty of each half against the other is what the old prompt
    makes by itself.
    """
    before = [frame.sketch for frame in seen if max(sent_s - CONTEXT_S, since_s) <= frame.at_s < sent_s]
    after = [frame for frame in seen if frame.at_s >= sent_s]
    if len(before) < LEAST_BEFORE or not after:
        return None
    half = len(before) // 2
    usual = max(float(novelty(before[half:], before[:half]).max()), float(novelty(before[:half], before[half:]).max()))
    new = novelty([frame.sketch for frame in after], before) > max(TIMES * usual, LEAST)
    for place in range(len(after) - LASTING + 1):
        if new[place : place + LASTING].all():
            return after[place].at_s
    return None

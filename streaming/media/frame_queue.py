"""Frames that are rendered and not yet shown, in order, as views of the ring's slots."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from engine.wire.frames import FrameBatch


class FrameQueue:
    """Frames rendered and not yet shown, in order. Bounded by the ring: a batch keeps its slot until shown."""

    def __init__(self, start: int) -> None:
        self._batches: deque[tuple[FrameBatch, int | None]] = deque()
        self._start = self._end = self._expected = start

    def __len__(self) -> int:
        return self._end - self._start

    @property
    def start(self) -> int:
        """Number of the next frame to take."""
        return self._start

    @property
    def end(self) -> int:
        """Number of the next frame to put."""
        return self._end

    def put(self, batch: FrameBatch, slot: int) -> tuple[int, ...]:
        """Appends a batch whose frames are a view of `slot`; returns slots that nothing is left to take from.

        Raises ValueError when it does not follow the last one.
        """
        if batch.index != self._expected:
            raise ValueError(f"batch begins at frame {batch.index}; frame {self._expected} comes next")
        self._expected += batch.frames
        if self._expected <= self._end:
            return (slot,)
        self._batches.append((batch, slot))
        self._end = self._expected
        return ()

    def take(self) -> tuple[int, npt.NDArray[np.uint8], tuple[int, ...]]:
        """The next frame's number, a copy of it [3H/2, W], and slots that are free now. Raises IndexError if empty."""
        batch, slot = self._batches[0]
        index, self._start = self._start, self._start + 1
        frame = batch.i420[index - batch.index].copy()
        if self._start < batch.index + batch.frames:
            return index, frame, ()
        self._batches.popleft()
        return index, frame, () if slot is None else (slot,)

    def drop(self, frame: int) -> tuple[int, ...]:
        """Drops the frames from `frame` on, others of these numbers follow; returns slots that are free now.

        What was taken already stays as it was: as many of those that follow are passed over.
        """
        self._expected, self._end = frame, max(frame, self._start)
        freed = []
        while self._batches:
            batch, slot = self._batches.pop()
            if self._end > self._start and batch.index < self._end:
                self._batches.append((replace(batch, i420=batch.i420[: self._end - batch.index]), slot))
                break
            if slot is not None:
                freed.append(slot)
        return tuple(freed)

    def forget_slots(self, copied: bool = False) -> None:
        """Keeps the frames, but gives none of their slots back any more: their writer is gone.

        With `copied` it is not, and will fill them with others.
        """
        self._batches = deque(
            (replace(batch, i420=batch.i420.copy()) if copied else batch, None) for batch, _ in self._batches
        )
        self._expected = self._end

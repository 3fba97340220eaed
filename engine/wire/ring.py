"""Frame batches across the process border: memory that both processes map, in slots that are granted as credits.

The memory is a file without a name that could outlive the processes, however they end; a `RingWriter` carries it to
the engine process while that is being spawned. The server creates a new ring for every engine process, so a dying
writer cannot spoil frames of its successor. All channels share one ring, each with a quota of slots, so that a channel
that nobody watches keeps none from another.
Shapes: `F` frames, `H` x `W` picture size; an I420 frame is [3H/2, W] uint8.
"""

from __future__ import annotations

import heapq
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from typing import IO, Any

import numpy as np
import numpy.typing as npt

MOST_CHANNELS = 16
CHANNEL_SLOTS = 8  # that a channel holds at most


@dataclass(frozen=True, slots=True)
class RingConfig:
    """Size of a ring. Untouched pages cost nothing, so slots are as many and as large as may ever be needed."""

    slots: int = MOST_CHANNELS * CHANNEL_SLOTS
    slot_bytes: int = 9 * 480 * 720 * 3 // 2  # 9 frames: the first 3 latent frames of a video at 480x720

    def __post_init__(self) -> None:
        if self.slots < 2:
            raise ValueError(f"slots is {self.slots}; a ring needs at least 2, one on air and one being filled")
        if self.slot_bytes < 1:
            raise ValueError(f"slot_bytes is {self.slot_bytes}; it must be positive")

    @property
    def total_bytes(self) -> int:
        return self.slots * self.slot_bytes


class RingWriter:
    """The engine's end. Slots are credits, granted again by `Shown.freed_slots`. Owns the mapping."""

    def __init__(self, fd: int, config: RingConfig) -> None:
        self._fd = fd
        self._config = config
        self._memory = mmap.mmap(fd, config.total_bytes)
        self._free = list(range(config.slots))

    def acquire(self) -> int | None:
        """Takes a free slot, or None when every slot holds frames that were not shown yet."""
        # The first one, so that few channels touch few pages.
        return heapq.heappop(self._free) if self._free else None

    def write(self, slot: int, i420: npt.NDArray[np.uint8]) -> None:
        """Copies frames [F, 3H/2, W] uint8 into an acquired slot. Raises ValueError when they do not fit."""
        if i420.dtype != np.uint8 or i420.ndim != 3:
            raise ValueError(f"frames must be [F, 3H/2, W] uint8; got {i420.shape} {i420.dtype}")
        if i420.nbytes > self._config.slot_bytes:
            raise ValueError(f"frames {i420.shape} take {i420.nbytes} bytes; a slot holds {self._config.slot_bytes}")
        if slot in self._free or not 0 <= slot < self._config.slots:
            raise ValueError(f"slot {slot} was not acquired")
        offset = slot * self._config.slot_bytes
        target = np.frombuffer(self._memory, np.uint8, i420.nbytes, offset).reshape(i420.shape)
        np.copyto(target, i420)

    def release(self, slots: Iterable[int]) -> None:
        """Gives slots back: their frames were shown, or were never announced."""
        for slot in slots:
            if slot in self._free or not 0 <= slot < self._config.slots:
                raise ValueError(f"slot {slot} is already free or does not exist")
            heapq.heappush(self._free, slot)

    def __reduce__(self) -> tuple[Callable[[Any, RingConfig], RingWriter], tuple[Any, RingConfig]]:
        return _attach, (DupFd(self._fd), self._config)


def _attach(handle: Any, config: RingConfig) -> RingWriter:
    """Unpickles a writer in the spawned process."""
    fd = handle.detach()
    try:
        return RingWriter(fd, config)
    finally:
        # The mapping keeps the memory; it holds a duplicate of its own.
        os.close(fd)


class RingReader:
    """The server's end. Creates and owns the memory; views of it stay valid after `close` until they are dropped."""

    def __init__(self, config: RingConfig) -> None:
        """Raises OSError where the system gives no memory, or no descriptor for it."""
        self._config = config
        self._file = memory_file()
        try:
            os.ftruncate(self._file.fileno(), config.total_bytes)
            self._memory = mmap.mmap(self._file.fileno(), config.total_bytes)
        except BaseException:
            self._file.close()
            raise

    def writer(self) -> RingWriter:
        """The other end, to be passed to a process that is being spawned."""
        return RingWriter(self._file.fileno(), self._config)

    def frames(self, slot: int, frames: int, height: int, width: int) -> npt.NDArray[np.uint8]:
        """Read-only view [F, 3H/2, W] of a slot, valid until the slot is given back to the writer.

        Raises ValueError when the slot does not exist or is too small for that many frames.
        """
        size = frames * height * 3 // 2 * width
        if not 0 <= slot < self._config.slots:
            raise ValueError(f"slot {slot} does not exist; the ring has {self._config.slots}")
        if not 0 < size <= self._config.slot_bytes:
            raise ValueError(f"{frames} frames take {size} bytes; a slot holds {self._config.slot_bytes}")
        view = np.frombuffer(self._memory, np.uint8, size, slot * self._config.slot_bytes)
        view.flags.writeable = False
        return view.reshape(frames, height * 3 // 2, width)

    def close(self) -> None:
        """Closes the file; idempotent. The memory goes when both processes dropped their mappings and views."""
        self._file.close()


def memory_file() -> IO[bytes]:
    """A file in memory. Not one in /dev/shm, which containers make smaller than a ring may get."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("frames"), "w+b", buffering=0)
    # It may reach a disk, which is slower but right.
    return tempfile.TemporaryFile(buffering=0)

"""FrameChunks across the process border: memory that both processes map, cut into slots that are granted as credits.

The memory is an unlinked temporary file, so it has no name that could outlive the processes, however they end; a
`RingWriter` carries the file to the engine process while that is being spawned. The server creates a new ring for every
engine process, so a dying writer cannot spoil frames of its successor.
Shapes: `F` frames, `H` x `W` picture size; an I420 frame is [3H/2, W] uint8.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.wire.frames import FrameChunk

# A file in here lives in memory; elsewhere it may reach a disk, which is slower but right.
MEMORY_FOLDER = "/dev/shm"


@dataclass(frozen=True, slots=True)
class RingConfig:
    """Size of a ring. Untouched pages cost nothing, so slots are as large as the largest preset needs."""

    slots: int = 8
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
    """The engine's end; `engine.wire.messages.FrameRing` says what its methods promise. Owns the mapping."""

    def __init__(self, fd: int, config: RingConfig) -> None:
        self._fd = fd
        self._config = config
        self._memory = mmap.mmap(fd, config.total_bytes)
        self._free = deque(range(config.slots))

    @property
    def slot_bytes(self) -> int:
        return self._config.slot_bytes

    def acquire(self) -> int | None:
        return self._free.popleft() if self._free else None

    def write(self, slot: int, i420: npt.NDArray[np.uint8]) -> None:
        if i420.dtype != np.uint8 or i420.ndim != 3:
            raise ValueError(f"frames must be [F, 3H/2, W] uint8; got {i420.shape} {i420.dtype}")
        if i420.nbytes > self._config.slot_bytes:
            raise ValueError(f"frames {i420.shape} take {i420.nbytes} bytes; a slot holds {self._config.slot_bytes}")
        if slot in self._free or not 0 <= slot < self._config.slots:
            raise ValueError(f"slot {slot} was not acquired")
        offset = slot * self._config.slot_bytes
        target = np.frombuffer(self._memory, np.uint8, i420.nbytes, offset).reshape(i420.shape)
        np.copyto(target, i420)

    def release(self, slots: Sequence[int]) -> None:
        for slot in slots:
            if slot in self._free or not 0 <= slot < self._config.slots:
                raise ValueError(f"slot {slot} is already free or does not exist")
            self._free.append(slot)

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
        self._config = config
        folder = MEMORY_FOLDER if os.path.isdir(MEMORY_FOLDER) else None
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)
        os.ftruncate(self._file.fileno(), config.total_bytes)
        self._memory = mmap.mmap(self._file.fileno(), config.total_bytes)

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


class ChunkQueue:
    """Frames rendered and not yet shown, in order. Bounded by the ring: a chunk keeps its slot until shown."""

    def __init__(self, start: int) -> None:
        self._chunks: deque[tuple[FrameChunk, int | None]] = deque()
        self._start = self._end = start

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

    def put(self, chunk: FrameChunk, slot: int) -> None:
        """Appends a chunk whose frames are a view of `slot`. Raises ValueError when it does not follow the last one."""
        if chunk.index != self._end:
            raise ValueError(f"chunk begins at frame {chunk.index}; frame {self._end} comes next")
        self._chunks.append((chunk, slot))
        self._end += chunk.frames

    def take(self) -> tuple[int, npt.NDArray[np.uint8], tuple[int, ...]]:
        """The next frame's number, a copy of it [3H/2, W], and slots that are free now. Raises IndexError if empty."""
        chunk, slot = self._chunks[0]
        index, self._start = self._start, self._start + 1
        frame = chunk.i420[index - chunk.index].copy()
        if self._start < chunk.index + chunk.frames:
            return index, frame, ()
        self._chunks.popleft()
        return index, frame, () if slot is None else (slot,)

    def forget_slots(self) -> None:
        """The writer is gone: frames stay, but their slots are nobody's to give back."""
        self._chunks = deque((chunk, None) for chunk, _ in self._chunks)

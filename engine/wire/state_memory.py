"""The last state of every channel in memory that outlives the engine process which writes it, however that ends.

The server makes it and hands it to each engine process. A channel has an area of its own, whose number the server says,
and is made by one process at a time: whichever makes it next finds there what the one before left. An area has two
places for each part: what is new goes to the place that is not in use, and then one short write, which a kill cannot
cut in two, says that it counts.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from multiprocessing.reduction import DupFd
from typing import Any, NamedTuple

from engine.wire.kept_state import KeptState
from engine.wire.ring import MOST_CHANNELS, memory_file

AREAS = MOST_CHANNELS + 1  # a server that goes on with as many channels has one of its own beside them

_INDEX = struct.Struct("<QQQQ")
_RECORD_AT, _SNAPSHOT_AT = 1 << 12, 1 << 28  # bytes from the beginning of an area
_RECORD_BYTES, SNAPSHOT_BYTES = 1 << 20, 1 << 32  # at most; what is not written takes no memory
_AREA_BYTES = 1 << 34


class Written(NamedTuple):
    """How often a record and a snapshot were written to an area, and the sizes of the last ones; all 0 without."""

    records: int = 0
    snapshots: int = 0
    record_bytes: int = 0
    snapshot_bytes: int = 0


class StateMemory:
    """Areas by number. Owns the file, which goes with the last process that has it."""

    def __init__(self, fd: int | None = None) -> None:
        """A new one, or the one behind a descriptor, which it takes."""
        if fd is None:
            with memory_file() as file:
                fd = os.dup(file.fileno())
        self._fd = fd

    def written(self, area: int) -> Written:
        """What counts in an area: it is another whenever something was written."""
        index = os.pread(self._fd, _INDEX.size, area * _AREA_BYTES)
        return Written(*_INDEX.unpack(index)) if len(index) == _INDEX.size else Written()

    def read(self, area: int) -> tuple[KeptState, bytes] | None:
        """The last record and snapshot; None where there are none, or they are damaged."""
        kept = self.record(area)
        return None if kept is None else (kept, self.snapshot(area))

    def record(self, area: int) -> KeptState | None:
        """The last record; None where there is none, or it is damaged."""
        written = self.written(area)
        if not any(written):
            return None
        try:
            return KeptState.from_json(self._get(_record_at(area, written.records), written.record_bytes))
        except ValueError:
            return None

    def snapshot(self, area: int) -> bytes:
        """The last snapshot; empty where there is none."""
        written = self.written(area)
        return self._get(_snapshot_at(area, written.snapshots), written.snapshot_bytes)

    def write(self, area: int, kept: KeptState, snapshot: bytes | memoryview | None) -> None:
        """Takes the place of the state; None leaves the snapshot, of bytes, as it is.

        Raises OSError where there is no memory, ValueError where it is too large: what was kept before still is.
        """
        records, snapshots, _, size = self.written(area)
        text = kept.to_json()
        if len(text) > _RECORD_BYTES or len(snapshot or b"") > SNAPSHOT_BYTES:
            raise ValueError(f"a state of {len(text)} and {len(snapshot or b'')} bytes is too large to be kept")
        records += 1
        self._put(_record_at(area, records), text)
        if snapshot is not None:
            snapshots, size = snapshots + 1, len(snapshot)
            self._put(_snapshot_at(area, snapshots), snapshot)
        self._put(area * _AREA_BYTES, _INDEX.pack(records, snapshots, len(text), size))

    def forget(self, area: int) -> None:
        """The channel is no more; its area is free for another."""
        if any(self.written(area)):
            self._put(area * _AREA_BYTES, bytes(_INDEX.size))

    def close(self) -> None:
        os.close(self._fd)

    def __reduce__(self) -> tuple[Callable[[Any], StateMemory], tuple[Any]]:
        return _attach, (DupFd(self._fd),)

    def _get(self, offset: int, size: int) -> bytes:
        parts, done = list[bytes](), 0
        while done < size and (part := os.pread(self._fd, size - done, offset + done)):
            parts.append(part)
            done += len(part)
        return b"".join(parts)  # of one part it is that one, not a copy

    def _put(self, offset: int, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            done = os.pwrite(self._fd, rest, offset)
            rest, offset = rest[done:], offset + done


def _record_at(area: int, number: int) -> int:
    return area * _AREA_BYTES + _RECORD_AT + number % 2 * _RECORD_BYTES


def _snapshot_at(area: int, number: int) -> int:
    return area * _AREA_BYTES + _SNAPSHOT_AT + number % 2 * SNAPSHOT_BYTES


def _attach(handle: Any) -> StateMemory:
    """Unpickles one in the spawned process."""
    return StateMemory(handle.detach())

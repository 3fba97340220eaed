"""The last state of every channel in memory that outlives the engine process which writes it, however that ends.

The server makes it and hands it to each engine process in turn; it reads nothing itself. A channel has an area with
two places for each part: what is new goes to the place that is not in use, and then one short write, which a kill
cannot cut in two, says that it counts.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from multiprocessing.reduction import DupFd
from typing import Any

from engine.wire.kept_state import KeptState
from engine.wire.ring import MOST_CHANNELS, memory_file

_INDEX = struct.Struct("<QQQQ")  # places of record and snapshot, 1 or 2, and their sizes; all 0 in an area without
_RECORD_AT, _SNAPSHOT_AT = 1 << 12, 1 << 28  # bytes from the beginning of an area
_RECORD_BYTES, SNAPSHOT_BYTES = 1 << 20, 1 << 32  # at most; what is not written takes no memory
_AREA_BYTES = 1 << 34

Parts = tuple[int, int, int, int]


class StateMemory:
    """Areas by channel. Owns the file, which goes with the last process that has it."""

    def __init__(self, fd: int | None = None) -> None:
        """A new one, or the one behind a descriptor, which it takes."""
        if fd is None:
            with memory_file() as file:
                fd = os.dup(file.fileno())
        self._fd = fd
        self._areas: dict[str, int] = {}
        self._old: list[str] = []  # channels that this process has not written
        self._indices: dict[int, Parts] = {}

    def read(self) -> dict[str, tuple[KeptState, bytes]]:
        """The last record and snapshot of each channel. What is damaged is left out."""
        found = {}
        self._areas, self._indices = {}, {}
        for area in range(MOST_CHANNELS):
            index = os.pread(self._fd, _INDEX.size, area * _AREA_BYTES)
            if len(index) < _INDEX.size or not any(index):
                continue
            record, snapshot, record_bytes, snapshot_bytes = parts = _INDEX.unpack(index)
            try:
                kept = KeptState.from_json(self._get(_record_at(area, record), record_bytes))
            except ValueError:
                continue
            self._areas[kept.channel], self._indices[area] = area, parts
            found[kept.channel] = kept, self._get(_snapshot_at(area, snapshot), snapshot_bytes)
        self._old = list(found)
        return found

    def write(self, kept: KeptState, snapshot: bytes | None) -> None:
        """Takes the place of the channel's state; None leaves the snapshot as it is.

        Raises OSError where there is no memory, ValueError where there is no area or it is too large: what was kept
        before still is.
        """
        area = self._area(kept.channel)
        if kept.channel in self._old:
            self._old.remove(kept.channel)
        record, place, _, size = self._indices.get(area, (0, 0, 0, 0))
        text = kept.to_json()
        if len(text) > _RECORD_BYTES or len(snapshot or b"") > SNAPSHOT_BYTES:
            raise ValueError(f"a state of {len(text)} and {len(snapshot or b'')} bytes is too large to be kept")
        record = 2 if record == 1 else 1
        self._put(_record_at(area, record), text)
        if snapshot is not None:
            place, size = 2 if place == 1 else 1, len(snapshot)
            self._put(_snapshot_at(area, place), snapshot)
        self._indices[area] = (record, place, len(text), size)
        self._put(area * _AREA_BYTES, _INDEX.pack(*self._indices[area]))

    def forget(self, channel: str) -> None:
        """The channel is no more; its area is free for another."""
        area = self._areas.pop(channel, None)
        if area is not None:
            self._indices.pop(area, None)
            self._put(area * _AREA_BYTES, bytes(_INDEX.size))

    def close(self) -> None:
        os.close(self._fd)

    def __reduce__(self) -> tuple[Callable[[Any], StateMemory], tuple[Any]]:
        return _attach, (DupFd(self._fd),)

    def _area(self, channel: str) -> int:
        if channel not in self._areas:
            if len(self._areas) == MOST_CHANNELS and self._old:
                # It ended while no engine process ran.
                self.forget(self._old.pop())
            free = sorted({*range(MOST_CHANNELS)} - {*self._areas.values()})
            if not free:
                raise ValueError(f"the states of {MOST_CHANNELS} channels are kept, and no more")
            self._areas[channel] = free[0]
        return self._areas[channel]

    def _get(self, offset: int, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size and (part := os.pread(self._fd, size - len(parts), offset + len(parts))):
            parts += part
        return bytes(parts)

    def _put(self, offset: int, data: Sequence[int] | bytes) -> None:
        rest = memoryview(bytes(data))
        while rest:
            done = os.pwrite(self._fd, rest, offset)
            rest, offset = rest[done:], offset + done


def _record_at(area: int, place: int) -> int:
    return area * _AREA_BYTES + place * _RECORD_AT + (place - 1) * _RECORD_BYTES


def _snapshot_at(area: int, place: int) -> int:
    return area * _AREA_BYTES + _SNAPSHOT_AT + (place - 1) * SNAPSHOT_BYTES


def _attach(handle: Any) -> StateMemory:
    """Unpickles one in the spawned process."""
    return StateMemory(handle.detach())

"""Latents that a journal's snapshots hold: chunks that need only be decoded to be shown again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from engine.live.generator import Generator
from engine.live.journal import ChunkRecord, Record, SnapshotRecord
from engine.live.snapshot import chunk_latents, read_snapshot

log = logging.getLogger(__name__)


class KeptLatents:
    """Of the chunks before each snapshot, since the one before; one snapshot's are in memory."""

    def __init__(self, generator: Generator, records: Sequence[Record], folder: Path) -> None:
        self._generator, self._folder = generator, folder
        self._where = _places(records)
        self._read: tuple[str, list[Tensor | None]] = "", []

    def of(self, number: int, length: int) -> Tensor | None:
        """The latents [1, length, C, H, W] float32 of the chunk of a record, by its number; None if there are none."""
        if number not in self._where:
            return None
        name, index, count = self._where[number]
        if self._read[0] != name:
            self._read = name, self._all(name)
        latents = self._read[1][index] if len(self._read[1]) == count else None
        return latents if latents is not None and latents.shape[1] == length else None

    def _all(self, name: str) -> list[Tensor | None]:
        path = self._folder / name
        if not path.exists():
            return []  # of old snapshots few stay
        try:
            return chunk_latents(self._generator, read_snapshot(path))
        except ValueError as error:
            log.warning("%s; what is before it is rendered again", error)
            return []


def _places(records: Sequence[Record]) -> dict[int, tuple[str, int, int]]:
    """By the number of a chunk's record: the snapshot behind it, and the which of how many chunks before that it is."""
    found: dict[int, tuple[str, int, int]] = {}
    chunks: list[int] = []
    for number, record in enumerate(records):
        if isinstance(record, ChunkRecord):
            chunks.append(number)
            continue
        if isinstance(record, SnapshotRecord):
            found |= {chunk: (record.snapshot, index, len(chunks)) for index, chunk in enumerate(chunks)}
        chunks = []
    return found

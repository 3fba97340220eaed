"""A channel's state in the state folder, for a server that comes next."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from engine.live.journal_writer import JournalWriter
from engine.wire.files import explained, unfinished
from engine.wire.kept_state import KeptState
from engine.wire.state_folder import SNAPSHOTS, STATE, channel_folder, forget

_Job = tuple[KeptState, memoryview | None]

log = logging.getLogger(__name__)


class StateFiles:
    """Written in the journals' thread: what waits is replaced by what is newer."""

    def __init__(self, journals: JournalWriter, channel: str) -> None:
        self._journals, self._channel = journals, channel
        self._folder = channel_folder(journals.folder, channel)
        self._lock = threading.Lock()
        self._waiting: _Job | None = None
        self._place: int | None = None  # of SNAPSHOTS, which holds the snapshot; None before one is written
        self._closed = self._failed = False

    def write(self, kept: KeptState, snapshot: memoryview | None) -> None:
        """Takes the place of what is there or waits; None leaves the snapshot as it is."""
        with self._lock:
            waits = self._waiting is not None
            if snapshot is None and self._waiting is not None:
                snapshot = self._waiting[1]
            self._waiting = kept, snapshot
        if not waits and not self._journals.put(self._run):
            # The disk is far behind; the next call tries again.
            dropped = self._take()
            if dropped is not None and dropped[1] is not None:
                self._failed = True

    def remove(self) -> None:
        """The channel is no more. What remains is its journal."""
        if self._closed:
            return
        self._closed = True
        if not self._journals.put(lambda: forget(self._journals.folder, self._channel)):
            log.warning("%s may still be there when the server starts again: the disk is behind", self._folder / STATE)

    def release(self, done: Callable[[], None]) -> None:
        """Writes what waits and calls `done`, in the journals' thread; nothing more is written then."""

        def last() -> None:
            self._closed = True
            with suppress(OSError):  # the server is gone, which the main thread notices too
                done()

        if not self._journals.put(last):
            last()

    def _take(self) -> _Job | None:
        with self._lock:
            waiting, self._waiting = self._waiting, None
        return waiting

    def _run(self) -> None:
        waiting = self._take()
        if waiting is None or self._closed:
            return
        try:
            with explained(self._folder):
                self._put(*waiting)
        except OSError as error:
            if not self._failed:
                log.warning("a server that starts again goes on from an older state: %s", error)
            self._failed = True

    def _put(self, kept: KeptState, snapshot: memoryview | None) -> None:
        """The record last: it names the snapshot."""
        self._folder.mkdir(parents=True, exist_ok=True)
        place = self._place
        if snapshot is not None:
            place = self._free_place()
            _replace(self._folder / SNAPSHOTS[place], snapshot)
        elif self._failed:
            # The snapshot that is there is one of another time.
            return
        if place is not None:
            _replace(self._folder / STATE, replace(kept, snapshot=SNAPSHOTS[place]).to_json())
            # Not before: the next snapshot must not go over the one that the record names.
            self._place, self._failed = place, False

    def _free_place(self) -> int:
        """That which the record on the disk does not name."""
        if self._place is not None:
            return 1 - self._place
        with suppress(OSError, ValueError):
            return 1 - SNAPSHOTS.index(str(KeptState.from_json((self._folder / STATE).read_bytes()).snapshot))
        return 0


def _replace(path: Path, data: bytes | memoryview) -> None:
    """A file that is whole whenever a process ends. Not forced to the disk: that is for journals, and takes long."""
    with unfinished(path.with_name(f".{path.name}.part")) as part:
        part.write_bytes(data)
        os.replace(part, path)

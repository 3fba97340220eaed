"""Where a channel's journal, snapshots and last state lie in the server's state folder, for both processes."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from engine.wire.files import unfinished
from engine.wire.kept_state import KeptState

JOURNAL = "journal.jsonl"
STATE = "state.json"  # of a channel that is not ended: a server that starts goes on with it
SNAPSHOTS = ("last-1.snapshot", "last-2.snapshot")  # its state's, in turn: one is whole while the other is written
LOCK, TRIAL = ".lock", ".trial"
ABANDONED_S = 60.0  # the least age of a temporary folder that is removed


def channel_folder(state: Path, channel: str) -> Path:
    """The folder of a channel, whatever its id."""
    return state / quote(channel, safe="").replace(".", "%2E")


def forget(state: Path, channel: str) -> None:
    """A channel has ended: no server goes on with it. What remains is its journal."""
    for name in (STATE, *SNAPSHOTS):
        # On a bad disk it may come back; that harms nobody.
        with suppress(OSError):
            (channel_folder(state, channel) / name).unlink(missing_ok=True)


@contextmanager
def taken(state: Path, preset: str, picture: str | None = None) -> Iterator[list[KeptState]]:
    """Makes the folder; within the block no other server takes it. However the process ends, the lock goes with it.

    Yields the last states of channels that were not ended, by id.

    Raises ValueError, in one line, for a folder that another server has, or that cannot be written, or with a state
    that a server of this preset, picture (None: any) and version cannot go on from.
    """
    try:
        state.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(state / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ValueError(f"state folder {state} cannot be written ({error.strerror}): give another --state") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"another server has the state folder {state}: give another --state") from error
        _try(state)
        yield _kept_states(state, preset, picture)
    finally:
        os.close(descriptor)


def remove_abandoned(folders: Iterable[Path]) -> None:
    """Removes those temporary state folders whose servers are gone, as by kill -9."""
    for folder in folders:
        with suppress(OSError), (folder / LOCK).open("r+b") as file:
            # One that is new may not be locked yet.
            if time.time() - os.fstat(file.fileno()).st_mtime > ABANDONED_S:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


def _try(state: Path) -> None:
    """Raises ValueError where nothing can be put into the folder, though its lock may be there from another time."""
    try:
        with unfinished(state / TRIAL) as trial:
            trial.mkdir(exist_ok=True)
    except OSError as error:
        raise ValueError(f"state folder {state} cannot be written ({error.strerror}): give another --state") from error


def _kept_states(state: Path, preset: str, picture: str | None) -> list[KeptState]:
    found = []
    for path in sorted(state.glob(f"*/{STATE}")):
        try:
            kept = KeptState.from_json(path.read_bytes())
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror}): give another --state") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}; give another --state, or remove that file to begin anew") from error
        if kept.preset != preset:
            raise ValueError(
                f"{path} is of preset {kept.preset!r}, not {preset!r}: give --preset {kept.preset} or another --state"
            )
        if kept.picture != (picture or kept.picture):
            raise ValueError(f"{path} is of {kept.picture} pictures: give --picture {kept.picture} or another --state")
        if channel_folder(state, kept.channel) != path.parent:
            # A folder that was set aside or copied.
            continue
        found.append(kept)
    return found

"""Files that are whole or not there: looked at before the work, written beside their place, put there when complete.

A process that ends early, by an error, Ctrl-C, SIGTERM or SIGHUP, takes with it what it has not finished.
"""

from __future__ import annotations

import atexit
import errno
import itertools
import os
import shutil
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

_TRIAL_BYTES = 4096  # what a place must have room for, a block of most disks
_CURES = {
    errno.ENOSPC: "make room on that disk, or give another place",
    errno.EDQUOT: "make room within your quota, or give another place",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f), or make less",
    errno.ENAMETOOLONG: "give a shorter name",
}

# Each with the process that writes it: a forked child leaves those of its parent alone.
_unfinished: dict[Path, int] = {}
_numbers = itertools.count()


def check_target(path: Path, suffix: str | None = None, source: Path | None = None) -> None:
    """Says before any work what would keep a file from being written: tries with a block beside it, which goes again.

    A device or pipe is taken as it is.

    Args:
        suffix: the only one that is right.
        source: a file that is read meanwhile.

    Raises:
        ValueError: for another suffix, a folder, a missing folder, or the source.
        OSError: with one line, for a place that cannot be written: protected, full, too long a name.
    """
    if suffix is not None and path.suffix.lower() != suffix:
        raise ValueError(f"{path} does not end in {suffix}, the only format that is written")
    with explained(path):
        there = _status(path)
        if there is not None and stat.S_ISDIR(there.st_mode):
            raise ValueError(f"{path} is a folder: give the name of a file in it")
        target = _target(path)
        if not target.parent.is_dir():
            raise ValueError(f"the folder {target.parent} does not exist: make it first")
        if there is not None and source is not None and source.exists() and source.samefile(target):
            raise ValueError(f"{path} is what is read: give another name to write to")
        if there is not None and not os.access(path, os.W_OK):
            # It could be replaced all the same, which is not what its owner wants.
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if not is_stream(path):
            with unfinished(_beside(target)) as partial:
                partial.write_bytes(bytes(_TRIAL_BYTES))


def is_stream(path: Path) -> bool:
    """Whether a path is a device or a pipe, which is written into and never replaced."""
    there = _status(path)
    return there is not None and not stat.S_ISREG(there.st_mode)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with the path of a neighbour of `path`, which takes its place when complete.

    A link stays and what it points to is replaced; into a device or a pipe it is written straight. Raises OSError with
    one line.
    """
    with explained(path):
        if is_stream(path):
            write(path)
            return
    with new_file(path) as partial, explained(path):
        write(partial)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Where to write a file that is put in its place at the end of the block; after an error there it is removed."""
    target = _target(path)
    with unfinished(_beside(target)) as partial:
        yield partial
        with explained(path):
            _to_disk(partial)
            os.replace(partial, target)


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Within the block a file or folder may be there; behind it, and when the process ends in it, it is not."""
    _remove_when_the_process_ends()
    _unfinished[path] = os.getpid()
    try:
        yield path
    finally:
        _remove(path)
        del _unfinished[path]


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """An OSError of the block becomes one whose text names the file, what is wrong, and a cure."""
    try:
        yield
    except OSError as error:
        reason, cure = error.strerror or str(error), _CURES.get(error.errno or 0, "give another place")
        raise OSError(f"{path} cannot be written ({reason}): {cure}") from error


def _status(path: Path) -> os.stat_result | None:
    """Of what is there, behind all links. Raises OSError for a name that cannot be one."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _target(path: Path) -> Path:
    """The file that a path stands for, behind all links."""
    return Path(os.path.realpath(path))


def _beside(target: Path) -> Path:
    """A neighbour with a name of its own. It is short, since the target's may be as long as names can be."""
    return target.with_name(f".{os.getpid()}-{next(_numbers)}.part")


def _to_disk(path: Path) -> None:
    """Some disks say only now that they are full."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_when_the_process_ends() -> None:
    """Whatever way it ends, kill -9 excepted. Signals that somebody handles are left to him, who ends the process."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _end)


def _end(number: int, _: FrameType | None) -> None:
    """Removes what is unfinished and ends the process as the signal does."""
    _remove_all()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


@atexit.register
def _remove_all() -> None:
    for path, owner in list(_unfinished.items()):
        if owner == os.getpid():
            with suppress(OSError):
                _remove(path)

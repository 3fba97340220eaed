"""Starting the other ranks of this machine, and ending with the first that fails."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from typing import Any

from engine.ranks.agreement import RanksDifferError
from engine.ranks.group import RankError, RankPlace, joined, new_store
from engine.wire.startup import follow_parent

LOST = 3  # exit status of a rank that only lost the others
NOTICED_S = 2.0  # from the moment when a rank has lost the others until the one that failed has ended
STUCK_S = 10.0  # from the end of a rank until this process, which should have noticed, is ended

logger = logging.getLogger(__name__)


@contextmanager
def leading_ranks(ranks: int, target: Callable[..., None], *arguments: Any) -> Iterator[RankPlace]:
    """Inside, this process is rank 0, and the other ranks of this machine run `target(place, *arguments)`.

    They end with the block. One that fails ends it with a RankError that says how; where this process cannot notice,
    since it waits within a GPU, it is ended.

    Raises:
        RankError: a rank ended or was silent.
    """
    store = new_store(ranks)
    places = [RankPlace(rank, ranks, rank, ranks, store.port) for rank in range(ranks)]
    context = multiprocessing.get_context("spawn")
    others = {
        place.rank: context.Process(target=_run, args=(target, place, arguments), name=f"rank {place.rank}")
        for place in places[1:]
    }
    over = threading.Event()
    try:
        for process in others.values():
            process.start()
        threading.Thread(target=_watch, args=(others, over), name="ranks", daemon=True).start()
        with joined(places[0], store):
            yield places[0]
    except RankError as error:
        raise RankError(_failed(others) or str(error)) from error
    finally:
        over.set()
        for process in others.values():
            if process.pid is not None:
                process.kill()
                process.join()


def _run(target: Callable[..., None], place: RankPlace, arguments: tuple[Any, ...]) -> None:
    """Runs in the process of a rank."""
    follow_parent()
    # Ctrl-C in a terminal reaches every process; rank 0 ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with joined(place):
            target(place, *arguments)
    except (RankError, RanksDifferError) as error:
        logger.debug("%s", error)  # which rank 0 says
        sys.exit(LOST)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"rank {place.rank}: {error}\n")
        sys.exit(2)


def _watch(others: dict[int, SpawnProcess], over: threading.Event) -> None:
    """Ends this process when a rank has failed and it has not noticed."""
    waiting = [process.sentinel for process in others.values()]
    while waiting:
        ended = connection.wait(waiting)
        if over.wait(STUCK_S):
            return
        if (why := _failed(others)) is not None:
            sys.stderr.write(f"{why}; rank 0 waits for it and is ended too\n")
            sys.stderr.flush()
            os._exit(1)
        waiting = [sentinel for sentinel in waiting if sentinel not in ended]


def _failed(others: dict[int, SpawnProcess]) -> str | None:
    """Which rank failed, and how; None if none did by itself."""
    ended = connection.wait([process.sentinel for process in others.values()], timeout=NOTICED_S)
    for rank, process in others.items():
        if process.sentinel in ended:
            process.join()  # its files are closed before it has ended
        code = process.exitcode
        if code is not None and code < 0:
            return f"rank {rank} was ended by {signal.Signals(-code).name}"
        if code not in (None, 0, LOST):
            return f"rank {rank} ended with status {code}"
    return None

"""The priority of our processes among the other programs of the machine: media that is late is lost."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ParamSpec, TypeVar

NICENESS = -10  # of -20 to 19, least waits least: nine times the share of a core that a program of 0 gets

LOWEST = 19

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)


def go_first() -> None:
    """Raises the priority of this thread, and of all threads and processes that it begins, where the system allows it.

    It does for root, with the capability CAP_SYS_NICE, and within RLIMIT_NICE; elsewhere it stays as it is. A priority
    that is higher already stays, too.
    """
    now = os.getpriority(os.PRIO_PROCESS, 0)
    if now <= NICENESS:
        return
    try:
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    except PermissionError:
        log.info("the system gives no priority over other programs: beside busy ones pictures take longer to compute")


def in_background(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls a function in a thread of the lowest priority, where the system has such, and waits for what it returns."""

    def call() -> T:
        # A process might never get it back. Threads that this one begins inherit it.
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)
        return work(*args, **kwargs)

    with ThreadPoolExecutor(1, "background") as pool:
        return pool.submit(call).result()

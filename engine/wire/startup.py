"""What processes of the server do first: they log, and engine processes end with the server."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
from multiprocessing import connection, parent_process

LOG_LEVELS = ("debug", "info", "warning", "error")
_PR_SET_PDEATHSIG = 1  # of Linux


def log_from(level: str) -> None:
    """Logs to stderr what is at least as serious as `level`, one of LOG_LEVELS."""
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Their lines hold addresses that pushes go to, which are often secrets.
    for telling in ("httpx", "httpcore"):
        logging.getLogger(telling).setLevel(logging.WARNING)
    if level != "debug":
        # These tell every candidate pair, every start and stop.
        for chatty in ("aioice", "aiortc", "uvicorn"):
            logging.getLogger(chatty).setLevel(logging.WARNING)


def follow_parent() -> None:
    """Ends this process when the server is gone, even in the middle of a long computation."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()
    if sys.platform == "linux":
        # One that was stopped runs no threads.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

"""The priority of the server's processes among other programs."""

import os
import subprocess
import sys
import threading

import psutil
import pytest
from test_server import family, started

from engine.wire.priority import LOWEST, NICENESS, in_background

GO_FIRST = """
import logging, os, sys, threading
from engine.wire.priority import go_first
logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
{before}
go_first()
thread = threading.Thread(target=lambda: print(os.getpriority(os.PRIO_PROCESS, 0)))
thread.start()
thread.join()
"""
# Root may not in a container without the capability.
RAISE = [sys.executable, "-c", f"import os\nos.setpriority(os.PRIO_PROCESS, 0, {NICENESS})"]
needs_the_right = pytest.mark.skipif(
    subprocess.run(RAISE, check=False, capture_output=True).returncode != 0, reason="nobody may raise a priority here"
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who may become another user")


def told(before: str) -> list[str]:
    """Lines of a process that asks for priority after such code: what it logs, and a later thread's niceness."""
    command = [sys.executable, "-c", GO_FIRST.format(before=before)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()


@needs_the_right
@pytest.mark.parametrize(("niceness", "after"), [(0, NICENESS), (5, NICENESS), (-15, -15)])
def test_priority_is_raised_and_never_lowered(niceness: int, after: int) -> None:
    """Threads that begin later have it too."""
    assert told(f"os.setpriority(os.PRIO_PROCESS, 0, {niceness})") == [str(after)]


@needs_root
def test_without_the_right_it_stays_and_is_told() -> None:
    """A user like any other goes on with the priority that there is."""
    log, niceness = told("os.setpriority(os.PRIO_PROCESS, 0, 3)\nos.setuid(65534)")
    assert log.startswith("the system gives no priority") and niceness == "3"


@needs_the_right
def test_server_and_engine_have_it() -> None:
    """Both processes: pictures that are computed in time must also be sent in time."""
    with started() as (server, _):
        processes = [psutil.Process(server.pid), *family(server.pid)]
        assert len(processes) >= 2 and {process.nice() for process in processes} == {NICENESS}


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_the_caller_keeps_its_priority() -> None:
    """Only the thread that works has the lowest one; results and errors come back."""
    before = niceness()
    assert in_background(niceness) == LOWEST
    assert niceness() == before
    with pytest.raises(ZeroDivisionError):
        in_background(lambda: 1 // 0)

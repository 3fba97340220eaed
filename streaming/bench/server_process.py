"""The measured server: started for the measurement or found at a URL, its processes, and the machine.

Memory is resident set size in MB of 10^6 bytes.
"""

from __future__ import annotations

import asyncio
import glob
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import psutil

from streaming.bench.client import Http, RequestError
from streaming.bench.measure import BenchError

ROOT = Path(__file__).parents[2]
SERVER = (sys.executable, str(ROOT / "server.py"))
READY_LIMIT_S = 600.0
READY_EVERY_S = 0.1
STOP_LIMIT_S = 15.0
PACKAGES = ("torch", "aiortc", "av", "numpy", "fastapi", "uvicorn")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
TRACKER = "multiprocessing.resource_tracker"  # Python's own helper process, which holds nothing of ours


@dataclass(frozen=True, slots=True)
class MeasuredServer:
    """A server that is ready."""

    http: Http
    pid: int | None  # None for one that ran already
    addresses: tuple[str, ...]  # of this machine that can reach it, loopback included; empty when it is elsewhere
    ready_s: float | None  # from its start to ready; None for one that ran already
    ended: Callable[[], Any]  # coroutine function that raises BenchError when the server ends


@asynccontextmanager
async def launch_server(command: Sequence[str]) -> AsyncIterator[MeasuredServer]:
    """Starts the server on a free port with all media on loopback, and stops it afterwards.

    Raises BenchError when it ends by itself or is not ready in time.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    http = Http(f"http://127.0.0.1:{port}")
    argv = (*command, "--port", str(port), "--ice-address", "127.0.0.1")
    # A file, since a pipe that nobody reads would hold the server.
    with tempfile.TemporaryFile() as log:
        began_s = time.monotonic()
        process = await asyncio.create_subprocess_exec(*argv, stdout=log, stderr=log)

        async def ended() -> None:
            status = await process.wait()
            raise BenchError(f"the server ended with status {status}: {_last_line(log)}")

        try:
            await _ready(http, ended)
            yield MeasuredServer(http, process.pid, ("127.0.0.1",), round(time.monotonic() - began_s, 3), ended)
        finally:
            await _stop(process)


@asynccontextmanager
async def find_server(url: str) -> AsyncIterator[MeasuredServer]:
    """A server that runs already. Raises BenchError when there is none, or it is not ready in time."""
    http = Http(url)
    await http.request("GET", "/healthz")
    addresses: tuple[str, ...] = ()
    if urlsplit(url).hostname in LOOPBACK:
        # It may send media from any of this machine's addresses.
        interfaces = psutil.net_if_addrs().values()
        addresses = tuple(entry.address for many in interfaces for entry in many if entry.family == socket.AF_INET)
    # The samples that are taken all the time notice its end.
    await _ready(http, asyncio.Event().wait)
    yield MeasuredServer(http, None, addresses, None, asyncio.Event().wait)


async def _ready(http: Http, ended: Callable[[], Any]) -> None:
    """Asks until it is ready. Raises BenchError when it ends or takes too long."""
    give_up_s = time.monotonic() + READY_LIMIT_S
    while time.monotonic() < give_up_s:
        try:
            await http.request("GET", "/readyz")
            return
        except RequestError as error:
            if error.status not in (None, 503):
                raise
        with suppress(TimeoutError):
            await asyncio.wait_for(ended(), READY_EVERY_S)
    raise BenchError(f"the server was not ready within {READY_LIMIT_S:.0f} s")


async def _stop(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_LIMIT_S)
    except TimeoutError:
        process.kill()
        await process.wait()


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def memory_mb(pid: int) -> dict[str, float]:
    """Memory of the server's process and, together, of its engine's processes; empty when they are gone."""
    with suppress(psutil.NoSuchProcess):
        server = psutil.Process(pid)
        sizes = {"server": server.memory_info().rss / 1e6, "engine": 0.0}
        for child in server.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if not any(TRACKER in word for word in child.cmdline()):
                    sizes["engine"] += child.memory_info().rss / 1e6
        return sizes
    return {}


def machine() -> dict[str, Any]:
    """Device, system, versions and commit, for the conditions of a report."""
    versions = {found.name: found.version for found in distributions() if found.name in PACKAGES}
    device = _named("/proc/cpuinfo", r"model name\s*: (.+)") or platform.machine()
    if not versions.get("torch", "").endswith("+cpu"):
        # With `--device auto` a server computes on the first NVIDIA GPU.
        device = _named("/proc/driver/nvidia/gpus/*/information", r"Model:\s*(.+)") or device
    return {
        "device": device,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(),
        "versions": {"python": platform.python_version()} | versions,
        "commit": _commit(),
    }


def _named(files: str, pattern: str) -> str | None:
    """First match of the pattern's group in files of the system; None if there is none."""
    for path in sorted(glob.glob(files)):
        if found := re.search(f"^{pattern}$", Path(path).read_text(), re.MULTILINE):
            return found[1]
    return None


def _commit() -> str | None:
    """Commit of this source tree, with `-dirty` when files differ from it; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    with suppress(OSError):
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() or None
    return None

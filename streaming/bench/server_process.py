"""The server that is measured: started for the measurement or found at a URL, its processes, and the machine.

Memory is resident set size in MB of 10^6 bytes.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import psutil

from streaming.bench.client import BenchError, Http, RequestError

ROOT = Path(__file__).parent.parent
SERVER = (sys.executable, str(ROOT / "server.py"))
READY_LIMIT_S = 600.0
READY_EVERY_S = 0.1
STOP_LIMIT_S = 15.0
PACKAGES = ("torch", "aiortc", "av", "numpy", "fastapi", "uvicorn")
TRACKER = "multiprocessing.resource_tracker"  # Python's own helper process, which holds nothing of ours


@dataclass(frozen=True, slots=True)
class Subject:
    """A server that is ready."""

    http: Http
    pid: int | None  # of its process on this machine, if there is one
    addresses: tuple[str, ...]  # of this machine that can reach it, loopback included; empty when it is elsewhere
    ready_s: float | None  # from its start to ready; None for one that ran already
    ended: Callable[[], Any]  # coroutine function that raises BenchError when the server ends

    @property
    def here(self) -> bool:
        """Whether it is on this machine, so that clocks can be compared."""
        return bool(self.addresses)


@asynccontextmanager
async def launched(command: Sequence[str]) -> AsyncIterator[Subject]:
    """Starts the server on a free port with all media on loopback, and stops it afterwards.

    Raises BenchError when it ends by itself or is not ready in time.
    """
    port = _free_port()
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
            yield Subject(http, process.pid, ("127.0.0.1",), time.monotonic() - began_s, ended)
        finally:
            await _stop(process)


@asynccontextmanager
async def found(url: str) -> AsyncIterator[Subject]:
    """A server that runs already. Raises BenchError when there is none, or it is not ready in time."""
    http = Http(url)
    await http.request("GET", "/healthz")
    parts = urlsplit(url)
    here = _is_loopback(parts.hostname or "")
    pid = _listener(parts.port or (443 if parts.scheme == "https" else 80)) if here else None
    # Which of them it sends media from is not known.
    addresses = _own_addresses() if here else ()
    # The samples that are taken all the time notice its end.
    await _ready(http, asyncio.Event().wait)
    yield Subject(http, pid, addresses, None, asyncio.Event().wait)


async def _ready(http: Http, ended: Callable[[], Any]) -> None:
    watch = asyncio.create_task(ended())
    try:
        async with asyncio.timeout(READY_LIMIT_S):
            while not watch.done():
                try:
                    await http.request("GET", "/readyz")
                    return
                except RequestError as error:
                    if error.status not in (None, 503):
                        raise
                await asyncio.wait([watch], timeout=READY_EVERY_S)
            await watch
    except TimeoutError as error:
        raise BenchError(f"the server was not ready within {READY_LIMIT_S:.0f} s") from error
    finally:
        watch.cancel()
        await asyncio.wait([watch])


async def _stop(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_LIMIT_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _own_addresses() -> tuple[str, ...]:
    interfaces = psutil.net_if_addrs().values()
    return tuple(entry.address for many in interfaces for entry in many if entry.family == socket.AF_INET)


def _listener(port: int) -> int | None:
    """Process that listens on a TCP port here, when the system tells."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return None
    pids = [entry.pid for entry in connections if entry.status == psutil.CONN_LISTEN and entry.laddr.port == port]
    return pids[0] if pids else None


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
    """What this machine and this installation are."""
    cpu = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "device": _device(cpu),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def _device(cpu: str) -> str:
    """What a server on this machine computes on with `--device auto`."""
    if _version("torch").endswith("+cpu"):
        return cpu
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in path.read_text().splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    return cpu


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _commit() -> str | None:
    """Commit of this source tree, with `-dirty` when files differ from it; None outside a repository."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None

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
from streaming.bench.recording import BenchError

ROOT = Path(__file__).parents[2]
SERVER = (sys.executable, str(ROOT / "server.py"))
READY_LIMIT_S = 600.0
READY_EVERY_S = 0.05
REST_S, REST_LIMIT_S = 6.0, 90.0
REST_SHARE = 0.1  # of a core, which is taken for rest
ANSWERS_LIMIT_S = 30.0
STOP_LIMIT_S = 15.0
CHANNEL = "/channels/main"
PACKAGES = ("torch", "aiortc", "av", "numpy", "fastapi", "uvicorn")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
TRACKER = "multiprocessing.resource_tracker"  # Python's own helper process, which holds nothing of ours


@dataclass(frozen=True, slots=True)
class MeasuredServer:
    """A server that is ready."""

    http: Http
    channel: str | None  # path of its channel; None for a WHEP endpoint of any make, which `http` is then
    pid: int | None  # None for one that ran already
    addresses: tuple[str, ...]  # of this machine that can reach it, loopback included; empty when it is elsewhere
    ready_s: float | None  # from its start to ready; None for one that ran already
    ended: Callable[[], Any]  # coroutine function that raises BenchError when the server ends

    def endpoint(self, codec: str | None, marked: bool = True) -> str:
        """Path of the WHEP endpoint, with numbers and clocks in the pixels where the server can draw them."""
        if self.channel is None:
            return ""
        path = f"/whep/{self.channel.rpartition('/')[2]}?marker={int(marked)}"
        return path + (f"&codec={codec}" if codec else "")


@asynccontextmanager
async def launch_server(
    command: Sequence[str], prefix: Sequence[str] = (), address: str = "127.0.0.1", viewer: str = "127.0.0.1"
) -> AsyncIterator[MeasuredServer]:
    """Starts the server on a free port, with all media between two addresses, and stops it afterwards.

    `prefix` is what stands before its command line, such as words that enter a network. Raises BenchError when it ends
    by itself or is not ready in time.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    http = Http(f"http://{address}:{port}")
    argv = (*prefix, *command, "--host", address, "--port", str(port), "--ice-address", address)
    # A file, since a pipe that nobody reads would hold the server.
    with tempfile.TemporaryFile() as log:
        began_s = time.monotonic()
        process = await asyncio.create_subprocess_exec(*argv, stdout=log, stderr=log)

        async def ended() -> None:
            status = await process.wait()
            raise BenchError(f"the server ended with status {status}: {_last_line(log)}")

        try:
            await _ready(http, ended)
            ready_s = round(time.monotonic() - began_s, 3)
            yield MeasuredServer(http, CHANNEL, process.pid, (viewer,), ready_s, ended)
        finally:
            await _stop(process)


@asynccontextmanager
async def find_server(url: str, token: str | None = None) -> AsyncIterator[MeasuredServer]:
    """A server that runs already. Raises BenchError when there is none, or it is not ready in time."""
    http = Http(url, token)
    await http.request("GET", "/healthz")
    # The samples that are taken all the time notice its end.
    await _ready(http, asyncio.Event().wait)
    yield MeasuredServer(http, CHANNEL, None, _addresses(url), None, asyncio.Event().wait)


@asynccontextmanager
async def find_endpoint(url: str, token: str | None = None) -> AsyncIterator[MeasuredServer]:
    """A WHEP endpoint of any make; what it is turns out when a viewer joins."""
    yield MeasuredServer(Http(url, token), None, None, _addresses(url), None, asyncio.Event().wait)


def _addresses(url: str) -> tuple[str, ...]:
    if urlsplit(url).hostname not in LOOPBACK:
        return ()
    # It may send media from any of this machine's addresses.
    return own_addresses()


def own_addresses() -> tuple[str, ...]:
    """This machine's IPv4 addresses, loopback included."""
    interfaces = psutil.net_if_addrs().values()
    return tuple(entry.address for many in interfaces for entry in many if entry.family == socket.AF_INET)


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


async def at_rest(server: MeasuredServer) -> None:
    """Waits until a server that was started and that nobody watches computes no more: a spare engine is loaded some
    seconds after the first. REST_LIMIT_S at most."""
    give_up_s = time.monotonic() + REST_LIMIT_S
    idle_s = 0.0
    while server.pid is not None and idle_s < REST_S and time.monotonic() < give_up_s:
        before_s = sum(computing_s(server.pid).values())
        await asyncio.sleep(1.0)
        idle_s = idle_s + 1.0 if sum(computing_s(server.pid).values()) - before_s < REST_SHARE else 0.0


async def answers(url: str, process: asyncio.subprocess.Process) -> None:
    """Asks until a server that was started answers, whatever it says but 503. Raises BenchError."""
    ended = asyncio.create_task(process.wait())
    try:
        for _ in range(round(ANSWERS_LIMIT_S / READY_EVERY_S)):
            try:
                await Http(url).request("GET", "")
                return
            except RequestError as error:
                if error.status not in (None, 503):
                    return
            await asyncio.wait([ended], timeout=READY_EVERY_S)
            if ended.done():
                raise BenchError(f"it ended with status {ended.result()}")
    finally:
        ended.cancel()
    raise BenchError(f"it did not answer within {ANSWERS_LIMIT_S:.0f} s")


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
    return _of_processes(pid, lambda process: process.memory_info().rss / 1e6)


def computing_s(pid: int) -> dict[str, float]:
    """Seconds of computing so far, as `memory_mb` has memory."""
    return _of_processes(pid, lambda process: sum(process.cpu_times()[:2]))


def _of_processes(pid: int, value: Callable[[psutil.Process], float]) -> dict[str, float]:
    with suppress(psutil.NoSuchProcess):
        server = psutil.Process(pid)
        values = {"server": value(server), "engine": 0.0}
        for child in server.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if not any(TRACKER in word for word in child.cmdline()):
                    values["engine"] += value(child)
        return values
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

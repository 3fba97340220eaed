"""The server that faults happen to: a process of its own on loopback, with its engines and its state folder."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from streaming.bench.client import Http, RequestError
from streaming.bench.recording import BenchError
from streaming.chaos.memory import Sample
from streaming.chaos.report import Flaw

READY_S = 120.0
TRIES = 20  # to find the same frame on air before and after its count
STOP_S = 10.0
GONE_S = 5.0  # for processes of a server that was killed
_BEGINS = re.compile(r"engine process (\d+)(?: begins$|, the spare, goes on)", re.MULTILINE)
_SHOWN = re.compile(r'^landiff_frames_shown_total\{channel="main"\} (\S+)', re.MULTILINE)
_SPARE = re.compile(r"engine process (\d+) begins as the spare")
_WARM = re.compile(r"engine process (\d+), the spare, is ready")


class Stage:
    """One server after another on one port and one state folder."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.http = Http(f"http://127.0.0.1:{port}")
        self.state, self.log = folder / "state", folder / "server.log"
        where = ("--host", "127.0.0.1", "--port", str(port), "--ice-address", "127.0.0.1", "--state", str(self.state))
        self._argv = (*command, *where)
        self._process: asyncio.subprocess.Process | None = None
        self.signalled_s = 0.0  # when a server was ended last, of the wall clock
        self._shown: tuple[int, int] | None = None  # the last count of frames
        self._from = 0  # bytes of the log that are of servers before

    async def start(self) -> None:
        """Starts a server and waits until it is ready. Raises BenchError."""
        self._shown = None
        self._from = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(*self._argv, stdout=log, stderr=log)
        await self.ready()

    async def ready(self) -> None:
        """Waits until an engine is warm. Raises BenchError when the server ends meanwhile, or after READY_S."""
        give_up_s = time.monotonic() + READY_S
        while time.monotonic() < give_up_s:
            if self._server.returncode is not None:
                raise BenchError(f"the server ended with status {self._server.returncode}: {self._last_line()}")
            with suppress(RequestError):
                await self.http.request("GET", "/readyz")
                return
            await asyncio.sleep(0.1)
        raise BenchError(f"no engine was ready within {READY_S:.0f} s: {self._last_line()}")

    @property
    def pid(self) -> int:
        return self._server.pid

    def engine(self) -> int | None:
        """The process that serves, as the log has it."""
        return self._last(_BEGINS)

    def spare(self) -> int | None:
        """The process that waits, if there is one."""
        pid = self._last(_SPARE)
        return pid if pid != self.engine() else None

    def spare_is_warm(self) -> bool:
        """Whether the process that waits could go on at once."""
        return (pid := self.spare()) is not None and pid == self._last(_WARM)

    async def kill(self) -> list[str]:
        """Kills the server; says what remains of it."""
        return await self._end(self._server.kill)

    async def stop(self) -> list[str]:
        """Ends the server as a signal does; says what remains of it. Idempotent."""
        if self._process is None or self._process.returncode is not None:
            return []
        for pid in (self.engine(), self.spare(), self.pid):
            if pid is not None:
                send(pid, signal.SIGCONT)
        return await self._end(self._server.terminate)

    async def _end(self, end: Callable[[], None]) -> list[str]:
        children = psutil.Process(self.pid).children(recursive=True)
        every = (psutil.Process(self.pid), *children)
        # Of a process with a model that takes a second or more.
        mapped = await asyncio.to_thread(lambda: {path for process in every for path in _shared_memory(process)})
        self.signalled_s = time.time()
        end()
        left = []
        try:
            await asyncio.wait_for(self._server.wait(), STOP_S)
        except TimeoutError:
            left.append(f"the server did not end within {STOP_S:.0f} s")
            self._server.kill()
            await self._server.wait()
        _, alive = await asyncio.to_thread(psutil.wait_procs, children, GONE_S)
        for process in alive:
            process.kill()
        left += [f"process {process.pid} outlived its server" for process in alive]
        there = await asyncio.to_thread(lambda: [path for path in sorted(mapped) if Path(path).exists()])
        return left + [f"{path} is still there" for path in there]

    @staticmethod
    def look(pid: int | None, began_s: float) -> Sample | None:
        """Memory and open files of a process now, in a run that began then; None when it is gone."""
        if pid is None:
            return None
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            memory = process.memory_info()
            # Rings and libraries come and go with engines.
            size_mb = (memory.rss - memory.shared) / 1e6
            return Sample(time.monotonic() - began_s, pid, size_mb, process.num_fds())
        return None

    async def account(self) -> list[Flaw]:
        """Whether the server put as many frames on air as their numbers rose since the last call."""
        then, self._shown = self._shown, await self._count()
        if then is None or self._shown is None:
            return []
        rose, shown = (now - before for now, before in zip(self._shown, then, strict=True))
        return [] if rose == shown else [Flaw("missing", f"{shown} frames went on air, numbers rose by {rose}")]

    async def _count(self) -> tuple[int, int] | None:
        """Number of the frame on air, and how many were; None where they are not to be had."""
        with suppress(RequestError):
            for _ in range(TRIES):
                frame = (await self.report())["frame"]
                _, text = await self.http.request("GET", "/metrics")
                found = _SHOWN.search(text.decode())
                # Unless another came in between.
                if frame is not None and found and frame == (await self.report())["frame"]:
                    return frame, round(float(found[1]))
        return None

    async def report(self) -> dict[str, Any]:
        """Of the channel `main`. Raises RequestError."""
        return await self.http.json("GET", "/channels/main")

    @property
    def _server(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "it was started"
        return self._process

    def _last(self, pattern: re.Pattern[str]) -> int | None:
        found = pattern.findall(self._said())
        return int(found[-1]) if found and psutil.pid_exists(int(found[-1])) else None

    def _last_line(self) -> str:
        """With words in it: traces of groups end with a frame."""
        lines = self._said().splitlines()
        return next((line.strip(" |") for line in reversed(lines) if any(map(str.isalpha, line))), "it said nothing")

    def _said(self) -> str:
        """The log of the server that runs."""
        with self.log.open("rb") as log:
            log.seek(self._from)
            return log.read().decode(errors="replace")


def _shared_memory(process: psutil.Process) -> set[str]:
    """Files of it that other processes can find, and that nobody removes."""
    with suppress(psutil.NoSuchProcess):
        return {part.path for part in process.memory_maps() if part.path.startswith("/dev/shm/")}
    return set()


def send(pid: int, number: signal.Signals) -> bool:
    """Sends a signal; False where the process is gone."""
    try:
        psutil.Process(pid).send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True

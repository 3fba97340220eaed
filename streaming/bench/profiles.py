"""Impaired networks: server and viewer in namespaces of their own, joined by a link (`link.py`) that loses, delays or
stops. Needs root, and TUN devices.
"""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count

from streaming.bench.link import Impairments
from streaming.bench.recording import BenchError
from streaming.bench.server_process import ROOT

SERVER_ADDRESS, VIEWER_ADDRESS = "10.77.7.1", "10.77.7.2"
BLACKHOLE_AFTER_S = 10.0  # of watching
_numbers = count()


@dataclass(frozen=True, slots=True)
class Profile:
    """A network, the same both ways, and for how long it is gone meanwhile."""

    link: Impairments = field(default_factory=Impairments)
    blackhole_s: float = 0.0


PROFILES = {
    "clean": Profile(),
    "loss1": Profile(Impairments(loss=0.01)),
    "loss5": Profile(Impairments(loss=0.05)),
    "cap300k": Profile(Impairments(rate_bps=300_000)),
    "blackhole3s": Profile(blackhole_s=3.0),
    "lan": Profile(Impairments(delay_s=0.001, delay_varies_s=0.0002)),
    "mobile": Profile(Impairments(loss=0.01, delay_s=0.04, delay_varies_s=0.01, rate_bps=4_000_000)),
}


class Wire:
    """Two namespaces, `server` and `viewer`, with a wire between them."""

    def __init__(self) -> None:
        self._name = f"bench{os.getpid()}x{next(_numbers)}"
        self._link: subprocess.Popen[str] | None = None
        self.prefix = ("ip", "netns", "exec", self._name + "server")  # before a command that runs at the server's end

    def make(self, profile: Profile) -> None:
        """Raises BenchError, in one line, for what this machine cannot do."""
        argv = [sys.executable, "-m", "streaming.bench.link"]
        for end, address in (("server", SERVER_ADDRESS), ("viewer", VIEWER_ADDRESS)):
            _run("ip", "netns", "add", self._name + end)
            _run("ip", "-n", self._name + end, "link", "set", "lo", "up")
            argv += [self._name + end, f"{address}/24"]
        pipe = subprocess.PIPE
        self._link = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)
        self._answer()
        self.impair(profile.link)

    def impair(self, link: Impairments) -> None:
        """Changes what the wire does to packets, now. Raises BenchError when it is gone."""
        assert self._link is not None and self._link.stdin is not None, "the wire is made"
        with suppress(BrokenPipeError):
            self._link.stdin.write(json.dumps(dataclasses.asdict(link)) + "\n")
            self._link.stdin.flush()
        self._answer()

    def _answer(self) -> None:
        assert self._link is not None and self._link.stdout is not None and self._link.stderr is not None
        if not self._link.stdout.readline():
            said = self._link.stderr.read().strip().split("\n")[-1]
            raise BenchError(f"there is no link between network namespaces: {said}")

    async def play(self, profile: Profile) -> None:
        """What happens while it is watched, from the first picture on."""
        if not profile.blackhole_s:
            return
        await asyncio.sleep(BLACKHOLE_AFTER_S)
        self.impair(dataclasses.replace(profile.link, dead=True))
        await asyncio.sleep(profile.blackhole_s)
        self.impair(profile.link)

    @contextmanager
    def at_viewer(self) -> Iterator[None]:
        """This thread, and what it starts, is at the viewer's end inside the block."""
        with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{self._name}viewer") as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def close(self) -> None:
        """Takes everything away; idempotent."""
        link, self._link = self._link, None
        if link is not None:
            link.kill()
            # Closes its pipes too.
            link.communicate()
        for end in ("server", "viewer"):
            with suppress(BenchError):
                _run("ip", "netns", "delete", self._name + end)


@contextmanager
def wire(profile: Profile) -> Iterator[Wire]:
    """A wire that is gone after the block. Raises BenchError where this machine cannot make it."""
    made = Wire()
    try:
        made.make(profile)
        yield made
    finally:
        made.close()


def _enter(namespace: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.setns(namespace, 0):
        raise BenchError(f"a namespace cannot be entered: {os.strerror(ctypes.get_errno())}")


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise BenchError(f"{command[0]} is missing: apt-get install iproute2") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().split("\n")[0] or f"status {error.returncode}"
        raise BenchError(f"{' '.join(command[:4])} ...: {said}") from error

"""Impaired networks: server and viewer in namespaces of their own, joined by a wire that loses, delays or stops.

netem delays and limits where the kernel has it. Where it has not, nftables drop what comes in: loss, and what is above
a rate (a policer, without the queue of a real link); delay there is none. Needs root.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count

from streaming.bench.measure import BenchError

SERVER_ADDRESS, VIEWER_ADDRESS = "10.77.7.1", "10.77.7.2"
BURST_BYTES = 16_000  # that a limited link takes at once; nftables add what it takes in a second
BLACKHOLE_AFTER_S = 10.0  # of watching
_numbers = count()


@dataclass(frozen=True, slots=True)
class Profile:
    """A network, both ways: delay of one way, loss, and the rate towards the viewer."""

    delay_ms: float = 0.0
    delay_varies_ms: float = 0.0
    loss: float = 0.0
    rate_kbps: int | None = None
    blackhole_s: float = 0.0


PROFILES = {
    "clean": Profile(),
    "loss1": Profile(loss=0.01),
    "loss5": Profile(loss=0.05),
    "cap300k": Profile(rate_kbps=300),
    "blackhole3s": Profile(blackhole_s=3.0),
    "lan": Profile(delay_ms=1.0, delay_varies_ms=0.2),
    "mobile": Profile(delay_ms=40.0, delay_varies_ms=10.0, loss=0.01, rate_kbps=4000),
}


class Wire:
    """Two namespaces, `server` and `viewer`, with a wire between them."""

    def __init__(self) -> None:
        self._prefix = f"bench{os.getpid()}x{next(_numbers)}"
        self.prefix = ("ip", "netns", "exec", self._prefix + "server")  # before a command that runs at the server's end

    def make(self, profile: Profile) -> None:
        """Raises BenchError, in one line, for what this machine cannot do."""
        server, viewer = self._prefix + "server", self._prefix + "viewer"
        for name in (server, viewer):
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "link", "add", "wire", "netns", server, "type", "veth", "peer", "name", "wire", "netns", viewer)
        for name, address in ((server, SERVER_ADDRESS), (viewer, VIEWER_ADDRESS)):
            _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "wire")
            _run("ip", "-n", name, "link", "set", "wire", "up")
        self._impair(profile)

    def _impair(self, profile: Profile) -> None:
        server, viewer = self._prefix + "server", self._prefix + "viewer"
        if profile.delay_ms:
            words = ["delay", f"{profile.delay_ms}ms", f"{profile.delay_varies_ms}ms"]
            try:
                for name in (server, viewer):
                    _run("tc", "-n", name, "qdisc", "add", "dev", "wire", "root", "netem", *words)
            except BenchError as error:
                raise BenchError(f"delay needs netem, which this kernel lacks ({error})") from error
        rules = []
        if profile.loss:
            rules.append(f"meta l4proto udp numgen random mod 10000 < {round(profile.loss * 10000)} drop")
        if profile.rate_kbps:
            limit = f"{profile.rate_kbps * 125} bytes/second burst {BURST_BYTES} bytes"
            rules.append(f"meta l4proto udp limit rate over {limit} drop")
        if rules:
            self._drop(viewer, *rules)
        if profile.loss:
            self._drop(server, rules[0])

    def _drop(self, name: str, *rules: str) -> None:
        chain = f"chain drops {{ type filter hook input priority 0; {'; '.join(rules)}; }}"
        _run("ip", "netns", "exec", name, "nft", f"table inet bench {{ {chain}; }}")

    async def play(self, profile: Profile) -> None:
        """What happens while it is watched, from the first picture on."""
        if not profile.blackhole_s:
            return
        await asyncio.sleep(BLACKHOLE_AFTER_S)
        for end in ("server", "viewer"):
            self._drop(self._prefix + end, "meta l4proto udp drop")
        try:
            await asyncio.sleep(profile.blackhole_s)
        finally:
            for end in ("server", "viewer"):
                _run("ip", "netns", "exec", self._prefix + end, "nft", "delete table inet bench")

    @contextmanager
    def at_viewer(self) -> Iterator[None]:
        """This thread, and what it starts, is at the viewer's end inside the block."""
        with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{self._prefix}viewer") as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def close(self) -> None:
        """Takes everything away; idempotent."""
        for end in ("server", "viewer"):
            with suppress(BenchError):
                _run("ip", "netns", "delete", self._prefix + end)


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
        raise BenchError(f"{command[0]} is missing: apt-get install iproute2 nftables") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().split("\n")[0] or f"status {error.returncode}"
        raise BenchError(f"{' '.join(command[:4])} ...: {said}") from error

"""Networks for tests: namespaces with links, NAT and firewalls between them, and coturn. Nothing leaves them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count

_numbers = count()


def missing() -> str | None:
    """Why namespaces cannot be made here; None if they can."""
    for tool in ("ip", "nft"):
        if shutil.which(tool) is None:
            return f"{tool} is missing: apt-get install iproute2 nftables"
    try:
        with networks() as probe:
            probe.add("probe")
            probe.nft("probe", "table ip nat { chain post { type nat hook postrouting priority 100; masquerade; }; }")
    except subprocess.CalledProcessError as error:
        return f"namespaces cannot be made: {error.stderr.strip()}"
    return None


class Networks:
    """Namespaces by name; processes started in them end with them."""

    def __init__(self) -> None:
        self._prefix = f"ll{os.getpid()}x{next(_numbers)}"
        self._links: dict[str, int] = {}
        self._processes: list[subprocess.Popen[str]] = []

    def add(self, name: str) -> None:
        """A namespace in which only loopback is up."""
        _run("ip", "netns", "add", self._prefix + name)
        self._links[name] = 0
        self.run(name, "ip", "link", "set", "lo", "up")

    def router(self, name: str) -> None:
        """A namespace that forwards."""
        self.add(name)
        self.run(name, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")

    def switch(self, name: str) -> None:
        """A namespace that joins its links, like one wire."""
        self.add(name)
        self.run(name, "ip", "link", "add", "bridge", "type", "bridge")
        self.run(name, "ip", "link", "set", "bridge", "up")

    def plug(self, name: str, switch: str, address: str, gateway: str = "") -> None:
        """A link from a namespace, which gets the address there (with its prefix), to a switch."""
        own, other = self._pair(name, switch)
        self.run(name, "ip", "address", "add", address, "dev", own)
        self.run(switch, "ip", "link", "set", other, "master", "bridge")
        if gateway:
            self.run(name, "ip", "route", "add", "default", "via", gateway)

    def link(self, inner: str, address: str, router: str, gateway: str) -> None:
        """A link from a namespace to its router."""
        own, other = self._pair(inner, router)
        self.run(inner, "ip", "address", "add", address, "dev", own)
        self.run(router, "ip", "address", "add", gateway, "dev", other)
        self.run(inner, "ip", "route", "add", "default", "via", gateway.partition("/")[0])

    def nft(self, name: str, rules: str) -> None:
        """Adds rules of nftables to a namespace."""
        self.run(name, "nft", rules)

    def inside(self, name: str) -> tuple[str, ...]:
        """Words before a command that make it run in a namespace."""
        return ("ip", "netns", "exec", self._prefix + name)

    def run(self, name: str, *command: str) -> str:
        """What a command prints. Raises CalledProcessError."""
        return _run(*self.inside(name), *command)

    def start(self, name: str, *command: str) -> subprocess.Popen[str]:
        """A process in a namespace, with its output in a pipe."""
        process = subprocess.Popen(
            [*self.inside(name), *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._processes.append(process)
        return process

    def close(self) -> None:
        """Ends processes and removes the namespaces."""
        for process in self._processes:
            end(process)
        for name in self._links:
            subprocess.run(["ip", "netns", "del", self._prefix + name], capture_output=True)

    def _pair(self, first: str, second: str) -> tuple[str, str]:
        names = []
        for name in (first, second):
            names.append(f"eth{self._links[name]}")
            self._links[name] += 1
        peer = ("peer", "name", names[1], "netns", self._prefix + second)
        self.run(first, "ip", "link", "add", names[0], "type", "veth", *peer)
        for name, device in zip((first, second), names, strict=True):
            self.run(name, "ip", "link", "set", device, "up")
        return names[0], names[1]


@contextmanager
def networks() -> Iterator[Networks]:
    """Networks that are gone after the block."""
    made = Networks()
    try:
        yield made
    finally:
        made.close()


def turn_command(address: str, port: int, *options: str) -> Sequence[str]:
    """coturn at one address, without TLS unless the options give a certificate."""
    return (
        "turnserver", "-n", "--listening-ip", address, "--relay-ip", address, "--listening-port", str(port),
        "--min-port", "49160", "--max-port", "49260", "--realm", "test", "--no-cli", "--log-file", "stdout",
        "--no-dtls", "--simple-log", "--allow-loopback-peers", "--pidfile", "/dev/null", *options,
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str], words: str, limit_s: float = 20.0) -> str:
    """The first line of a process that holds the words."""
    assert process.stdout is not None
    give_up_s = time.monotonic() + limit_s
    said = []
    for line in process.stdout:
        said.append(line)
        if words in line:
            return line
        assert time.monotonic() < give_up_s, said
    raise AssertionError(f"it ended without {words!r}: {''.join(said)}")


def wait_for_port(made: Networks, name: str, port: int, limit_s: float = 10.0) -> None:
    """Waits until somebody in a namespace listens for TCP connections at a port."""
    give_up_s = time.monotonic() + limit_s
    while not re.search(f":{port:04X} 0+:0000 0A", made.run(name, "cat", "/proc/net/tcp")):
        assert time.monotonic() < give_up_s, f"nobody listens at port {port}"
        time.sleep(0.05)


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout

"""`python -m streaming.bench.link NAMESPACE ADDRESS/PREFIX NAMESPACE ADDRESS/PREFIX`: a link between two network
namespaces that loses, delays and holds back packets. Kernels often lack netem; this needs TUN devices alone.

It makes a TUN device in each namespace and carries IP packets between them until its input ends. A line of JSON on its
input changes the impairments; it answers each with a line of what it has carried until then.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import random
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

TUN = "/dev/net/tun"
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
MTU = 1500
APART_S = 1e-6  # between two packets


@dataclass(slots=True)
class Impairments:
    """Of both directions."""

    loss: float = 0.0  # share of packets
    delay_s: float = 0.0
    delay_varies_s: float = 0.0  # up or down from that; packets keep their order
    rate_bps: float = 0.0  # 0 for no limit
    queue_s: float = 0.5  # that packets may wait for the rate; then they are lost
    dead: bool = False


@dataclass(slots=True)
class Carried:
    """What a direction let through, and what it lost."""

    packets: int = 0
    octets: int = 0
    lost: int = 0


class Direction:
    """One direction of the link, from a TUN device to another."""

    def __init__(self, source: int, target: int, impairments: Impairments, seed: int) -> None:
        self.carried = Carried()
        self._source, self._target, self._impairments = source, target, impairments
        self._random = random.Random(seed)
        self._loop = asyncio.get_running_loop()
        self._free_s = 0.0  # when the last packet that was taken has left
        self._last_s = 0.0  # when it arrives
        self._loop.add_reader(source, self._take)

    def _take(self) -> None:
        packet = os.read(self._source, MTU + 100)
        link, now_s = self._impairments, self._loop.time()
        waits_s = max(0.0, self._free_s - now_s) if link.rate_bps else 0.0
        if link.dead or self._random.random() < link.loss or waits_s > link.queue_s:
            self.carried.lost += 1
            return
        if link.rate_bps:
            waits_s += len(packet) * 8 / link.rate_bps
            self._free_s = now_s + waits_s
        waits_s += max(0.0, link.delay_s + self._random.uniform(-1, 1) * link.delay_varies_s)
        if waits_s:
            # Timers of the same time come in any order.
            self._last_s = max(self._last_s + APART_S, now_s + waits_s)
            self._loop.call_at(self._last_s, self._put, packet)
        else:
            self._put(packet)

    def _put(self, packet: bytes) -> None:
        try:
            os.write(self._target, packet)
        except BlockingIOError:
            # As anywhere on the way: what a full queue cannot take is lost.
            self.carried.lost += 1
        else:
            self.carried.packets += 1
            self.carried.octets += len(packet)


def open_tun(namespace: str, address: str, number: int) -> int:
    """A TUN device in a namespace; it goes with its file descriptor. Raises OSError or CalledProcessError."""
    device = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    name = f"t{os.getpid()}n{number}"
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    inside = ["ip", "-n", namespace]
    for command in (
        ["ip", "link", "set", name, "netns", namespace],
        [*inside, "address", "add", address, "dev", name],
        [*inside, "link", "set", name, "mtu", str(MTU), "up"],
    ):
        subprocess.run(command, check=True)
    return device


async def carry(first: tuple[str, str], second: tuple[str, str]) -> None:
    """Carries between two namespaces, each with its address, until the input ends."""
    one, other = open_tun(*first, 0), open_tun(*second, 1)
    impairments = Impairments()
    directions = [Direction(one, other, impairments, 1), Direction(other, one, impairments, 2)]
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    _say("ready")
    while line := await commands.readline():
        for name, value in json.loads(line).items():
            setattr(impairments, name, value)
        _say(json.dumps([asdict(way.carried) for way in directions]))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str]) -> int:
    """Runs the link; returns the exit status: 1, and a line of why, where no device can be made."""
    try:
        asyncio.run(carry((argv[0], argv[1]), (argv[2], argv[3])))
    except (OSError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

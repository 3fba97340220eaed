"""A link between two network namespaces that loses, delays and holds back packets, where the kernel lacks netem.

`python tests/impaired_link.py NAMESPACE ADDRESS/PREFIX NAMESPACE ADDRESS/PREFIX` makes a TUN device in each namespace
and carries IP packets between them until its input ends. A line of JSON on its input changes the impairments; it
answers each with a line of what it has carried.
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
from dataclasses import dataclass

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
MTU = 1500


@dataclass(slots=True)
class Impairments:
    """Of both directions."""

    loss: float = 0.0  # share of packets
    delay_s: float = 0.0
    rate_bps: float = 0.0  # 0 for no limit
    queue_s: float = 0.5  # that packets may wait for the rate; then they are lost
    dead: bool = False


@dataclass(slots=True)
class Carried:
    packets: int = 0
    octets: int = 0
    lost: int = 0


class Direction:
    """One direction of the link."""

    def __init__(self, source: int, target: int, impairments: Impairments, seed: int) -> None:
        self.carried = Carried()
        self._source, self._target, self._impairments = source, target, impairments
        self._random = random.Random(seed)
        self._loop = asyncio.get_running_loop()
        self._free_s = 0.0  # when the last packet that was taken has left
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
        self.carried.packets += 1
        self.carried.octets += len(packet)
        if waits_s + link.delay_s:
            self._loop.call_at(now_s + waits_s + link.delay_s, os.write, self._target, packet)
        else:
            os.write(self._target, packet)


def open_tun(namespace: str, address: str, number: int) -> int:
    """A TUN device in a namespace; it goes with its file descriptor."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
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
    one, other = open_tun(*first, 0), open_tun(*second, 1)
    impairments = Impairments()
    directions = [Direction(one, other, impairments, 1), Direction(other, one, impairments, 2)]
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    print("ready", flush=True)  # noqa: T201
    while line := await commands.readline():
        for name, value in json.loads(line).items():
            setattr(impairments, name, value)
        carried = [
            {"packets": way.carried.packets, "octets": way.carried.octets, "lost": way.carried.lost}
            for way in directions
        ]
        print(json.dumps(carried), flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(carry((sys.argv[1], sys.argv[2]), (sys.argv[3], sys.argv[4])))

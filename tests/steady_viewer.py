"""`python tests/steady_viewer.py URL [codec]`: an aiortc viewer that notes every frame until its input ends.

Prints `watching` with its first picture and at the end one line of JSON: `frames`, each the frame's time in the video,
when its last packet reached this machine by the kernel's clock, and when it was decoded, all in seconds; and how many
packets were lost. What comes late is the server's or the network's doing, what is decoded later than that the viewer's.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
import threading
import time

import httpx
from fakes import Watcher

from engine.wire.priority import go_first

ETH_P_IP, SO_TIMESTAMPNS = 0x0800, 35  # linux/if_ether.h, asm-generic/socket.h; Python names neither
RTCP_TYPES = range(64, 96)  # of a packet's second octet without its first bit (RFC 5761)


class Arrivals:
    """When the last packet of each frame came, by the kernel's time stamps; other threads' work does not delay them."""

    def __init__(self) -> None:
        """Raises PermissionError without the right to see packets."""
        self.by_rtp_time: dict[int, float] = {}  # monotonic time, s
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._offset_s = time.monotonic() - time.time()  # the kernel's stamps are of the wall clock
        threading.Thread(target=self._note, daemon=True).start()

    def _note(self) -> None:
        while True:
            packet, ((_, _, stamp),), _, address = self._socket.recvmsg(64, socket.CMSG_SPACE(16))
            rtp = packet[4 * (packet[0] & 15) + 8 :]  # behind the headers of IP and UDP
            incoming = address[2] != socket.PACKET_OUTGOING and packet[9] == socket.IPPROTO_UDP
            if incoming and len(rtp) >= 12 and rtp[0] >> 6 == 2 and rtp[1] & 127 not in RTCP_TYPES:
                seconds, nanoseconds = struct.unpack("qq", stamp)
                (rtp_time,) = struct.unpack_from(">I", rtp, 4)
                self.by_rtp_time[rtp_time] = seconds + nanoseconds / 1e9 + self._offset_s


class Noter(Watcher):
    """A viewer that notes when each frame was decoded."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        super().__init__(http)
        self.noted: list[tuple[int, float]] = []

    def note(self) -> None:
        self.noted.append((self.last.pts, time.monotonic()))


async def watch(url: str, query: str) -> None:
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    arrivals = Arrivals()
    async with httpx.AsyncClient(base_url=url, timeout=10) as http:
        watcher = Noter(http)
        await watcher.join(query)
        await watcher.received(1)
        print("watching", flush=True)  # noqa: T201
        ended = asyncio.create_task(commands.read())
        while not ended.done():
            await watcher.received(1, limit_s=60)
            watcher.note()
        stats = await watcher.peer.getReceivers()[0].getStats()
        (lost,) = [one.packetsLost for one in stats.values() if one.type == "inbound-rtp"]
        await watcher.close()
    # aiortc counts a video's time from its first frame.
    first = next(iter(arrivals.by_rtp_time))
    frames = [
        (pts / 90_000, arrivals.by_rtp_time[(first + pts) % 2**32], decoded_s) for pts, decoded_s in watcher.noted
    ]
    print(json.dumps({"frames": frames, "packets_lost": lost}), flush=True)  # noqa: T201


if __name__ == "__main__":
    go_first()  # what it notes late would be the browser's computing, not the network's
    asyncio.run(watch(sys.argv[1], f"?codec={sys.argv[2]}" if len(sys.argv) > 2 else ""))

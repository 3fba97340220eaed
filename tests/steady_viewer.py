"""`python tests/steady_viewer.py URL [codec]`: an aiortc viewer that notes every frame until its input ends.

Prints `watching` with its first picture and at the end one line of JSON: `frames` as pairs of the frame's time in the
video and the time when it was decoded, in seconds, and how many packets were lost.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import httpx
from fakes import Watcher

from engine.priority import go_first


class Noter(Watcher):
    """A viewer that notes when each frame was decoded."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        super().__init__(http)
        self.noted: list[tuple[float, float]] = []

    def note(self) -> None:
        self.noted.append((self.last.pts / 90_000, time.monotonic()))


async def watch(url: str, query: str) -> None:
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
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
    print(json.dumps({"frames": watcher.noted, "packets_lost": lost}), flush=True)  # noqa: T201


if __name__ == "__main__":
    go_first()  # what it notes late would be the browser's computing, not the network's
    asyncio.run(watch(sys.argv[1], f"?codec={sys.argv[2]}" if len(sys.argv) > 2 else ""))

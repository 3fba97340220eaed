"""`python tests/ray_figures.py [ROUNDS]`: frames a second of an engine of this machine and of one on a node, in turn.

Both are the same process with preset `mini` and 4 steps, asked for frames as fast as it makes them. On a machine where
Ray runs for nobody else.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import server
from engine.wire.messages import ChannelMessage, ChunkDone, FramesReady, Shown
from engine.wire.settings import ChannelSettings, EngineSettings
from streaming.engines.link import EngineLink
from streaming.engines.pool import EnginePool
from streaming.engines.process import LocalEngines, SupervisorConfig
from streaming.engines.ray_cluster import RayCluster
from streaming.engines.supervisor import Engines, Supervisor, supervise
from streaming.media.metrics import Metrics

WARM, CHUNKS = 2, 12  # chunks before those that are timed, and those
CONFIG = SupervisorConfig()


class Counting:
    """A channel that gives every frame back at once."""

    def __init__(self, engine: EngineLink) -> None:
        self.engine, self.id, self.area, self.paused, self.load = engine, "main", 0, False, None
        self.frames = 0
        self.chunks: list[tuple[float, int]] = []  # when each was done, and the frames until then

    def settings(self) -> ChannelSettings:
        return ChannelSettings(server.PROMPT, 1, 4)

    def receive(self, message: ChannelMessage) -> None:
        if isinstance(message, FramesReady):
            self.frames += len(self.engine.frames(message).copy())
            self.engine.tell(self, Shown(self.id, self.frames, (message.slot,)))
        if isinstance(message, ChunkDone):
            self.chunks.append((time.monotonic(), self.frames))

    def engine_changed(self) -> None:
        pass

    def interrupted(self, released: bool = False) -> None:
        pass


async def rate(place: Engines) -> float:
    """Frames a second, behind the first chunks."""
    metrics = Metrics()
    pool = EnginePool(EngineSettings("mini", device="cpu"), metrics)
    channel = Counting(pool.links[0])
    pool.links[0].open(channel)
    task = asyncio.create_task(supervise(place, pool, lambda link: Supervisor(place, link, pool, metrics, CONFIG)))
    while len(channel.chunks) <= WARM + CHUNKS:  # noqa: ASYNC110 - the channel tells nobody
        await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.wait([task])
    await place.close()
    (began_s, before), (ended_s, frames) = channel.chunks[WARM], channel.chunks[WARM + CHUNKS]
    return (frames - before) / (ended_s - began_s)


async def on_node(cluster: Any) -> RayCluster:
    place = RayCluster("server:run_engine", "cpu", CONFIG, 1)
    await place.connect(cluster.address)
    return place


async def main(rounds: int) -> None:
    os.environ["HOME"] = tempfile.mkdtemp()
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    here, there = [], []
    for _ in range(rounds):
        here.append(await rate(LocalEngines(server.run_engine, CONFIG)))
        there.append(await rate(await on_node(cluster)))
        memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        sys.stdout.write(f"here {here[-1]:.1f}, there {there[-1]:.1f} frames a second; {memory_mb:.0f} MB at most\n")
    sys.stdout.write(f"median of the quotients: {median(b / a for a, b in zip(here, there, strict=True)):.3f}\n")
    cluster.shutdown()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3))

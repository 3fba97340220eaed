"""Figures of engines of preset `mini` on the nodes of a Ray cluster; on a machine where Ray runs for nobody else.

`python tests/ray_figures.py rate`: frames a second of an engine of this machine and of one on a node, in turn. Both are
the same process with 4 steps, asked for frames of two channels as fast as it makes them: it works for one while what it
made for the other is on its way. `--apart` gives the engine a core, with or without a node around it, and the server
and the cluster's head another one, as on two machines.
`python tests/ray_figures.py deaths`: a server with four channels on two of three nodes, each with a viewer that checks
every frame. One of the two is killed, then the other: how long until all channels have new frames.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import server
from engine.wire.messages import ChannelMessage, ChunkDone, FramesReady, Shown
from engine.wire.ring import RingWriter
from engine.wire.settings import ChannelSettings, EngineSettings
from engine.wire.state_memory import StateMemory
from streaming.bench.server_process import ROOT, SERVER
from streaming.chaos.stage import Stage
from streaming.chaos.witness import Witness
from streaming.engines.link import EngineLink
from streaming.engines.pool import EnginePool
from streaming.engines.process import LocalEngines, SupervisorConfig
from streaming.engines.ray_cluster import RayCluster
from streaming.engines.supervisor import Engines, Supervisor, supervise
from streaming.media.metrics import Metrics

WARM, CHUNKS = 4, 60  # chunks before those that are timed, and those
CHANNELS = ("main", "ball", "fish", "sailboat")
SETTLED = 48  # frames of each viewer before and behind a death
LIMIT_S = 120.0
NODE_CORE, SERVER_CORE = 0, 1  # of `--apart`
CONFIG = SupervisorConfig()


class Counting:
    """A channel that gives every frame back at once."""

    def __init__(self, engine: EngineLink, number: int, chunks: list[tuple[float, int]]) -> None:
        """`chunks` gets when each one was done, and its frames; channels may share it."""
        self.engine, self.id, self.area, self.paused, self.load = engine, CHANNELS[number], number, False, None
        self.frames = self._counted = 0
        self._chunks = chunks

    def settings(self) -> ChannelSettings:
        return ChannelSettings(server.PROMPT, 1, 4)

    def receive(self, message: ChannelMessage) -> None:
        if isinstance(message, FramesReady):
            self.frames += len(self.engine.frames(message).copy())
            self.engine.tell(self, Shown(self.id, self.frames, (message.slot,)))
        if isinstance(message, ChunkDone):
            self._chunks.append((time.monotonic(), self.frames - self._counted))
            self._counted = self.frames

    def engine_changed(self) -> None:
        pass

    def interrupted(self, released: bool = False, killed: bool = False) -> None:
        pass


async def rate(place: Engines) -> float:
    """Frames a second, behind the first chunks."""
    metrics = Metrics()
    pool = EnginePool(EngineSettings("mini", device="cpu"), metrics)
    chunks: list[tuple[float, int]] = []
    for number in range(2):
        pool.links[0].open(Counting(pool.links[0], number, chunks))
    task = asyncio.create_task(supervise(place, pool, lambda link: Supervisor(place, link, pool, metrics, CONFIG)))
    while len(chunks) <= WARM + CHUNKS:  # noqa: ASYNC110 - the channels tell nobody
        await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.wait([task])
    await place.close()
    timed = chunks[WARM : WARM + CHUNKS + 1]
    return sum(frames for _, frames in timed[1:]) / (timed[-1][0] - timed[0][0])


def stay_on(core: int) -> None:
    """This process, with those that it begins from now on, on that core."""
    for task in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(task), {core})


def run_engine_apart(
    settings: EngineSettings, ring: RingWriter, control: connection.Connection, memory: StateMemory
) -> None:
    """Runs in an engine process of this machine, on the core that a node would have."""
    stay_on(NODE_CORE)
    server.run_engine(settings, ring, control, memory)


async def on_node(cluster: Any) -> RayCluster:
    place = RayCluster("server:run_engine", "cpu", CONFIG, 1)
    await place.connect(cluster.address)
    return place


@contextmanager
def nodes(count: int, apart: bool) -> Iterator[tuple[Any, list[Any]]]:
    """A cluster whose head has room for no engine, and so many nodes with room for one, on another core if `apart`."""
    with tempfile.TemporaryDirectory() as home:
        # Ray writes there; nodes have no other way to find the engine's code.
        os.environ |= {"HOME": home, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
        from ray.cluster_utils import Cluster

        if apart:
            stay_on(SERVER_CORE)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        if apart:
            stay_on(NODE_CORE)
        try:
            yield cluster, [cluster.add_node(num_cpus=1) for _ in range(count)]
        finally:
            cluster.shutdown()


async def rates(cluster: Any, rounds: int, apart: bool) -> None:
    """Prints both of each round, and the median of their quotients."""
    here, there = [], []
    if apart:
        stay_on(SERVER_CORE)
    for _ in range(rounds):
        here.append(await rate(LocalEngines(run_engine_apart if apart else server.run_engine, CONFIG)))
        there.append(await rate(await on_node(cluster)))
        memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        sys.stdout.write(f"here {here[-1]:.1f}, there {there[-1]:.1f} frames a second; {memory_mb:.0f} MB at most\n")
    sys.stdout.write(f"median of the quotients: {median(b / a for a, b in zip(here, there, strict=True)):.3f}\n")


async def deaths(cluster: Any, all_nodes: Sequence[Any]) -> None:
    """Prints what became of the channels behind each death, and what their viewers saw."""
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage((*SERVER, "--ray", cluster.address, "--engines", "2"), Path(folder))
        tasks: list[asyncio.Task[None]] = []
        try:
            await stage.start()
            await _said(stage, "is ready", 2)
            for name in CHANNELS[1:]:
                await stage.http.json("POST", "/channels", {"id": name, "prompt": f"a {name} drifts to the left"})
            witnesses = [Witness(stage.http, name) for name in CHANNELS]
            tasks = [asyncio.create_task(witness.run()) for witness in witnesses]
            await _until(lambda: all(witness.frames > SETTLED for witness in witnesses))
            first, second = re.findall(r"\((\w{6})\) begins", stage.log.read_text())
            for id_ in (first, second):
                (node,) = (one for one in all_nodes if one.node_id.startswith(id_))
                before, ready = await _made(stage), stage.log.read_text().count("is ready")
                killed_s = time.monotonic()
                await asyncio.to_thread(cluster.remove_node, node, allow_graceful=False)
                while any(made <= before[name] for name, made in (await _made(stage)).items()):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
                sys.stdout.write(f"all channels had new frames {time.monotonic() - killed_s:.1f} s after the kill\n")
                settled = [witness.frames + SETTLED for witness in witnesses]
                await _until(
                    lambda settled=settled: all(one.frames > n for one, n in zip(witnesses, settled, strict=True))
                )
                if id_ == first:
                    await _said(stage, "is ready", ready + 1)
            for witness in witnesses:
                sys.stdout.write(
                    f"{witness.channel}: {witness.frames} frames, {witness.repeats} repeats, {witness.lost} lost on "
                    f"the way, {witness.longest_gap_s:.2f} s at most between two; {witness.flaws or 'all right'}\n"
                )
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            sys.stdout.write("".join(f"left: {words}\n" for words in await stage.stop()))


async def _made(stage: Stage) -> dict[str, int]:
    """Frames that are there, by channel."""
    reports = [await stage.http.json("GET", f"/channels/{name}") for name in CHANNELS]
    return {one["id"]: int(one["frame"]) + round(one["buffered_s"] * one["fps"]) for one in reports}


async def _said(stage: Stage, words: str, times: int) -> None:
    await _until(lambda: stage.log.read_text().count(words) >= times)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/ray_figures.py", description=__doc__)
    parser.add_argument("what", choices=("rate", "deaths"))
    parser.add_argument("--rounds", type=int, default=3, help="of `rate` (default: 3)")
    parser.add_argument("--apart", action="store_true", help="of `rate`: the node and the server have a core each")
    arguments = parser.parse_args()
    with nodes(1 if arguments.what == "rate" else 3, arguments.apart) as (cluster, all_nodes):
        if arguments.what == "rate":
            asyncio.run(rates(cluster, arguments.rounds, arguments.apart))
        else:
            asyncio.run(deaths(cluster, all_nodes))


if __name__ == "__main__":
    main()

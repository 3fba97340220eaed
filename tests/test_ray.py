"""Engines on the nodes of a real Ray cluster on this machine: a head without an engine, and nodes that come and go.

With `-s` it prints how long viewers waited for a new frame when the node of their channel was killed.
"""

import asyncio
import logging
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from fakes import MISSING, Serving, Watcher, fake_engine, serving
from tiny import tiny_config, write_weights

import server
from engine.live.generator import Generator
from engine.live.offline import generate_frames
from engine.loading.model import load
from engine.loading.options import pick_device, pick_dtype
from engine.runtime.threads import computing_with
from engine.wire.messages import ChannelMessage, ChannelOpened, FramesReady, Heartbeat, OpenChannel, Shown
from engine.wire.settings import ChannelSettings, ChannelStart, EngineSettings
from streaming.engines import ray_node
from streaming.engines.link import EngineLink, EngineStatus
from streaming.engines.pool import EnginePool
from streaming.engines.process import SupervisorConfig
from streaming.engines.ray_cluster import RayCluster, check_address
from streaming.engines.ray_node import NodeEngine
from streaming.engines.supervisor import EngineError, Supervisor, supervise
from streaming.media.metrics import Metrics

# Warnings of Ray's own are not ours.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(180), pytest.mark.filterwarnings("default")]
CONFIG = SupervisorConfig(replaced_s=2.5)
SETTINGS = ChannelSettings("a red ball", 3, 2)
FRAMES = 100

Add = Callable[[], Any]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster whose head has room for no engine."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        # Ray writes there.
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Nodes find the engines of the tests.
        tests = Path(__file__).parent
        patch.setenv("PYTHONPATH", f"{tests.parent}:{tests}")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        yield made
        made.shutdown()


@pytest.fixture
def add_node(cluster: Any) -> Iterator[Add]:
    """Adds a node with room for an engine; those that are left go with the test."""
    added = []

    def add() -> Any:
        added.append(cluster.add_node(num_cpus=1))
        return added[-1]

    yield add
    for one in added:
        if one in cluster.worker_nodes:
            cluster.remove_node(one)


async def until(condition: Callable[[], Any], limit_s: float = 60.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.02)


async def channels_of(running: Serving) -> dict[str, dict[str, Any]]:
    return {one["id"]: one for one in (await running.http.get("/channels")).json()}


def made(report: dict[str, Any]) -> int:
    """Frames that are there of a channel."""
    return int(report["frame"]) + round(report["buffered_s"] * report["fps"])


async def test_viewers_outlive_a_node(
    cluster: Any, add_node: Add, loopback: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Four channels on two of three nodes, each watched: when either is killed all go on with the next frame."""
    caplog.set_level(logging.INFO)
    nodes = [add_node(), add_node(), add_node()]
    async with serving("--ray", cluster.address, "--engines", "2") as running:
        names = ["main", "a", "b", "c"]
        await until(lambda: caplog.text.count("is ready") == 2)
        for name in names[1:]:
            reply = await running.http.post("/channels", json={"id": name, "prompt": "a fish"})
            assert reply.status_code == 201, reply.text
        watchers = [Watcher(running.http) for _ in names]
        try:
            for watcher, name in zip(watchers, names, strict=True):
                await watcher.join(endpoint=f"/whep/{name}")
                await watcher.received(8)
            first, second = re.findall(r"\((\w{6})\) begins", caplog.text)
            for on in (first, second):
                (node,) = (one for one in nodes if one.node_id.startswith(on))
                before = {name: made(one) for name, one in (await channels_of(running)).items()}
                ready, killed_s = caplog.text.count("is ready"), time.monotonic()
                await asyncio.to_thread(cluster.remove_node, node, allow_graceful=False)
                async with asyncio.timeout(20):
                    # HTTP has no event for it.
                    while not all(  # noqa: ASYNC110
                        made(one) > before[name] and one["state"] == "live"
                        for name, one in (await channels_of(running)).items()
                    ):
                        await asyncio.sleep(0.05)
                sys.stdout.write(f"all channels went on {time.monotonic() - killed_s:.1f} s after the kill\n")
                await asyncio.gather(*(watcher.received(50, 20) for watcher in watchers))
                if on == first:
                    # On the third node; there is none for the next one.
                    await until(lambda ready=ready: caplog.text.count("is ready") > ready)
            for watcher in watchers:
                numbers = [int(frame.to_ndarray()[127, 191]) for frame in watcher.frames]
                assert len(set(numbers)) > 20
        finally:
            for watcher in watchers:
                await watcher.close()


class Recording:
    """A channel that takes frames as fast as an engine makes them, and keeps them."""

    def __init__(self, engine: EngineLink) -> None:
        self.engine, self.id, self.area, self.paused, self.load = engine, "main", 4, False, None
        self.video: list[npt.NDArray[np.uint8]] = []
        self.chunk = 0
        self.went_on: list[bool] = []

    def settings(self) -> ChannelSettings:
        start = ChannelStart(len(self.video), self.chunk, None, bool(self.went_on))
        return ChannelSettings(SETTINGS.prompt, SETTINGS.seed, SETTINGS.steps, start)

    def receive(self, message: ChannelMessage) -> None:
        if isinstance(message, ChannelOpened):
            self.went_on.append(message.went_on)
        if isinstance(message, FramesReady):
            passed = len(self.video) - message.index
            assert passed >= 0
            self.video += list(self.engine.frames(message).copy())[passed:]
            self.chunk = message.chunk + 1
            self.engine.tell(self, Shown(self.id, len(self.video), (message.slot,)))

    def engine_changed(self) -> None:
        pass

    def interrupted(self, released: bool = False, killed: bool = False) -> None:
        pass


@asynccontextmanager
async def pool_on(
    cluster: Any, settings: EngineSettings, target: str, engines: int, code: str | None = None
) -> AsyncIterator[tuple[EnginePool, RayCluster]]:
    """A pool of engines on the cluster, supervised."""
    metrics = Metrics()
    place = RayCluster(target, "cpu", CONFIG, engines)
    await place.connect(cluster.address)
    place._code = code or place._code
    pool = EnginePool(settings, metrics, engines)
    task = asyncio.create_task(supervise(place, pool, lambda link: Supervisor(place, link, pool, metrics, CONFIG)))
    try:
        yield pool, place
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, EngineError):
            await task
        await place.close()


async def test_a_video_is_the_same_across_nodes(cluster: Any, add_node: Add, tmp_path: Path) -> None:
    """A node drains, and another dies, in the middle of a chunk: the next one makes the frames that would have come."""
    write_weights(tmp_path)
    nodes = [add_node(), add_node(), add_node()]
    settings = EngineSettings("tiny", str(tmp_path), "cpu")
    async with pool_on(cluster, settings, "tiny:tiny_engine", 2) as (pool, place):
        channel = Recording(pool.links[0])
        for link, other in (pool.links, pool.links[::-1]):
            await until(lambda: all(one.running for one in pool.links))
            if not channel.went_on:
                link.open(channel)
            end = len(channel.video)
            await until(lambda end=end: len(channel.video) >= end + FRAMES // 3)
            (on,) = (node for node, number in place._engines.values() if number == link.settings.number)
            (node,) = (one for one in nodes if one.node_id == on)
            if link is pool.links[0]:
                drain(cluster, on)
            else:
                cluster.remove_node(node, allow_graceful=False)
            await until(lambda other=other: channel.engine is other)
        end = len(channel.video)
        await until(lambda: len(channel.video) >= end + FRAMES // 3)
        # Ray takes a node that answers late for a dead one: there may be more changes than were meant.
        assert not channel.went_on[0] and all(channel.went_on[1:]) and len(channel.went_on) >= 3
    device = pick_device("cpu")
    with computing_with(1):
        generator = Generator(load(tiny_config(), tmp_path, device, pick_dtype(device)))
        state = generator.open(SETTINGS.prompt, SETTINGS.seed, SETTINGS.steps)
        offline = np.concatenate([batch.i420 for batch in generate_frames(generator, state, len(channel.video))])
    assert (np.stack(channel.video) == offline[: len(channel.video)]).all()


def drain(cluster: Any, node: str) -> None:
    """Tells the cluster that a node is about to be taken away, as its autoscaler does."""
    import ray
    from ray.core.generated import autoscaler_pb2

    preemption = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = ray._raylet.GcsClient(address=cluster.address).drain_node(node, preemption, "test", 0)
    assert accepted, why


async def test_engines_come_with_nodes(
    cluster: Any, add_node: Add, loopback: None, caplog: pytest.LogCaptureFixture
) -> None:
    """A server on a cluster without room waits for the first node, and takes the second one too."""
    caplog.set_level(logging.INFO)

    async def add_nodes() -> None:
        for count in (1, 2):
            await until(lambda: "engine 0 waits for a node of the Ray cluster with room for it" in caplog.text)
            add_node()
            await until(lambda count=count: caplog.text.count("is ready") == count)

    adding = asyncio.create_task(add_nodes())
    async with serving("--ray", cluster.address) as running:
        await adding
        assert b"landiff_engine_ready 2.0" in (await running.http.get("/metrics")).content


async def test_no_channel_waits_for_a_node(cluster: Any, add_node: Add, tmp_path: Path) -> None:
    """A channel of an engine for which there is no node is made by one that runs."""
    write_weights(tmp_path)
    add_node()
    async with pool_on(cluster, EngineSettings("tiny", str(tmp_path), "cpu"), "tiny:tiny_engine", 2) as (pool, _):
        await until(lambda: pool.links[0].running)
        channel = Recording(pool.links[1])
        pool.links[1].open(channel)
        await until(lambda: channel.video)
        assert channel.engine is pool.links[0] and pool.links[1].status is EngineStatus.STARTING


async def test_a_node_that_goes_while_it_begins_is_no_end(
    cluster: Any, add_node: Add, caplog: pytest.LogCaptureFixture
) -> None:
    """The engine begins on the next node that comes, with at most one warning of the first."""
    async with pool_on(cluster, EngineSettings("mini"), "fakes:fake_engine", 1) as (pool, place):
        await until(lambda: "engine 0 waits for a node" in caplog.text)
        node = add_node()
        await until(lambda: place._beginning[node.node_id])
        cluster.remove_node(node, allow_graceful=False)
        add_node()
        await until(lambda: pool.links[0].running)
        assert place._beginning.total() == 0
    # It may be gone before it is asked.
    warnings = [one for one in caplog.messages if "cannot begin" in one]
    name = f"{node.node_ip_address} ({node.node_id[:6]})"
    assert len(warnings) <= 1
    assert all(f"engine 0 cannot begin on node {name}, and tries again" in one for one in warnings)


async def test_a_node_with_another_version_is_refused(cluster: Any, add_node: Add) -> None:
    """In one line, which names the node and both versions."""
    add_node()
    async with pool_on(cluster, EngineSettings("mini"), "fakes:fake_engine", 1, code="landiff-live other") as (pool, _):
        await until(lambda: pool.links[0].status is EngineStatus.FAILED)
        wanted = r"node [\d.]+ \(\w{6}\): it has landiff-live \w{8}, and this server landiff-live other: install the"
        assert re.search(wanted, str(pool.links[0].error))


async def test_a_node_that_lacks_the_state_folder_is_refused(tmp_path: Path) -> None:
    """It would keep channels where no other machine finds them."""
    settings = EngineSettings("mini", state=str(tmp_path / "state"))
    with pytest.raises(ValueError, match="there is no state folder .*: give --state a folder that all nodes share"):
        await NodeEngine("fakes:fake_engine", settings, CONFIG).begin()


async def test_a_node_hands_over_all_that_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages in order, with their frames, and why the process ended; at once, or gathered where nobody waits. Without
    Ray, which calls it so."""
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "default_worker.py", raising=False)
    monkeypatch.setattr(ray_node, "GATHER_S", 60.0)
    monkeypatch.setattr(ray_node, "ASKED_S", 60.0)
    node = NodeEngine("fakes:fake_engine", EngineSettings("mini"), CONFIG)
    pid = await node.begin()
    try:
        await node.send([(OpenChannel("main", SETTINGS, 2), None)])
        frames, told_s = None, list[float]()
        async with asyncio.timeout(30):
            while frames is None:
                for message, frames in (await node.news()).messages:  # noqa: B007 - the last one counts
                    if frames is not None:
                        break
            monkeypatch.setattr(ray_node, "GATHER_S", 0.1)
            node._asked.clear()
            for _ in range(3):
                node._receive(Heartbeat())
                told_s.append(asyncio.get_running_loop().time())
                await node.news()
        assert isinstance(message, FramesReady) and message.channel == "main"
        assert len(frames) == message.frames and frames.any()
        assert min(after - before for before, after in pairwise(told_s)) > 0.09
        monkeypatch.setattr(ray_node, "GATHER_S", 60.0)
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            while (news := await node.news()).ended is None:
                pass
        assert "SIGKILL" in news.ended and news.killed
    finally:
        await node.stop()


@pytest.mark.parametrize("address", ["10.0.0.1", "ray://10.0.0.1:10001", ":6379", "head:0", "head:port"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    """With what it should be."""
    with pytest.raises(ValueError, match="is no address of a Ray cluster: give HOST:PORT"):
        check_address(address)


def test_a_cluster_that_is_not_there_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """The server ends with status 2 and one line."""
    pytest.importorskip("ray")
    assert server.main(["--ray", "127.0.0.1:9", "--port", "0"]) == 2
    assert "no Ray cluster answers at 127.0.0.1:9 (Connection refused): give --ray" in caplog.text


def test_a_server_without_ray_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One line names the package."""
    monkeypatch.setitem(sys.modules, "ray", None)
    assert server.main(["--ray", "auto", "--port", "0"]) == 2
    assert "--ray needs Ray: pip install 'landiff-live[ray]'" in caplog.text


def test_nodes_without_weights_end_the_server(cluster: Any, add_node: Add, caplog: pytest.LogCaptureFixture) -> None:
    """The line of the engine names its node; where no node has any the status is 1."""
    add_node()
    assert server.main(["--ray", cluster.address, "--weights", MISSING, "--port", "0"], fake_engine) == 1
    assert re.search(r"node [\d.]+ \(\w{6}\): no weights in 'missing': give --weights a folder", caplog.text)

"""A Ray cluster as the place where engines run: one a GPU or, where no node has any, one a node.

Engines of nodes that go are given to those that stay; a node that comes gets an engine. Ray is imported when the server
is asked to use it, not before.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.wire.settings import EngineSettings
from engine.wire.state_memory import StateMemory
from streaming.engines.link import EngineLink, EngineStatus
from streaming.engines.pool import EnginePool
from streaming.engines.process import SupervisorConfig
from streaming.engines.ray_engine import RayEngine, UnansweredError, first_line, is_own, kill, lost, reason
from streaming.engines.ray_node import NodeEngine

LOOK_S = 2.0  # between two looks at the cluster
CONNECT_S = 30.0  # to join it
REACH_S = 1.0  # for a TCP connection to a node
BEGIN_S = 30.0  # for a node to begin a process before it is asked anew; a worker of Ray takes some seconds

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Node:
    """A node that lives."""

    id: str
    address: str
    port: int  # of its raylet
    cpus: float
    gpus: int
    draining: bool

    @property
    def name(self) -> str:
        return f"{self.address} ({self.id[:6]})"


class RayCluster:
    """Nodes, and how many engines each has. One place an engine: nobody starts two on one GPU."""

    def __init__(self, target: str, device: str, config: SupervisorConfig, most: int) -> None:
        """`target` is the function of an engine process, as `module:name`; `most` engines are begun."""
        self._target, self._device, self._config, self._most = target, device, config, most
        self._memory = StateMemory()
        self._nodes: dict[str, Node] = {}
        self._engines: dict[RayEngine, tuple[str, int]] = {}  # and the node and the number of each
        self._beginning: Counter[str] = Counter()  # by node
        self._unfit: set[str] = set()  # nodes that cannot run an engine, which was told
        self._alike: set[str] = set()  # nodes with the same package as here
        self._changed = asyncio.Event()
        self._code = code_reader()()

    async def connect(self, address: str) -> None:
        """Joins the cluster. Raises ValueError."""
        try:
            import ray
        except ImportError as error:
            raise ValueError("--ray needs Ray: pip install 'landiff-live[ray]'") from error
        check_address(address)

        failures: tuple[type[Exception], ...] = (OSError, RuntimeError, ValueError, *lost())

        def join() -> None:
            ray.init(address, logging_level=logging.ERROR, log_to_driver=True)

        try:
            async with asyncio.timeout(CONNECT_S):
                # In a thread: from the main one it would take our signals.
                await asyncio.to_thread(join)
        except failures as error:
            raise ValueError(f"cannot use the Ray cluster at {address}: {reason(error)}") from error
        await self.look()

    @property
    def places(self) -> int:
        """Engines that there is room for; one at least, which may have to wait."""
        return max(1, min(self._most, self._rooms))

    @property
    def _rooms(self) -> int:
        return sum(map(self._room, self._nodes.values()))

    async def look(self) -> None:
        """Asks which nodes there are."""
        self._nodes = {node.id: node for node in await asyncio.to_thread(living_nodes)}
        self._changed.set()

    async def begin(self, settings: EngineSettings) -> RayEngine:
        """A new process on a node with room, which is waited for; another one where that node goes or does not answer.
        Raises OSError where it cannot run it."""
        while True:
            node = await self._free_node(settings.number)
            try:
                engine = await self._begin_on(node, settings)
            except UnansweredError as error:
                log.warning("engine %d cannot begin on node %s, and tries again: %s", settings.number, node.name, error)
                # Whether that node is still there is known with the next look.
                self._changed.clear()
                await self._changed.wait()
            else:
                self._engines[engine] = node.id, settings.number
                return engine
            finally:
                self._beginning[node.id] -= 1

    async def watch(self, pool: EnginePool, begin: Callable[[EngineLink], object]) -> None:
        """Looks at the cluster until cancelled: engines leave nodes that drain, and come to nodes that are new."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except lost() as error:
                log.warning("the Ray cluster does not answer: %s", first_line(error))
                continue
            self._forget_ended()
            for engine, (node, number) in self._engines.items():
                if node in self._nodes and self._nodes[node].draining:
                    link = pool.links[number]
                    pool.drain(link)
                    if not link.channels or not pool.others_run(link):
                        engine.end("it drains")
            for link in pool.links:
                if link.status in (EngineStatus.STARTING, EngineStatus.RESTARTING) and not link.attached:
                    # Perhaps for ever: engines that run take its channels.
                    pool.lost(link)
            engines = sum(link.status is not EngineStatus.FAILED for link in pool.links)
            for _ in range(min(self._rooms - engines, self._most - len(pool.links))):
                begin(pool.add())

    async def close(self) -> None:
        """Leaves the cluster."""
        import ray

        await asyncio.to_thread(ray.shutdown)
        self._memory.close()

    def _room(self, node: Node) -> int:
        """Engines that a node can run."""
        if node.draining or node.id in self._unfit:
            return 0
        if self._device != "cpu" and any(one.gpus for one in self._nodes.values()):
            return node.gpus
        return int(node.cpus >= 1 and self._device != "cuda")

    def _used(self, node: str) -> int:
        return self._beginning[node] + sum(node == one for one, _ in self._engines.values())

    def _forget_ended(self) -> None:
        for engine in [engine for engine in self._engines if engine.ended]:
            node, _ = self._engines.pop(engine)
            if engine.unfit:
                self._unfit.add(node)

    async def _free_node(self, number: int) -> Node:
        """The node with the most room, which counts as one where an engine begins; waits until there is one."""
        told = False
        while True:
            self._changed.clear()
            self._forget_ended()
            for node in sorted(self._nodes.values(), key=lambda one: self._used(one.id) - self._room(one)):
                # It may be gone, which the cluster notices later.
                if self._used(node.id) < self._room(node):
                    self._beginning[node.id] += 1
                    if await _reached(node):
                        return node
                    self._beginning[node.id] -= 1
            if not told:
                log.warning("engine %d waits for a node of the Ray cluster with room for it", number)
            told = True
            await self._changed.wait()

    async def _begin_on(self, node: Node, settings: EngineSettings) -> RayEngine:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        actor: Any = None
        pid = 0
        failures: tuple[type[Exception], ...] = (OSError, ValueError, *lost())
        try:
            async with asyncio.timeout(BEGIN_S):
                if node.id not in self._alike:
                    code = await ray.remote(code_reader()).options(num_cpus=0, scheduling_strategy=there).remote()
                    if code != self._code:
                        raise ValueError(f"it has {code}, and this server {self._code}: install the same on all nodes")
                    self._alike.add(node.id)
                gpus = int(node.gpus > 0 and self._device != "cpu")
                options = {"num_cpus": 0, "num_gpus": gpus, "scheduling_strategy": there, "max_restarts": 0}
                actor = ray.remote(NodeEngine).options(**options).remote(self._target, settings, self._config)
                pid = await actor.begin.remote()
        except TimeoutError as error:
            raise UnansweredError(f"nothing for {BEGIN_S:.0f} s") from error
        except failures as error:
            if not is_own(error):
                raise UnansweredError(reason(error)) from error
            if isinstance(error, ValueError):
                self._unfit.add(node.id)
            raise OSError(errno.EHOSTUNREACH, f"node {node.name}: {reason(error)}") from error
        finally:
            if actor is not None and not pid:
                kill(actor)
        return RayEngine(actor, pid, node.name, self._memory, self._config)


def living_nodes() -> list[Node]:
    """The cluster's nodes. Asks its head, and waits for the answer."""
    import ray
    from ray._private.state import state

    draining = set(state.get_draining_nodes())
    found = []
    for node in ray.nodes():
        if node["Alive"]:
            cpus, gpus = (node["Resources"].get(kind, 0.0) for kind in ("CPU", "GPU"))
            place = node["NodeID"], node["NodeManagerAddress"], node["NodeManagerPort"]
            found.append(Node(*place, cpus, int(gpus), node["NodeID"] in draining))
    return found


def check_address(address: str) -> None:
    """Raises ValueError for an address at which no cluster can be."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(
            f"{address!r} is no address of a Ray cluster: give HOST:PORT of its head, such as 10.0.0.1:6379, or auto, "
            "on a machine that has joined it (ray start --address HOST:PORT)"
        )
    try:
        socket.create_connection((host, int(port)), 3 * REACH_S).close()
    except OSError as error:
        raise ValueError(
            f"no Ray cluster answers at {address} ({error.strerror or error}): give --ray the HOST:PORT that "
            "`ray start --head` printed"
        ) from error


def code_reader() -> Callable[[], str]:
    """A function that names the version of this package where it runs, with a digest of its code and weights.

    It is sent by value, so that a node may have another version, or none.
    """

    def read() -> str:
        import hashlib
        import importlib.util
        from pathlib import Path

        found = hashlib.sha256()
        for name in ("server", "engine", "kernels", "streaming"):
            spec = importlib.util.find_spec(name)
            if spec is None or spec.origin is None:
                return "no landiff-live"
            root = Path(spec.origin)
            for path in sorted(root.parent.rglob("*")) if root.name == "__init__.py" else [root]:
                if path.suffix in (".py", ".safetensors"):
                    found.update(path.name.encode())
                    found.update(path.read_bytes())
        return f"landiff-live {found.hexdigest()[:8]}"

    return read


async def _reached(node: Node) -> bool:
    """Whether the node listens."""
    try:
        async with asyncio.timeout(REACH_S):
            _, writer = await asyncio.open_connection(node.address, node.port)
    except OSError:
        return False
    writer.close()
    return True


def name_of(target: Callable[..., object]) -> str:
    """The name of a function by which nodes find it, also where its module is this program."""
    module = target.__module__
    if module == "__main__":
        module = Path(str(sys.modules["__main__"].__file__)).stem
    return f"{module}:{target.__qualname__}"

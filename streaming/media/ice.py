"""Gathering of ICE candidates for viewers: host addresses, and what STUN and TURN servers lend.

aioice itself knows neither ports nor public addresses, and one server of each kind; this file takes the place of that
part and touches private names of aioice for it. A server that does not answer delays an answer by GATHER_S at most,
and is then left alone for REST_S.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import aioice.ice
from aioice import Candidate
from aioice.candidate import candidate_foundation, candidate_priority
from aioice.ice import StunProtocol

from streaming.errors import Unavailable
from streaming.media import ice_server
from streaming.media.ice_requests import IceServerError, allocate, ask, probe, release, resolve, within
from streaming.media.ice_server import IceServer
from streaming.media.network import NetworkConfig
from streaming.media.ports import MediaPorts

GATHER_S = 1.0  # for all servers together, asked side by side
REST_S = 30.0  # that a server which did not answer is not asked again

log = logging.getLogger(__name__)


class IceAgent:
    """Gathers for every viewer of the server."""

    def __init__(self, config: NetworkConfig | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self.config = config or NetworkConfig()
        self.ports = MediaPorts(self.config.ports)
        self._now = now
        self._resting: dict[IceServer, float] = {}  # until when a server is not asked
        self._releases: set[asyncio.Task[None]] = set()

    def servers(self) -> list[IceServer]:
        """All servers with their credentials; those made of the secret are new each time."""
        secret = self.config.turn_secret
        return [ice_server.with_credentials(server, secret, time.time()) for server in self.config.servers]

    def addresses(self) -> list[str]:
        """Addresses of this machine that media may come from."""
        return list(self.config.addresses or aioice.ice.get_host_addresses(use_ipv4=True, use_ipv6=True))

    def unused_public(self) -> list[str]:
        """Public addresses of a family that this machine has no address of: no viewer is told of them."""
        told = {self.config.public_of(address) for address in self.addresses()}
        return [address for address in self.config.public if address not in told]

    def has_port(self) -> bool:
        """True if a viewer could have a media port now."""
        return self.config.ports is None or self.ports.free(self.addresses())

    async def gather(self, transport: Any) -> None:
        """Gathers candidates of an aiortc RTCDtlsTransport that has gathered none.

        Raises Unavailable when there is no port or no address to send media from.
        """
        gatherer = transport.transport.iceGatherer
        self._prepare(gatherer._connection)
        await gatherer.gather()

    async def borrow(self, transport: Any, servers: Sequence[IceServer]) -> None:
        """Adds what TURN servers of the other side lend to an RTCDtlsTransport that has gathered.

        The other side hears of these candidates by the checks that come from them. One that fails is passed over.
        """
        connection = transport.transport._connection
        jobs = [within(GATHER_S, self._relay(connection, one)) for one in servers if one.relays and one.usable_here]
        for reason in await asyncio.gather(*jobs, return_exceptions=True):
            if isinstance(reason, IceServerError):
                log.info("a TURN server of the other side %s", reason)
            elif isinstance(reason, BaseException):
                raise reason

    async def gather_connection(self, connection: Any) -> None:
        """The same for an aioice Connection."""
        self._prepare(connection)
        await connection.gather_candidates()

    def _prepare(self, connection: Any) -> None:
        connection.get_component_candidates = partial(self._candidates, connection)

    async def check(self) -> None:
        """Asks every server once. Raises IceServerError for one that can never work; tells of the others in the log.

        The log also has public addresses that take no effect.
        """
        for address in self.unused_public():
            sent, version = ", ".join(self.addresses()) or "no address", ipaddress.ip_address(address).version
            cure = f"leave it out, or give the machine an IPv{version} address"
            log.warning("--public-address %s has no effect, since media is sent from %s: %s", address, sent, cure)
        asked = [(kept, one) for kept, one in zip(self.config.servers, self.servers(), strict=True) if one.usable_here]
        reasons = await asyncio.gather(*(probe(server) for _, server in asked), return_exceptions=True)
        for (kept, server), reason in zip(asked, reasons, strict=True):
            if isinstance(reason, IceServerError):
                if reason.final:
                    raise IceServerError(f"{server.url} {reason}", final=True) from reason
                self._rest(kept, reason)
            elif isinstance(reason, BaseException):
                raise reason

    async def aclose(self) -> None:
        """Returns when every TURN allocation is given back, or was not taken back in time."""
        while self._releases:
            await asyncio.wait(self._releases)

    async def _candidates(self, connection: Any, component: int, addresses: list[str]) -> Any:
        """In place of aioice's method: the candidates of one component."""
        hosts = await _hosts(connection, self.ports.bind(self.addresses()))
        candidates: dict[tuple[str, int], Candidate] = {}
        for protocol in hosts:
            own = protocol.local_candidate
            own.host = self.config.public_of(own.host)
            candidates.setdefault((own.host, own.port), own)
        jobs: list[tuple[IceServer, Awaitable[list[Candidate]]]] = []
        for kept, server in zip(self.config.servers, self.servers(), strict=True):
            if server.usable_here and self._now() >= self._resting.get(kept, 0.0):
                job = self._relay(connection, server) if server.relays else _reflexive(hosts, server)
                jobs.append((kept, job))
        for found in await asyncio.gather(*(self._limited(kept, job) for kept, job in jobs)):
            for candidate in found:
                # Where nothing translates addresses, a STUN server only tells what is known.
                candidates.setdefault((candidate.host, candidate.port), candidate)
        if not candidates:
            raise Unavailable(
                "This server has no network address to send media from; its operator sees why at /doctor."
            )
        return list(candidates.values())

    async def _limited(self, server: IceServer, job: Awaitable[list[Candidate]]) -> list[Candidate]:
        """What a server lends in time; nothing if it fails, which the log tells once a while."""
        try:
            found: list[Candidate] = await within(GATHER_S, job)
        except IceServerError as error:
            self._rest(server, error)
            return []
        if self._resting.pop(server, None) is not None:
            log.info("ice server %s works again", server.url)
        return found

    def _rest(self, server: IceServer, error: IceServerError) -> None:
        if self._now() >= self._resting.get(server, 0.0):
            log.warning("ice server %s %s; going on without it for %.0f s", server.url, error, REST_S)
        self._resting[server] = self._now() + REST_S

    async def _relay(self, connection: Any, server: IceServer) -> list[Candidate]:
        protocol = await allocate(server, lambda: _Relay(connection, self._release))
        host, port = protocol.transport.get_extra_info("sockname")
        related = protocol.transport.get_extra_info("related_address")
        protocol.local_candidate = _candidate("relay", host, port, related)
        if connection._closing:
            await protocol.close()
            return []
        connection._protocols.append(protocol)
        return [protocol.local_candidate]

    def _release(self, protocol: StunProtocol) -> None:
        """Gives an allocation back, without holding up who closes the connection."""
        task = asyncio.create_task(release(protocol), name="turn release")
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)


class _Relay(StunProtocol):  # type: ignore[misc]  # aioice has no types
    """ICE over one TURN allocation."""

    def __init__(self, connection: Any, give_back: Callable[[StunProtocol], None]) -> None:
        super().__init__(connection)
        self._give_back: Callable[[StunProtocol], None] | None = give_back

    async def close(self) -> None:
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back(self)


async def _hosts(connection: Any, sockets: list[socket.socket]) -> list[StunProtocol]:
    """Host protocols of a connection, which closes them from now on."""
    loop = asyncio.get_running_loop()
    protocols = []
    try:
        while sockets:
            _, protocol = await loop.create_datagram_endpoint(lambda: StunProtocol(connection), sock=sockets[0])
            bound = sockets.pop(0)
            protocol.local_candidate = _candidate("host", *bound.getsockname()[:2])
            connection._protocols.append(protocol)
            protocols.append(protocol)
    finally:
        for bound in sockets:
            bound.close()
    return protocols


async def _reflexive(hosts: list[StunProtocol], server: IceServer) -> list[Candidate]:
    """How a STUN server sees the socket from which it is reached."""
    family, address = await resolve(server)
    with socket.socket(family, socket.SOCK_DGRAM) as route:
        # Sends nothing. Asking from every socket would wait for those that cannot reach it.
        route.connect(address)
        source = route.getsockname()[0]
    for protocol in hosts:
        own, port = protocol.transport.get_extra_info("sockname")[:2]
        if own == source:
            mapped = await ask(protocol, address)
            return [_candidate("srflx", *mapped, (own, port))]
    return []


def _candidate(kind: str, host: str, port: int, related: tuple[str, int] | None = None) -> Candidate:
    return Candidate(
        foundation=candidate_foundation(kind, "udp", related[0] if related and kind == "srflx" else host),
        component=1,
        transport="udp",
        priority=candidate_priority(1, kind),
        host=host,
        port=port,
        type=kind,
        related_address=related[0] if related else None,
        related_port=related[1] if related else None,
    )

"""Requests to STUN and TURN servers, and what goes wrong with them in words.

Beside `rtp_hooks.py` and `ice.py` the only file that touches private names of aioice.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from aioice import stun, turn
from aioice.ice import StunProtocol

from streaming.media.ice_server import IceServer

CHECK_S = 2.0  # for a server that is only tried
RELEASE_S = 0.5  # for a TURN server to take an allocation back
UNAUTHORIZED = (401, 403, 441)  # STUN's codes of credentials that are wrong
CLOSE_TASK = "_TurnTransport__close_task"


class IceServerError(Exception):
    """A STUN or TURN server does not do what is asked; the text says why. `final` if asking again cannot help."""

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


async def within(limit_s: float, job: Awaitable[Any]) -> Any:
    """What a STUN or TURN server answers. Raises IceServerError, with the reason in words, for every failure."""
    try:
        async with asyncio.timeout(limit_s):
            return await job
    except TimeoutError as error:
        raise IceServerError(f"did not answer within {limit_s:.0f} s") from error
    except socket.gaierror as error:
        raise IceServerError(f"is at no host: {error.strerror}", error.errno == socket.EAI_NONAME) from error
    except stun.TransactionFailed as error:
        code, words = error.response.attributes.get("ERROR-CODE", (0, "no reason"))
        if code in UNAUTHORIZED:
            raise IceServerError(f"refuses the credentials: {code} {words}", final=True) from error
        raise IceServerError(f"refuses: {code} {words}") from error
    except stun.TransactionError as error:
        raise IceServerError("did not answer") from error
    except OSError as error:
        raise IceServerError(f"cannot be reached: {error.strerror or error}") from error
    except (ValueError, KeyError) as error:
        raise IceServerError(f"answers with what cannot be used: {error}") from error


async def probe(server: IceServer) -> str:
    """Asks a server once for the address that it lends, or by which it sees this machine. Raises IceServerError."""
    return str(await within(CHECK_S, _relayed(server) if server.relays else _seen(server)))


async def allocate(server: IceServer, factory: Callable[[], StunProtocol]) -> StunProtocol:
    """A protocol over an allocation of a TURN server. Raises what `within` turns into words."""
    _, protocol = await turn.create_turn_endpoint(
        factory,
        server_addr=(server.host, server.port),
        username=server.username,
        password=server.credential,
        ssl=True if server.scheme == "turns" else None,
        transport=server.transport,
    )
    return protocol


async def release(protocol: StunProtocol) -> None:
    """Gives the allocation of a protocol back; a TURN server that does not take it in time is left to forget it."""
    protocol.transport.close()
    closing = getattr(protocol.transport, CLOSE_TASK)
    await asyncio.wait([closing], timeout=RELEASE_S)
    closing.cancel()
    await asyncio.wait([closing])


async def resolve(server: IceServer) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Address family and address of a server. Raises socket.gaierror."""
    loop = asyncio.get_running_loop()
    family, _, _, _, address = (await loop.getaddrinfo(server.host, server.port, type=socket.SOCK_DGRAM))[0]
    return family, (str(address[0]), int(address[1]))


async def ask(protocol: StunProtocol, address: tuple[str, int]) -> tuple[str, int]:
    """The address and port by which a STUN server sees a socket. Raises what `within` turns into words."""
    request = stun.Message(message_method=stun.Method.BINDING, message_class=stun.Class.REQUEST)
    response, _ = await protocol.request(request, address)
    host, port = response.attributes["XOR-MAPPED-ADDRESS"]
    return str(ipaddress.ip_address(host)), int(port)


async def _relayed(server: IceServer) -> str:
    protocol = await allocate(server, lambda: StunProtocol(_Nobody()))
    try:
        return str(protocol.transport.get_extra_info("sockname")[0])
    finally:
        await release(protocol)


async def _seen(server: IceServer) -> str:
    family, address = await resolve(server)
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(lambda: StunProtocol(_Nobody()), family=family)
    try:
        mapped, _ = await ask(protocol, address)
        return mapped
    finally:
        transport.close()


class _Nobody:
    """Receives nothing, in place of a connection."""

    def protocol_lost(self, protocol: StunProtocol) -> None: ...

    def data_received(self, data: bytes, component: int) -> None: ...

    def request_received(self, message: Any, address: Any, protocol: StunProtocol) -> None: ...

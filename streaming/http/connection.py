"""HTTP connections: how many there are at a time, and how long one may keep the server waiting."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from streaming.http.guard import RETRY_AFTER_S, problem

MOST_CONNECTIONS = 512
HEADER_TIMEOUT_S = 10.0  # until a whole header arrived
SEND_TIMEOUT_S = 10.0  # that the socket takes nothing more of an answer
UNSENT_BYTES = 16 * 1024  # of one connection; then its answer waits
UNSENT_LIVE_BYTES = 4 * 1024  # of one without end
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: %d\r\n"
    b"Content-Type: application/problem+json\r\nContent-Length: %d\r\n\r\n%b"
)
_MALFORMED = (
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n"
    b"Content-Type: application/problem+json\r\nContent-Length: %d\r\n\r\n%b"
)


class Connection(H11Protocol):
    """One client's connection. What cannot be served in time is cut off, and frees its descriptor at once."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._header_timer = self.loop.call_later(HEADER_TIMEOUT_S, self._check_header)
        self._send_timer: asyncio.TimerHandle | None = None
        transport.set_write_buffer_limits(UNSENT_BYTES)
        # Routes of answers without end find their connection in the request's state.
        self.app_state = {**self.app_state, "connection": self}
        if len(self.connections) > MOST_CONNECTIONS:
            body = problem(503, "Too many connections are open; try again later.").body
            transport.write(_FULL % (RETRY_AFTER_S, len(body), bytes(body)))
            transport.close()

    def notice_slowness(self) -> None:
        """Lets what the client does not take wait here, where it is noticed, and not in the kernel's buffer."""
        connected = self.transport.get_extra_info("socket")
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_LIVE_BYTES)
        self.transport.set_write_buffer_limits(UNSENT_LIVE_BYTES)

    def abort(self) -> None:
        """Cuts the connection off, whatever waits to be sent."""
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._header_timer.cancel()
        self.resume_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._header_timer.cancel()
        self._header_timer = self.loop.call_later(HEADER_TIMEOUT_S, self._check_header)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._send_timer = self.loop.call_later(SEND_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._send_timer is not None:
            self._send_timer.cancel()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets a problem as everything else, unless an answer is on its way already."""
        self.logger.debug(msg)
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            body = bytes(problem(400, "The request is not valid HTTP/1.1.").body)
            self.transport.write(_MALFORMED % (len(body), body))
        self.transport.close()

    def _check_header(self) -> None:
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete:
            self.transport.abort()


class TlsConnection(Connection):
    """A connection that speaks TLS. It counts from its first moment on, and its handshake has the time of a header."""

    def __init__(self, *args: Any, context: ssl.SSLContext, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._context = context
        self._secure = False
        self._early = b""  # what came between the handshake and its end here

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        # Its bytes are for the handshake, which begins in a moment.
        transport.pause_reading()
        self.transport = transport
        if len(self.connections) >= MOST_CONNECTIONS:
            # There is no saying so before TLS.
            transport.abort()
            return
        self.connections.add(self)
        task = self.loop.create_task(self._shake_hands(transport), name="TLS handshake")
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def data_received(self, data: bytes) -> None:
        if self._secure:
            super().data_received(data)
        else:
            self._early += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        if self._secure:
            super().connection_lost(exc)

    async def _shake_hands(self, transport: asyncio.Transport) -> None:
        try:
            secure = await self.loop.start_tls(
                transport, self, self._context, server_side=True, ssl_handshake_timeout=HEADER_TIMEOUT_S
            )
        except OSError:
            # No TLS, too late, or gone; asyncio has closed it.
            self.connections.discard(self)
            return
        assert isinstance(secure, asyncio.Transport), "the handshake is done"
        self._secure = True
        super().connection_made(secure)
        if self._early:
            super().data_received(self._early)

"""HTTP connections: how many there are at a time, and how long one may keep the server waiting."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from streaming.http.guard import RETRY_AFTER_S, problem

MOST_CONNECTIONS = 512
HEADER_TIMEOUT_S = 10.0  # until a whole header arrived
SEND_TIMEOUT_S = 10.0  # that the socket takes nothing more of an answer
UNSENT_BYTES = 16 * 1024  # of one connection; then its answer waits
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
        if len(self.connections) > MOST_CONNECTIONS:
            body = problem(503, "Too many connections are open; try again later.").body
            transport.write(_FULL % (RETRY_AFTER_S, len(body), bytes(body)))
            transport.close()

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

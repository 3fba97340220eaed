"""Faults of a `Range`, which Starlette 1.x answers with 400 or 416 as plain text, as HTTP has them (RFC 9110, 14)."""

from __future__ import annotations

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class _Fault(Exception):
    """What would be answered."""

    def __init__(self, message: Message) -> None:
        super().__init__(message)
        self.status: int = message["status"]
        self.range = dict(message["headers"]).get(b"content-range", b"").decode()


async def by_range(files: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Lets `files` answer. A `Range` that is none of bytes is passed over; one behind the end is a problem with 416."""

    async def check(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] in (400, 416):
            raise _Fault(message)
        await send(message)

    try:
        await files(scope, receive, check)
    except _Fault as fault:
        if fault.status == 416:
            raise HTTPException(416, "The file has no such bytes.", {"Content-Range": fault.range}) from None
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        await files({**scope, "headers": headers}, receive, send)

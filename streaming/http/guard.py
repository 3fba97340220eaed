"""Guards before the routes: framing and size of bodies, and every error as problem+json (RFC 9457)."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streaming.http.paths import route_path

# Read on of a body that is refused: a client that sends it whole before it reads must find the answer, not a reset.
DRAIN_BYTES, DRAIN_S = 128 * 1024 * 1024, 30.0
DRAIN_IDLE_S = 5.0  # without a byte of it; then nobody sends any more
RETRY_AFTER_S = 2
SHOWN_CHARACTERS = 200  # of a path that is named in an error
GUARDED = ("POST", "PUT", "PATCH", "DELETE")


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error for people and programs; `detail` is one sentence that says what to do."""
    content = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return JSONResponse(content, status, headers, media_type="application/problem+json")


def install(app: FastAPI) -> None:
    """Puts the guards of bodies before an app, and makes its errors problems."""
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Exception, _on_defect)
    app.add_middleware(BodyLimit)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers, detail = dict(error.headers or {}), error.detail
    path = request.scope["path"][:SHOWN_CHARACTERS]
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods(request))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
        detail = f"{path} takes no {request.method}, but {headers['Allow']}."
    elif error.status_code == 404 and detail == HTTPStatus(404).phrase:
        # Of a route that is not there; those that are say what they miss.
        detail = f"There is nothing at {path}; {request.scope.get('root_path', '')}/openapi.json lists the paths."
    return problem(error.status_code, detail, headers)


def _methods(request: Request) -> list[str]:
    """Every method that a path takes; Starlette names those of its first route alone."""
    found = {"OPTIONS"}
    for route in request.app.router.routes:
        match, _ = route.matches(request.scope)
        if match is not Match.NONE:
            found |= set(getattr(route, "methods", None) or {"GET"})
    return sorted(found | {"HEAD"} if "GET" in found else found)


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    texts = [f"{'.'.join(str(part) for part in entry['loc'])}: {entry['msg']}" for entry in error.errors()]
    # The offending input is not repeated: it may be long, or hold what cannot be encoded.
    return problem(422, "; ".join(texts).encode("utf-8", "replace").decode())


async def _on_defect(request: Request, error: Exception) -> JSONResponse:
    return problem(500, "The server has a defect; its log says more.")


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of a body: its size, and the time until it is there."""

    most_bytes: int
    limit_s: float


USUAL = Bounds(32 * 1024, 10.0)
UPLOAD = Bounds(28_000_000, 60.0)  # a file of 20 MB as base64 in JSON
UPLOADS = {("POST", "/channels")}  # what takes one
MOST_UPLOADS = 2  # at a time, for what they take of memory


class BodyLimit:
    """Reads a request's body before the app does, up to a limit of size and time."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._uploads = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in GUARDED:
            await self._app(scope, receive, send)
        elif _announced(scope) <= USUAL.most_bytes or (scope["method"], route_path(scope)) not in UPLOADS:
            await self._take(scope, receive, send, USUAL)
        elif self._uploads == MOST_UPLOADS:
            headers = {"Retry-After": str(RETRY_AFTER_S), **_CLOSE}
            reply = problem(503, "Other files are being uploaded; try again in a moment.", headers)
            await answer_unread(reply, receive, send)
        else:
            self._uploads += 1
            try:
                await self._take(scope, receive, send, UPLOAD)
            finally:
                self._uploads -= 1

    async def _take(self, scope: Scope, receive: Receive, send: Send, bounds: Bounds) -> None:
        body = None
        try:
            if _announced(scope) <= bounds.most_bytes:
                async with asyncio.timeout(bounds.limit_s):
                    body = await _read(receive, bounds.most_bytes)
        except ConnectionError:
            return
        except TimeoutError:
            reply = problem(408, f"The body did not arrive within {bounds.limit_s:.0f} s.", _CLOSE)
            await answer_unread(reply, receive, send)
            return
        if body is None:
            reply = problem(413, f"The body is larger than {bounds.most_bytes} bytes.", _CLOSE)
            await answer_unread(reply, receive, send)
            return
        if b"json" in dict(scope["headers"]).get(b"content-type", b"").lower() and not _is_utf8(body):
            # Python would take UTF-16 and UTF-32 too, and JSON between systems is neither (RFC 8259, 8.1).
            await problem(400, "The body is not UTF-8 text.")(scope, receive, send)
            return
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        del body  # the app's, who may drop it

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, replay, send)


def _announced(scope: Scope) -> int:
    """Bytes of the body by its header; 0 where that does not say."""
    length: bytes = dict(scope["headers"]).get(b"content-length", b"")
    return int(length) if length.isdigit() else 0


async def _read(receive: Receive, most_bytes: int) -> bytes | None:
    """The whole body, or None if it is larger than that. Raises ConnectionError when the client is gone."""
    parts, size, more = [], 0, True
    while more and size <= most_bytes:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
    return b"".join(parts) if size <= most_bytes else None


def _is_utf8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


async def answer_unread(reply: Response, receive: Receive, send: Send) -> None:
    """Answers a request whose body was not read whole, at once; then reads on, within bounds, and drops what comes."""
    await send({"type": "http.response.start", "status": reply.status_code, "headers": reply.raw_headers})
    await send({"type": "http.response.body", "body": reply.body, "more_body": True})
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            await _drop(receive)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drop(receive: Receive) -> None:
    dropped, more = 0, True
    while more and dropped < DRAIN_BYTES:
        async with asyncio.timeout(DRAIN_IDLE_S):
            message = await receive()
        dropped += len(message.get("body", b""))
        more = message.get("more_body", False)


class Framing:
    """Refuses a body whose end two headers tell: a proxy may believe the other one (RFC 9112, 6.1)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        names = {name for name, _ in scope.get("headers", ())}
        if {b"content-length", b"transfer-encoding"} <= names:
            reply = problem(400, "Send Content-Length or Transfer-Encoding, not both.", _CLOSE)
            await answer_unread(reply, receive, send)
            return
        await self._app(scope, receive, send)


_CLOSE = {"Connection": "close"}

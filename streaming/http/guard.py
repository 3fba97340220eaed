"""Guards before the routes: body limit, token, methods of a path, and every error as problem+json (RFC 9457)."""

from __future__ import annotations

import asyncio
import hmac
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_LIMIT_BYTES = 32 * 1024
BODY_TIMEOUT_S = 10.0
RETRY_AFTER_S = 2
GUARDED = ("POST", "PUT", "PATCH", "DELETE")


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error for people and programs; `detail` is one sentence that says what to do."""
    content = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return JSONResponse(content, status, headers, media_type="application/problem+json")


def install(app: FastAPI, token: str | None) -> None:
    """Puts the guards before an app. With a token, requests that change something must carry it."""
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Exception, _on_defect)
    app.add_middleware(BodyLimit)
    app.add_middleware(Paths)
    if token is not None:
        # Added last, so that it comes first: a stranger's body is not even read.
        app.add_middleware(BearerToken, token=token)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods(request))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
    return problem(error.status_code, error.detail, headers)


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


class BodyLimit:
    """Reads a request's body before the app does, up to a limit of size and time."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in GUARDED:
            await self._app(scope, receive, send)
            return
        body = b""
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > BODY_LIMIT_BYTES:
                        reply = problem(413, f"The body is larger than {BODY_LIMIT_BYTES} bytes.", _CLOSE)
                        await reply(scope, receive, send)
                        return
        except TimeoutError:
            await problem(408, f"The body did not arrive within {BODY_TIMEOUT_S:.0f} s.", _CLOSE)(scope, receive, send)
            return
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, replay, send)


class Paths:
    """HEAD wherever GET is, and a slash at the end of a path makes no difference."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].rstrip("/")
        if path and not path.endswith("/page"):
            scope = {**scope, "path": path, "raw_path": path.encode()}
        if scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        answered = asyncio.Event()

        async def head(message: Message) -> None:
            if message["type"] == "http.response.start" and not answered.is_set():
                await send(message)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                answered.set()

        async def gone() -> Message:
            # A stream without end stops when its listener leaves.
            await answered.wait()
            return {"type": "http.disconnect"}

        await self._app({**scope, "method": "GET"}, gone, head)


class BearerToken:
    """Lets requests that change something pass only with the token; compares in constant time."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] in GUARDED:
            headers: dict[bytes, bytes] = dict(scope["headers"])
            scheme, *given = headers.get(b"authorization", b"").split() or [b""]
            sent = given[0] if scheme.lower() == b"bearer" and len(given) == 1 else b""
            if not hmac.compare_digest(sent, self._expected):
                reply = problem(401, "Send the server's token: Authorization: Bearer TOKEN.", _CHALLENGE)
                await reply(scope, receive, send)
                return
        await self._app(scope, receive, send)


_CLOSE = {"Connection": "close"}
_CHALLENGE = {"WWW-Authenticate": "Bearer"}

"""Who may watch and who may steer: the server's tokens, in a header or where players can do no more in the address.

The control token opens everything, the view token all that watches. Of the page, `/healthz`, `/readyz`, `/metrics` and
`/openapi.json` nobody asks for one: the page must be there to ask for it.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from streaming.http.guard import GUARDED, problem
from streaming.http.paths import route_path

OPEN = ("/", "/healthz", "/readyz", "/metrics", "/openapi.json")
BY_ADDRESS = ("/events", "/doctor", ".mp4", ".jpg")  # ends of paths that are opened by what can send no header
CHALLENGE = {"WWW-Authenticate": "Bearer"}
TOO_LITTLE = {"WWW-Authenticate": 'Bearer error="insufficient_scope"'}


@dataclass(frozen=True, slots=True)
class Right:
    """The tokens that open a route."""

    accepted: tuple[str, ...]
    weaker: tuple[str, ...] = ()  # tokens of the server that do not
    query: bool = False  # `?token=` counts too


@dataclass(frozen=True, slots=True)
class Tokens:
    """The server's tokens; without one nobody is asked for it."""

    control: str | None = None
    view: str | None = None

    def right(self, method: str, path: str) -> Right | None:
        """The tokens for a request; None where it needs none."""
        if method == "OPTIONS" or path in OPEN or path.startswith("/page/"):
            return None
        given = [one for one in (self.control, self.view) if one]
        whep = path.startswith("/whep/")
        if whep or method not in GUARDED:
            return Right(tuple(given), (), whep or path.endswith(BY_ADDRESS)) if self.view else None
        # Without a control token whoever may watch may steer.
        return Right(tuple(given[:1]), tuple(one for one in given[1:] if one != given[0])) if given else None

    def admits(self, scope: Scope) -> bool:
        """Whether a request carries what a GET of its path needs; for answers that say less to others."""
        right = self.right("GET", route_path(scope))
        return right is None or _is_one_of(_sent(scope, right), right.accepted)


class Access:
    """Lets requests pass that carry the token they need; compares in constant time, before a body is read."""

    def __init__(self, app: ASGIApp, tokens: Tokens) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        right = self._tokens.right(scope["method"], route_path(scope)) if scope["type"] == "http" else None
        if right is None:
            if scope["type"] == "http" and _any_page_may_send(scope):
                reply = problem(415, "A page must send this as application/json, even without a body.")
                await reply(scope, receive, send)
            else:
                await self._app(scope, receive, send)
            return
        sent = _sent(scope, right)
        if _is_one_of(sent, right.accepted):
            await self._app(scope, receive, send)
        elif _is_one_of(sent, right.weaker):
            reply = problem(403, "This token only watches; steering needs the server's control token.", TOO_LITTLE)
            await reply(scope, receive, send)
        else:
            reply = problem(401, "Send the server's token: Authorization: Bearer TOKEN.", CHALLENGE)
            await reply(scope, receive, send)


def address_of(request: Request, path: str) -> str:
    """A route's address for who asked: behind the proxy's prefix, with the token where that was in the address."""
    token = request.query_params.get("token")
    prefix = str(request.scope["root_path"])
    return prefix + path + (f"?token={quote(token, safe='')}" if token else "")


def _any_page_may_send(scope: Scope) -> bool:
    """Whether it steers, and comes of a browser that asks nobody first, whatever the page's origin (Fetch, 4.1)."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    json = headers.get(b"content-type", b"").split(b";")[0].strip().lower() == b"application/json"
    return (
        scope["method"] == "POST" and not route_path(scope).startswith("/whep/") and b"origin" in headers and not json
    )


def _sent(scope: Scope, right: Right) -> bytes:
    return _from_header(scope) or (_from_query(scope) if right.query else b"")


def _from_header(scope: Scope) -> bytes:
    headers: dict[bytes, bytes] = dict(scope["headers"])
    scheme, *given = headers.get(b"authorization", b"").split() or [b""]
    return given[0] if scheme.lower() == b"bearer" and len(given) == 1 else b""


def _from_query(scope: Scope) -> bytes:
    # A plus is no space here: tokens have none, and people paste them as they are.
    fields = (field.partition(b"=") for field in scope["query_string"].split(b"&"))
    return next((unquote_to_bytes(value) for name, _, value in fields if name == b"token"), b"")


def _is_one_of(sent: bytes, tokens: tuple[str, ...]) -> bool:
    # A list, so that each is compared whichever fits.
    return any([hmac.compare_digest(sent, one.encode()) for one in tokens])

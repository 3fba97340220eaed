"""CORS: pages of other origins may watch, and steer where that needs a token (Fetch standard)."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streaming.http.access import Tokens
from streaming.http.guard import GUARDED
from streaming.http.paths import route_path

ANY = "*"
EXPOSED = "Location, ETag, Link, Accept-Patch, Accept-Post, Allow, Retry-After, WWW-Authenticate"
REQUEST_HEADERS = "Authorization, Content-Type, If-Match"
PREFLIGHT_S = 600  # that a browser may remember an answer


class Cors:
    """Adds CORS headers to what is answered to the origins in the list; others get the same answer without them."""

    def __init__(self, app: ASGIApp, origins: frozenset[str], tokens: Tokens) -> None:
        self._app = app
        self._origins = origins
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        origin = headers.get(b"origin", b"").decode("latin-1")
        preflight = scope["method"] == "OPTIONS" and b"access-control-request-method" in headers

        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = self._headers(origin, preflight, scope, message["headers"])
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        await self._app(scope, receive, add)

    def _headers(
        self, origin: str, preflight: bool, scope: Scope, answered: list[tuple[bytes, bytes]]
    ) -> list[tuple[bytes, bytes]]:
        """What to add to an answer's headers."""
        found = [] if ANY in self._origins else [("Vary", "Origin")]
        if origin and (ANY in self._origins or origin in self._origins):
            found.append(("Access-Control-Allow-Origin", ANY if ANY in self._origins else origin))
            if preflight:
                allowed = dict(answered).get(b"allow", b"").decode().split(", ")
                methods = [method for method in allowed if self._may(method, route_path(scope))]
                found.append(("Access-Control-Allow-Methods", ", ".join(methods)))
                found.append(("Access-Control-Allow-Headers", REQUEST_HEADERS))
                found.append(("Access-Control-Max-Age", str(PREFLIGHT_S)))
            else:
                found.append(("Access-Control-Expose-Headers", EXPOSED))
        return [(name.lower().encode(), value.encode("latin-1")) for name, value in found]

    def _may(self, method: str, path: str) -> bool:
        """Any page that somebody opens could steer a server that asks for no token."""
        steers = method in GUARDED and not path.startswith("/whep/")
        return not steers or self._tokens.right(method, path) is not None

"""Request paths as the routes know them: without the prefix of a proxy and a slash at the end, and HEAD beside GET."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Paths:
    """HEAD wherever GET is; a slash at the end of a path, or the prefix that a proxy left in it, is no difference.

    A proxy may strip the prefix or leave it: the server is asked for `/whep/main` or for `/live/whep/main`.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = self._prefix + self._route(scope["path"])
        # As ASGI has it: `path` is whole, and `root_path` is the part of it that routes do not see.
        scope = {**scope, "path": path, "raw_path": path.encode(), "root_path": self._prefix}
        if scope["method"] == "HEAD":
            await self._head(scope, send)
        else:
            await self._app(scope, receive, send)

    def _route(self, path: str) -> str:
        """The path without prefix and end slash; of the root and of the page's folder the slash stays."""
        if path == self._prefix or path.startswith(f"{self._prefix}/"):
            path = path[len(self._prefix) :]
        bare = path.rstrip("/")
        return bare if bare and bare != "/page" else f"{bare}/"

    async def _head(self, scope: Scope, send: Send) -> None:
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


def route_path(scope: Scope) -> str:
    """The path that routes see."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))

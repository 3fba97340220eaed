import httpx
import pytest
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from streaming.http.app import PAGE
from streaming.http.paths import Paths, route_path


class Seen:
    """Notes the paths of requests on their way to the app."""

    paths: list[str] = []

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.paths.append(route_path(scope))
        await self._app(scope, receive, send)


def app(prefix: str) -> FastAPI:
    made = FastAPI()
    made.add_middleware(Seen)
    made.add_middleware(Paths, prefix=prefix)

    @made.get("/")
    async def root() -> str:
        return "root"

    @made.get("/things/{name}")
    async def thing(name: str) -> str:
        return name

    made.mount("/page", StaticFiles(directory=PAGE))
    return made


@pytest.mark.parametrize("prefix", ["", "/live", "/a/b"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_prefix_may_be_there_or_not(prefix: str, method: str) -> None:
    """A proxy that strips its prefix and one that leaves it reach the same routes, files of the page too."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app(prefix)), base_url="http://test") as http:
        for path in ("/", "/things/x", "/things/x/", "/page/app.js", "/page/app.js/"):
            for asked in {path, prefix + path}:
                Seen.paths.clear()
                reply = await http.request(method, asked)
                assert reply.status_code == 200, asked
                assert Seen.paths == [path.rstrip("/") or "/"]
        if prefix:
            assert (await http.request(method, prefix)).status_code == 200
        for asked in ("/livething", "/a", "/page", "/page/", "/page/../app.py"):
            assert (await http.request(method, asked)).status_code == 404, asked

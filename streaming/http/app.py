"""The HTTP interface of the server as one application."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI, HTTPException, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from streaming.http import channel_routes, guard, whep_routes
from streaming.http.connection import Connection
from streaming.http.state import RETRY, ServerState
from streaming.http.whep import Policy

PAGE = Path(__file__).parents[1] / "page"
BACKLOG = 64  # connections taken at a time
GRACE_S = 1  # for open HTTP streams when the server stops


@dataclass(frozen=True, slots=True)
class AppConfig:
    """Settings of the routes."""

    policy: Policy
    token: str | None


class HttpServer(uvicorn.Server):
    """uvicorn for one app; it leaves signals to its owner, who sets `should_exit`."""

    def __init__(self, app: FastAPI) -> None:
        # No access log: it would keep addresses and session ids for nothing. No warnings: a client could fill the log.
        config = uvicorn.Config(
            app,
            http=Connection,
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=GRACE_S,
        )
        super().__init__(config)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def create_app(state: ServerState, config: AppConfig) -> FastAPI:
    """The whole HTTP interface."""
    app = FastAPI(title="landiff-live", version="0.1.0", docs_url=None, redoc_url=None)
    guard.install(app, config.token)
    _add_service(app, state)
    channel_routes.add(app, state)
    whep_routes.add(app, state, config.policy)
    return app


def _add_service(app: FastAPI, state: ServerState) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The server process lives."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {"description": "The engine is not warm"}})
    async def readyz() -> dict[str, str]:
        """The engine is warm and running."""
        if not state.engine.running:
            raise HTTPException(503, "The engine is not ready.", RETRY)
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.mount("/page", StaticFiles(directory=PAGE))

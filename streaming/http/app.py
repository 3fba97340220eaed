"""The HTTP interface of the server as one application."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Response
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from streaming.http import (
    channel_routes,
    doctor_routes,
    guard,
    journal_routes,
    openapi,
    output_routes,
    plan_routes,
    push_routes,
    whep_routes,
)
from streaming.http.access import Access, Tokens
from streaming.http.connection import Connection, TlsConnection
from streaming.http.cors import Cors
from streaming.http.openapi import problems
from streaming.http.paths import Paths
from streaming.http.ranges import by_range
from streaming.http.state import RETRY, ServerState
from streaming.http.whep import Policy

PAGE = Path(__file__).parents[1] / "page"
# The page's address may hold a token, which goes nowhere else.
PAGE_HEADERS = {"Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
TEXT = {"type": "string"}
BACKLOG = 64  # connections taken at a time
GRACE_S = 1  # for open HTTP streams when the server stops


@dataclass(frozen=True, slots=True)
class AppConfig:
    """Settings of the routes."""

    policy: Policy
    tokens: Tokens = Tokens()
    origins: frozenset[str] = frozenset()  # whose pages may use the server, "*" for all
    root_path: str = ""  # under which a proxy serves it, without a slash at the end


class HttpServer(uvicorn.Server):
    """uvicorn for one app; it leaves signals to its owner, who sets `should_exit`."""

    def __init__(self, app: FastAPI, tls: ssl.SSLContext | None = None) -> None:
        # uvicorn calls it for each connection; its type asks for a class.
        protocol: Any = Connection if tls is None else partial(TlsConnection, context=tls)
        # No access log: it would keep addresses and session ids for nothing. No warnings: a client could fill the log.
        config = uvicorn.Config(
            app,
            http=protocol,
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
    # Generated clients name their calls by these ids: the names of the routes' functions.
    app = FastAPI(
        title="landiff-live",
        version="0.1.0",
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    guard.install(app)
    # What is added last comes first: a stranger's body is not even read.
    app.add_middleware(Access, tokens=config.tokens)
    app.add_middleware(guard.Framing)
    if config.origins:
        app.add_middleware(Cors, origins=config.origins, tokens=config.tokens)
    app.add_middleware(Paths, prefix=config.root_path)
    _add_service(app, state)
    _add_page(app, config.root_path)
    doctor_routes.add(app, state)
    channel_routes.add(app, state)
    output_routes.add(app, state)
    plan_routes.add(app, state)
    push_routes.add(app, state)
    journal_routes.add(app, state)
    whep_routes.add(app, state, config.policy, config.tokens)
    openapi.install(app, config.tokens)
    return app


def _add_page(app: FastAPI, root_path: str) -> None:
    """The page, whose own addresses are relative: it works under any prefix."""
    html = (PAGE / "index.html").read_text()
    if root_path:
        # Whether the address that a person typed ends with a slash or not.
        html = html.replace("<head>", f'<head>\n<base href="{escape(root_path)}/">', 1)

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers=PAGE_HEADERS)

    app.mount("/page", partial(by_range, StaticFiles(directory=PAGE)))


def _add_service(app: FastAPI, state: ServerState) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The server process lives."""
        return {"status": "ok"}

    @app.get("/readyz", responses=problems(503))
    async def readyz() -> dict[str, str]:
        """An engine is warm and running."""
        if not state.engines.running:
            raise HTTPException(503, "The engine is not ready.", RETRY)
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {"schema": TEXT}}}})
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

"""`GET /doctor`: what works here, for people as a page and for programs as JSON."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from html import escape

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from streaming.doctor import findings
from streaming.doctor.findings import Finding
from streaming.doctor.media_path import examine_network
from streaming.http.state import ServerState

KEEP_S = 5.0  # that a report is given again: each asks STUN and TURN servers
POLICY = {"Content-Security-Policy": "default-src 'self'", "Cache-Control": "no-store"}


def add(app: FastAPI, state: ServerState) -> None:
    """Adds the route to the app."""
    examination = _Examination(state)

    @app.get("/doctor", response_class=JSONResponse, responses={200: {"content": {"text/html": {}}}})
    async def report(request: Request) -> Response:
        """What of ports, addresses, STUN, TURN, HTTPS, codecs, processor and weights works here, and each cure."""
        asked = findings.examine_https(request.url.scheme, request.url.hostname or "")
        found = [*await examination.findings(), asked]
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(_page(found), headers=POLICY)
        return JSONResponse({"findings": [asdict(finding) for finding in found]}, headers=POLICY)


class _Examination:
    """One examination at a time, however many ask for it."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._lock = asyncio.Lock()
        self._found: list[Finding] = []
        self._until_s = 0.0

    async def findings(self) -> list[Finding]:
        async with self._lock:
            if time.monotonic() >= self._until_s:
                channels = [findings.examine_channel(channel.report()) for channel in self._state.channels.values()]
                self._found = [*channels, *await examine_network(self._state.ice), *findings.examine_machine()]
                self._until_s = time.monotonic() + KEEP_S
            return self._found


def _page(found: list[Finding]) -> str:
    rows = [
        f"<tr><td>{escape(one.state)}</td><th scope=row>{escape(one.name)}</th><td>{escape(one.words)}"
        + (f"<br><em>{escape(one.cure)}</em>" if one.cure else "")
        + "</td></tr>"
        for one in found
    ]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>What works here</title><h1>What works here</h1><table>{''.join(rows)}</table></html>"
    )

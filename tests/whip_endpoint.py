"""A small WHIP server (RFC 9725) for tests: it receives video over real peer connections, or misbehaves as told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import uvicorn
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from fastapi import FastAPI, Request, Response

from streaming.media.rtp_hooks import end_consent_with_connection


class Session:
    """One peer that sends video here. `pts` are those of its frames, in 1/90000 s."""

    def __init__(self, peer: RTCPeerConnection, offer: str) -> None:
        self.peer, self.offer = peer, offer
        self.pts: list[int] = []
        self.last: Any = None
        self.deleted = False
        self._arrived = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        peer.on("track", self._on_track)

    async def received(self, count: int, limit_s: float = 10.0) -> None:
        """Waits until that many more frames were decoded."""
        wanted = len(self.pts) + count
        async with asyncio.timeout(limit_s):
            while len(self.pts) < wanted:
                self._arrived.clear()
                await self._arrived.wait()

    async def aclose(self) -> None:
        await self.peer.close()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])

    def _on_track(self, track: Any) -> None:
        self._reader = asyncio.create_task(self._read(track))

    async def _read(self, track: Any) -> None:
        try:
            while True:
                self.last = await track.recv()
                self.pts.append(self.last.pts)
                self._arrived.set()
        except MediaStreamError:
            return


class WhipEndpoint:
    """What the server got, and how it answers."""

    def __init__(self, url: str) -> None:
        self.url = url  # of the endpoint
        self.sessions: list[Session] = []
        self.tokens: list[str | None] = []  # Authorization of each POST
        self.instead: Callable[[], Response] | None = None  # what POST answers, in place of a session
        self.change: Callable[[str], str] = lambda sdp: sdp  # made to every answer
        self.read_offer: Callable[[str], str] = lambda sdp: sdp  # made to every offer
        self.headers: dict[str, str] = {}  # beside those of an answer; one that is empty leaves it out
        self.prepare: Callable[[RTCPeerConnection], None] = lambda peer: None

    async def post(self, request: Request) -> Response:
        self.tokens.append(request.headers.get("authorization"))
        if self.instead is not None:
            return self.instead()
        peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        session = Session(peer, (await request.body()).decode())
        self.sessions.append(session)
        await peer.setRemoteDescription(RTCSessionDescription(self.read_offer(session.offer), "offer"))
        self.prepare(peer)
        end_consent_with_connection(peer.getTransceivers()[0].receiver.transport)
        await peer.setLocalDescription(await peer.createAnswer())
        headers = {"Location": f"/session/{len(self.sessions) - 1}"} | self.headers
        answer = self.change(peer.localDescription.sdp)
        return Response(answer, 201, {k: v for k, v in headers.items() if v}, media_type="application/sdp")

    async def delete(self, number: int, request: Request) -> Response:
        session = self.sessions[number]
        session.deleted = request.headers.get("authorization") == self.tokens[0]
        await session.aclose()
        return Response(status_code=200)


@asynccontextmanager
async def whip_endpoint() -> AsyncIterator[WhipEndpoint]:
    """The server on a free port of loopback; the `loopback` fixture must be in use."""
    app = FastAPI()
    config = uvicorn.Config(app, "127.0.0.1", 0, log_config=None, access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    server.capture_signals = nullcontext  # type: ignore[method-assign,assignment]
    task = asyncio.create_task(server.serve())
    async with asyncio.timeout(10):
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    endpoint = WhipEndpoint(f"http://127.0.0.1:{port}/whip/secret-key")
    app.post("/whip/{key}")(endpoint.post)
    app.delete("/session/{number}")(endpoint.delete)
    try:
        yield endpoint
    finally:
        await asyncio.gather(*(session.aclose() for session in endpoint.sessions))
        server.should_exit = True
        await task

"""Routes to calls: the HTTP interface of the server. Validation happens here and in `whep`; the rest is elsewhere."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

from engine.wire.prompt import check_prompt
from streaming.channels.channel import Channel, PromptAnswer
from streaming.channels.events import PromptShown, Unavailable
from streaming.channels.prompts import PromptRefused
from streaming.channels.stats import ChannelReport, Metrics
from streaming.http import guard
from streaming.http.whep import Policy, WhepError, check_fragment, check_offer
from streaming.media import marker
from streaming.media.viewer import Viewer, Viewers

PAGE = Path(__file__).parent.parent / "page"
ANSWER_TIMEOUT_S = 10.0
STATE_EVERY_S = 1.0
GRACE_S = 1  # for open HTTP streams when the server stops
RETRY = {"Retry-After": str(guard.RETRY_AFTER_S)}
EXPOSED = {"Access-Control-Expose-Headers": "Location, ETag, Link"}
SDP: dict[str, Any] = {"application/sdp": {"schema": {"type": "string"}}}
FRAGMENT: dict[str, Any] = {"application/trickle-ice-sdpfrag": {"schema": {"type": "string"}}}


def _prompt(text: str) -> str:
    try:
        return check_prompt(text)
    except ValueError as error:
        raise PydanticCustomError("prompt", "{reason}", {"reason": str(error)}) from error


class PromptChange(BaseModel):
    """Body of PATCH /channels/{id}."""

    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str, AfterValidator(_prompt)]
    mode: Literal["flow"] = "flow"


@dataclass(frozen=True, slots=True)
class AppConfig:
    """What the routes need to know of the server's settings."""

    policy: Policy
    token: str | None


@dataclass(frozen=True, slots=True)
class Server:
    """What the routes act on."""

    channel: Channel
    viewers: Viewers
    metrics: Metrics
    stopping: asyncio.Event  # set when streams should end


class HttpServer(uvicorn.Server):
    """uvicorn for one app; it leaves signals to its owner, who sets `should_exit`."""

    def __init__(self, app: FastAPI) -> None:
        # No access log: it would keep addresses and session ids for nothing.
        super().__init__(
            uvicorn.Config(app, lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=GRACE_S)
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def create_app(server: Server, config: AppConfig) -> FastAPI:
    """The whole HTTP interface."""
    app = FastAPI(title="landiff-live", version="0.1.0", docs_url=None, redoc_url=None)
    guard.install(app, config.token)
    _add_service(app, server)
    _add_channels(app, server)
    _add_whep(app, server, config.policy)
    return app


def _add_service(app: FastAPI, server: Server) -> None:
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
        if not server.channel.ready:
            raise HTTPException(503, "The engine is not ready.", RETRY)
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.mount("/page", StaticFiles(directory=PAGE))


def _add_channels(app: FastAPI, server: Server) -> None:
    @app.get("/channels")
    async def channels() -> list[ChannelReport]:
        """All channels."""
        return [server.channel.report()]

    @app.get("/channels/{channel_id}")
    async def channel_report(channel_id: str) -> ChannelReport:
        """State of a channel."""
        return _channel(server, channel_id).report()

    @app.patch("/channels/{channel_id}")
    async def change(channel_id: str, body: PromptChange) -> PromptAnswer:
        """Changes the prompt; the answer names the first frame under it."""
        channel = _channel(server, channel_id)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await channel.set_prompt(body.prompt, body.mode)
        except Unavailable as error:
            raise HTTPException(503, str(error), RETRY) from error
        except PromptRefused as error:
            raise HTTPException(422, str(error)) from error
        except TimeoutError as error:
            raise HTTPException(504, f"The engine did not answer within {ANSWER_TIMEOUT_S:.0f} s.", RETRY) from error

    @app.get("/channels/{channel_id}/events", response_class=StreamingResponse)
    async def events(channel_id: str) -> StreamingResponse:
        """Server-sent events: `state` each second and on change, `prompt` when a prompt's first frame is on air."""
        stream = _stream(_channel(server, channel_id), server.stopping)
        # The first event is taken here, so that a refusal still can become an error reply.
        try:
            first = await anext(stream)
        except Unavailable as error:
            raise HTTPException(503, str(error), RETRY) from error
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(_after(first, stream), media_type="text/event-stream", headers=headers)


async def _stream(channel: Channel, stopping: asyncio.Event) -> AsyncIterator[str]:
    with channel.events.listen() as queue:
        yield _event("state", dataclasses.asdict(channel.report()))
        while not stopping.is_set() and channel.events.reaches(queue):
            try:
                async with asyncio.timeout(STATE_EVERY_S):
                    event = await queue.get()
            except TimeoutError:
                event = None
            if isinstance(event, PromptShown):
                yield _event("prompt", dataclasses.asdict(event))
            else:
                yield _event("state", dataclasses.asdict(channel.report()))


async def _after(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for text in rest:
        yield text


def _event(name: str, value: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(value)}\n\n"


def _add_whep(app: FastAPI, server: Server, policy: Policy) -> None:
    @app.post(
        "/whep/{channel_id}",
        status_code=201,
        response_class=Response,
        responses={201: {"content": SDP, "description": "The answer; Location is the session"}},
        openapi_extra={"requestBody": {"required": True, "content": SDP}},
    )
    async def offer(
        request: Request, channel_id: str, codec: Literal["vp8", "h264"] | None = None, marker: bool = False
    ) -> Response:
        """Opens a session (WHEP). `marker` draws frame number and clock into the picture."""
        channel = _channel(server, channel_id)
        content_type = request.headers.get("content-type", "")
        try:
            checked = check_offer(await request.body(), content_type, codec, policy)
            _check_live(channel, marker)
            viewer, answer = await server.viewers.open(channel, checked, marker)
        except WhepError as error:
            raise HTTPException(error.status, error.detail) from error
        except Unavailable as error:
            raise HTTPException(503, str(error), RETRY) from error
        headers = {"Location": f"/whep/{channel_id}/{viewer.id}", "ETag": viewer.etag} | EXPOSED
        return Response(answer, 201, headers, media_type="application/sdp")

    @app.options("/whep/{channel_id}", status_code=204, response_class=Response)
    async def options(channel_id: str) -> Response:
        """What the endpoint takes."""
        _channel(server, channel_id)
        return Response(status_code=204, headers={"Accept-Post": "application/sdp", "Allow": "GET, OPTIONS, POST"})

    @app.get("/whep/{channel_id}", status_code=204, response_class=Response)
    async def endpoint(channel_id: str) -> Response:
        """Nothing to get here, as WHEP says."""
        _channel(server, channel_id)
        return Response(status_code=204)

    _add_sessions(app, server, policy)


def _add_sessions(app: FastAPI, server: Server, policy: Policy) -> None:
    @app.get("/whep/{channel_id}/{session}", status_code=204, response_class=Response)
    async def session_state(channel_id: str, session: str) -> Response:
        """Nothing to get here, as WHEP says."""
        return Response(status_code=204, headers={"ETag": _viewer(server, channel_id, session).etag})

    @app.patch(
        "/whep/{channel_id}/{session}",
        status_code=204,
        response_class=Response,
        openapi_extra={"requestBody": {"required": True, "content": FRAGMENT}},
    )
    async def trickle(request: Request, channel_id: str, session: str) -> Response:
        """Adds ICE candidates."""
        viewer = _viewer(server, channel_id, session)
        if request.headers.get("if-match", "*") not in ("*", viewer.etag):
            raise HTTPException(412, "If-Match names another ICE session.")
        content_type = request.headers.get("content-type", "")
        try:
            await viewer.add(check_fragment(await request.body(), content_type, viewer.ufrag, policy))
        except WhepError as error:
            raise HTTPException(error.status, error.detail) from error
        return Response(status_code=204)

    @app.delete("/whep/{channel_id}/{session}", response_class=Response)
    async def leave(channel_id: str, session: str) -> Response:
        """Ends the session; one that ended by itself lately is fine too."""
        if not server.viewers.ended(session):
            await _viewer(server, channel_id, session).close("deleted")
        return Response(status_code=200)


def _channel(server: Server, channel_id: str) -> Channel:
    if channel_id != server.channel.id:
        raise HTTPException(404, "There is no such channel; GET /channels lists them.")
    return server.channel


def _viewer(server: Server, channel_id: str, session: str) -> Viewer:
    _channel(server, channel_id)
    viewer = server.viewers.find(session)
    if viewer is None:
        raise HTTPException(404, "There is no such session; it may have ended.")
    return viewer


def _check_live(channel: Channel, marked: bool) -> None:
    """Raises HTTPException when nobody can join now."""
    report = channel.report()
    if report.width is None or report.height is None or report.state == "failed":
        raise HTTPException(409, report.error or "The channel is not live yet.", RETRY)
    if marked and not marker.fits(report.height, report.width):
        raise HTTPException(422, "The picture is too small for a marker.")

"""WHEP routes: an offer opens a session, which can be asked for, trickled to and ended."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI, HTTPException, Request, Response

from streaming.channels.channel import Channel
from streaming.errors import Unavailable
from streaming.http.answer import compose
from streaming.http.state import RETRY, ServerState, client_address
from streaming.http.whep import Policy, check_fragment, check_offer
from streaming.media import marker as markers
from streaming.media.offer import WhepError

EXPOSED = {"Access-Control-Expose-Headers": "Location, ETag, Link"}
SDP: dict[str, Any] = {"application/sdp": {"schema": {"type": "string"}}}
FRAGMENT: dict[str, Any] = {"application/trickle-ice-sdpfrag": {"schema": {"type": "string"}}}


def add(app: FastAPI, state: ServerState, policy: Policy) -> None:
    """Adds the routes to the app."""

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
        channel = state.channel(channel_id)
        content_type = request.headers.get("content-type", "")
        try:
            negotiation = check_offer(await request.body(), content_type, codec, policy)
            _check_live(channel, marker)
            viewer, answer = await state.viewers.open(channel, negotiation.offer, client_address(request), marker)
        except WhepError as error:
            raise HTTPException(error.status, error.detail) from error
        except Unavailable as error:
            raise HTTPException(503, str(error), RETRY) from error
        headers = {"Location": f"/whep/{channel_id}/{viewer.id}", "ETag": viewer.etag} | EXPOSED
        return Response(compose(negotiation, answer), 201, headers, media_type="application/sdp")

    @app.options("/whep/{channel_id}", status_code=204, response_class=Response)
    async def options(channel_id: str) -> Response:
        """Tells the methods and the content type that the endpoint takes."""
        state.channel(channel_id)
        return Response(
            status_code=204, headers={"Accept-Post": "application/sdp", "Allow": "GET, HEAD, OPTIONS, POST"}
        )

    @app.get("/whep/{channel_id}", status_code=204, response_class=Response)
    async def endpoint(channel_id: str) -> Response:
        """Nothing to get here, as WHEP says."""
        state.channel(channel_id)
        return Response(status_code=204)

    _add_sessions(app, state, policy)


def _add_sessions(app: FastAPI, state: ServerState, policy: Policy) -> None:
    @app.get("/whep/{channel_id}/{session}", status_code=204, response_class=Response)
    async def session_state(channel_id: str, session: str) -> Response:
        """Nothing to get here, as WHEP says."""
        return Response(status_code=204, headers={"ETag": state.viewer(channel_id, session).etag})

    @app.patch(
        "/whep/{channel_id}/{session}",
        status_code=204,
        response_class=Response,
        openapi_extra={"requestBody": {"required": True, "content": FRAGMENT}},
    )
    async def trickle(request: Request, channel_id: str, session: str) -> Response:
        """Adds ICE candidates."""
        viewer = state.viewer(channel_id, session)
        if request.headers.get("if-match", "*") not in ("*", viewer.etag):
            raise HTTPException(412, "If-Match names another ICE session.")
        content_type = request.headers.get("content-type", "")
        try:
            await viewer.add(check_fragment(await request.body(), content_type, viewer.offer, policy))
        except WhepError as error:
            raise HTTPException(error.status, error.detail) from error
        return Response(status_code=204)

    @app.delete("/whep/{channel_id}/{session}", response_class=Response)
    async def leave(channel_id: str, session: str) -> Response:
        """Ends the session; one that ended by itself lately is fine too."""
        if not state.viewers.ended(session):
            await state.viewer(channel_id, session).close("deleted")
        return Response(status_code=200)


def _check_live(channel: Channel, marked: bool) -> None:
    """Raises HTTPException when nobody can join now."""
    report = channel.report()
    if report.width is None or report.height is None or report.state == "failed":
        raise HTTPException(409, report.error or "The channel is not live yet.", RETRY)
    if marked and not markers.fits(report.height, report.width):
        raise HTTPException(422, "The picture is too small for a marker.")

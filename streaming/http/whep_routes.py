"""WHEP routes: an offer opens a session, which can be asked for, trickled to and ended."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import quote

from fastapi import FastAPI, HTTPException, Request, Response

from streaming.channels.channel import Channel
from streaming.errors import Unavailable
from streaming.http.access import Tokens, address_of
from streaming.http.answer import compose
from streaming.http.openapi import problems
from streaming.http.state import RETRY, ServerState, client_address
from streaming.http.whep import Policy, check_fragment, check_offer, fragment_of, matches
from streaming.media import marker as markers
from streaming.media.ice_server import IceServer
from streaming.media.offer import WhepError

TRICKLE = "application/trickle-ice-sdpfrag"
ETAG = {"description": "names the ICE session", "schema": {"type": "string"}}
SESSION_HEADERS = {
    "Location": {"description": "the session", "schema": {"type": "string"}},
    "ETag": ETAG,
    "Accept-Patch": {"schema": {"type": "string"}},
}
PREFLIGHT = "access-control-request-method"
ENDPOINT_METHODS = ("GET", "HEAD", "OPTIONS", "POST")
SESSION_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH")
SDP: dict[str, Any] = {"application/sdp": {"schema": {"type": "string"}}}
FRAGMENT: dict[str, Any] = {TRICKLE: {"schema": {"type": "string"}}}
RESTARTED: dict[int | str, dict[str, Any]] = {
    200: {"content": FRAGMENT, "description": "ICE is restarted", "headers": {"ETag": ETAG}}
}
ANSWER: dict[int | str, dict[str, Any]] = {
    201: {"content": SDP, "description": "The answer", "headers": SESSION_HEADERS}
}


def add(app: FastAPI, state: ServerState, policy: Policy, tokens: Tokens) -> None:
    """Adds the routes to the app."""

    def public_servers(request: Request) -> list[IceServer]:
        """What a request may know that passes without a token: no credentials."""
        trusted = tokens.admits(request.scope)
        return [server for server in state.ice.servers() if trusted or not server.relays]

    @app.post(
        "/whep/{channel_id}",
        status_code=201,
        response_class=Response,
        responses=ANSWER | problems(400, 404, 406, 409, 415, 422, 503),
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
            raise _refusal(error, {"Accept-Post": "application/sdp"}) from error
        except Unavailable as error:
            raise HTTPException(503, str(error), RETRY) from error
        location = address_of(request, f"/whep/{quote(channel_id, safe='')}/{viewer.id}")
        headers = {"Location": location, "ETag": viewer.etag, "Accept-Patch": TRICKLE}
        reply = Response(compose(negotiation, answer), 201, headers, media_type="application/sdp")
        return _linked(reply, state.ice.servers())

    @app.options("/whep/{channel_id}", status_code=204, response_class=Response, responses=problems(404))
    async def options(request: Request, channel_id: str) -> Response:
        """Tells the methods, the content type and the ICE servers of the endpoint."""
        if PREFLIGHT not in request.headers:
            state.channel(channel_id)
        # Otherwise the request itself says what is wrong: a page cannot read why a preflight was refused.
        headers = {"Accept-Post": "application/sdp", "Allow": ", ".join(ENDPOINT_METHODS)}
        return _linked(Response(status_code=204, headers=headers), public_servers(request))

    @app.get("/whep/{channel_id}", status_code=204, response_class=Response, responses=problems(404))
    async def endpoint(request: Request, channel_id: str) -> Response:
        """Nothing to get here but the ICE servers, as WHEP says."""
        state.channel(channel_id)
        return _linked(Response(status_code=204), public_servers(request))

    _add_sessions(app, state, policy)


def _add_sessions(app: FastAPI, state: ServerState, policy: Policy) -> None:
    @app.options("/whep/{channel_id}/{session}", status_code=204, response_class=Response)
    async def session_options(channel_id: str, session: str) -> Response:
        """Tells the methods and the content type that a session takes, there or not."""
        return Response(status_code=204, headers={"Accept-Patch": TRICKLE, "Allow": ", ".join(SESSION_METHODS)})

    @app.get("/whep/{channel_id}/{session}", status_code=204, response_class=Response, responses=problems(404))
    async def session_state(channel_id: str, session: str) -> Response:
        """Nothing to get here, as WHEP says."""
        return Response(status_code=204, headers={"ETag": state.viewer(channel_id, session).etag})

    @app.patch(
        "/whep/{channel_id}/{session}",
        status_code=204,
        response_class=Response,
        responses=RESTARTED | problems(400, 404, 409, 412, 415, 428, 503),
        openapi_extra={"requestBody": {"required": True, "content": FRAGMENT}},
    )
    async def patch(request: Request, channel_id: str, session: str) -> Response:
        """Adds ICE candidates, or restarts ICE. `If-Match` may name the ICE session; a restart must have it, or `*`."""
        # Read first: ICE may be restarted while it comes.
        body = await request.body()
        viewer = state.viewer(channel_id, session)
        tags = request.headers.getlist("if-match")
        if not matches(tags, viewer.etag):
            raise HTTPException(412, "If-Match names another ICE session; this one's ETag came with the last answer.")
        try:
            content_type = request.headers.get("content-type", "")
            fragment = check_fragment(body, content_type, viewer.offer, policy)
            if fragment.restart is None:
                await viewer.add(fragment)
                return Response(status_code=204)
            if not tags:
                raise WhepError(428, "An ICE restart needs If-Match: *, or the ETag of the ICE session that it ends.")
            attributes = await viewer.restart(fragment.restart, fragment)
        except WhepError as error:
            raise _refusal(error, {"Accept-Patch": TRICKLE}) from error
        except Unavailable as error:
            raise HTTPException(503, str(error), RETRY) from error
        answer = fragment_of(fragment.restart, attributes)
        return Response(answer, 200, {"ETag": viewer.etag}, media_type=TRICKLE)

    @app.delete("/whep/{channel_id}/{session}", response_class=Response, responses=problems(404))
    async def leave(channel_id: str, session: str) -> Response:
        """Ends the session; one that ended by itself lately is fine too."""
        if not state.viewers.ended(session):
            await state.viewer(channel_id, session).close("deleted")
        return Response(status_code=200)


def _refusal(error: WhepError, taken: dict[str, str]) -> HTTPException:
    """The error of a route; with a wrong content type it says which is `taken`."""
    return HTTPException(error.status, error.detail, taken if error.status == 415 else None)


def _linked(reply: Response, servers: list[IceServer]) -> Response:
    """The reply with a `Link` for each ICE server."""
    for server in servers:
        reply.headers.append("Link", server.link)
    if any(server.credential for server in servers):
        reply.headers["Cache-Control"] = "no-store"
    return reply


def _check_live(channel: Channel, marked: bool) -> None:
    """Raises HTTPException or Unavailable when nobody can join now."""
    report = channel.report()
    if report.width is None or report.height is None or report.state == "failed":
        raise HTTPException(409, report.error or "The channel is not live yet.", RETRY)
    if marked and not markers.fits(report.height, report.width):
        raise HTTPException(422, "The picture is too small for a marker.")
    channel.check()

"""Routes of pushes: a channel's video sent to WHIP servers."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from streaming.errors import Unavailable
from streaming.http.access import address_of
from streaming.http.channel_routes import json_only
from streaming.http.openapi import problems
from streaming.http.state import RETRY, ServerState
from streaming.media.push import PushReport
from streaming.media.whip import LONGEST_URL, WhipError, WhipTarget

LONGEST_TOKEN = 4096
NO_PUSH = "There is no such push; GET /channels/{id}/pushes lists them."


class PushRequest(BaseModel):
    """Body of POST /channels/{id}/pushes. Neither address nor token is ever told again."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[str, Field(max_length=LONGEST_URL, json_schema_extra={"format": "uri"})]
    token: Annotated[str | None, Field(max_length=LONGEST_TOKEN)] = None
    codec: Literal["h264", "vp8"] = "h264"


def add(app: FastAPI, state: ServerState) -> None:
    """Adds the routes to the app."""
    path = "/channels/{channel_id}/pushes"

    @app.post(
        path,
        status_code=201,
        dependencies=[Depends(json_only)],
        responses=problems(404, 409, 415, 422, 502, 504),
    )
    async def push(channel_id: str, body: PushRequest, request: Request, response: Response) -> PushReport:
        """Sends the channel to a WHIP endpoint (RFC 9725) until the push is removed; answers when it is live there."""
        channel = state.channel(channel_id)
        try:
            target = WhipTarget(body.url, body.token)
        except ValueError as error:
            raise HTTPException(422, f"The push cannot be made: {error}.") from error
        try:
            report = await state.pushes.open(channel, target, body.codec)
        except Unavailable as error:
            raise HTTPException(503, str(error), RETRY) from error
        except WhipError as error:
            raise HTTPException(504 if error.late else 502, str(error)) from error
        if report is None:
            raise HTTPException(409, "The channel is pushed to this address already; end that push first.")
        response.headers["Location"] = address_of(request, f"/channels/{quote(channel_id, safe='')}/pushes/{report.id}")
        return report

    @app.get(path, responses=problems(404))
    async def pushes(channel_id: str) -> list[PushReport]:
        """All pushes of the channel, oldest first."""
        return state.pushes.reports(state.channel(channel_id))

    @app.get(path + "/{push_id}", responses=problems(404))
    async def push_report(channel_id: str, push_id: str) -> PushReport:
        """The report of a push."""
        found = state.pushes.find(state.channel(channel_id), push_id)
        if found is None:
            raise HTTPException(404, NO_PUSH)
        return found

    @app.delete(path + "/{push_id}", status_code=204, response_class=Response, responses=problems(404))
    async def end_push(channel_id: str, push_id: str) -> Response:
        """Ends a push and its session at the far end."""
        if not await state.pushes.end(state.channel(channel_id), push_id):
            raise HTTPException(404, NO_PUSH)
        return Response(status_code=204)

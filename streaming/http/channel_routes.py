"""Routes of channels: they begin and end, change, report and tell events."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import NoneType
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import StreamingResponse

from engine.wire.settings import Fork, StartFile
from engine.wire.state_folder import JOURNAL, channel_folder
from streaming.channels.channel import Channel
from streaming.channels.events import PromptDropped, PromptShown
from streaming.channels.prompts import RequestRefused
from streaming.channels.registry import ChannelExists
from streaming.channels.report import REPORT_S, ChangeAnswer, ChannelReport
from streaming.errors import Unavailable
from streaming.http.access import address_of
from streaming.http.channel_bodies import ChannelChange, FromChannel, NewChannel
from streaming.http.openapi import problems
from streaming.http.state import RETRY, ServerState, client_address
from streaming.http.upload import NoUpload, uploaded
from streaming.media.recorder import NoRoom
from streaming.media.viewer_report import ViewerReport

ANSWER_TIMEOUT_S = 10.0
MAKE_TIMEOUT_S = 60.0  # of a channel that goes on from what is there
# Of a new channel, by what it goes on from: how long the engine may take, and the status of its refusal.
LIMITS = {NoneType: (ANSWER_TIMEOUT_S, 422), Fork: (MAKE_TIMEOUT_S, 409), StartFile: (MAKE_TIMEOUT_S, 400)}
STATE_EVERY_S = 1.0
EVENT = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"enum": ["state", "prompt", "replaced"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": EVENT}}}}


def json_only(request: Request) -> None:
    """Raises HTTPException 415 for another content type: a page of another origin sends JSON only if it is let."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise HTTPException(415, "The content type must be application/json.")


def add(app: FastAPI, state: ServerState) -> None:
    """Adds the routes to the app."""

    @app.get("/channels")
    async def channels() -> list[ChannelReport]:
        """All channels."""
        return [channel.report() for channel in state.channels.values()]

    @app.post(
        "/channels",
        status_code=201,
        dependencies=[Depends(json_only)],
        responses=problems(400, 404, 409, 415, 422, 504),
    )
    async def create(request: Request, body: NewChannel, response: Response) -> ChannelReport:
        """Makes a channel: from a prompt, from a picture or video and a prompt, or from a chunk of another one's past.

        Its video begins with its first viewer, reader or recording.
        """
        name = body.id if body.id is not None else secrets.token_hex(4)
        try:
            async with _source(state, body) as source:
                settings = dataclasses.replace(body.settings(), source=source)
                async with answered(*LIMITS[type(source)]):
                    channel = await state.channels.create(name, settings)
        except ChannelExists as error:
            raise HTTPException(409, str(error)) from error
        response.headers["Location"] = address_of(request, f"/channels/{name}")
        return channel.report()

    @app.delete(
        "/channels/{channel_id}",
        status_code=204,
        response_class=Response,
        responses=problems(404, 422, 507),
    )
    async def end(channel_id: str, purge: bool = False) -> Response:
        """Ends a channel, with its viewers, readers and recordings; files of it stay, unless they are to be purged."""
        try:
            await state.end_channel(state.channel(channel_id), purge)
        except NoRoom as error:
            raise HTTPException(507, f"The channel has ended, but {error}.") from error
        return Response(status_code=204)

    @app.get("/channels/{channel_id}", responses=problems(404))
    async def channel_report(channel_id: str) -> ChannelReport:
        """State of a channel."""
        return state.channel(channel_id).report()

    @app.get("/channels/{channel_id}/viewers", responses=problems(404))
    async def viewer_reports(channel_id: str) -> list[ViewerReport]:
        """The viewers of a channel over WebRTC, and what is known of their connections."""
        state.channel(channel_id)
        return [report for report in state.viewers.reports() if report.channel == channel_id]

    @app.patch(
        "/channels/{channel_id}",
        dependencies=[Depends(json_only)],
        responses=problems(400, 404, 415, 422, 503, 504),
    )
    async def change(channel_id: str, body: ChannelChange) -> ChangeAnswer:
        """Changes prompt and seed, which the answer names the first frame of, or pauses the video for all."""
        channel = state.channel(channel_id)
        async with answered():
            answer = channel.pause(body.paused)
            if body.prompt is not None or body.seed is not None:
                answer = await channel.change(body.prompt, body.mode, body.seed)
        return answer

    @app.get(
        "/channels/{channel_id}/events",
        response_class=StreamingResponse,
        responses=STREAM | problems(404, 503),
    )
    async def events(channel_id: str, request: Request) -> StreamingResponse:
        """Server-sent events: `state` each second and on change, `prompt` when a prompt's first frame is on air.

        `replaced` tells of a prompt that was accepted and is never shown, since another took its place.
        """
        stream = _stream(state.channel(channel_id), client_address(request), state.stopping)
        # The first event is taken here, so that a refusal still can become an error reply.
        try:
            first = await anext(stream)
        except Unavailable as error:
            raise HTTPException(503, str(error), RETRY) from error
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(_after(first, stream), media_type="text/event-stream", headers=headers)


@asynccontextmanager
async def _source(state: ServerState, body: NewChannel) -> AsyncIterator[Fork | StartFile | None]:
    """What a channel goes on from; its file is there within the block.

    Raises HTTPException: 404 for a channel or journal that is not there, 400 for what is no file.
    """
    if body.start is not None:
        try:
            async with uploaded(body.start) as path:
                yield StartFile(path)
        except NoUpload as error:
            raise HTTPException(400, str(error)) from error
    elif isinstance(body.from_, FromChannel):
        yield Fork(channel_folder(Path(), state.channel(body.from_.channel).id).name, body.from_.chunk)
    elif body.from_ is not None:
        kept, folder = state.engines.settings.state, body.from_.journal
        if kept is None or not await asyncio.to_thread((Path(kept) / folder / JOURNAL).exists):
            raise HTTPException(404, "There is no such journal; its name is that of a folder in --state.")
        yield Fork(folder, body.from_.chunk)
    else:
        yield None


@asynccontextmanager
async def answered(limit_s: float = ANSWER_TIMEOUT_S, refused: int = 422) -> AsyncIterator[None]:
    """What the engine answers in the block, or does not, as errors of a route; `refused` is the status of a refusal."""
    try:
        async with asyncio.timeout(limit_s):
            yield
    except Unavailable as error:
        raise HTTPException(503, str(error), RETRY) from error
    except RequestRefused as error:
        raise HTTPException(refused, str(error)) from error
    except TimeoutError as error:
        raise HTTPException(504, f"The engine did not answer within {limit_s:.0f} s.", RETRY) from error


async def _stream(channel: Channel, address: str, stopping: asyncio.Event) -> AsyncIterator[str]:
    with channel.events.listen(address) as listener:
        yield _event("state", channel.report_text.get())
        while not stopping.is_set() and not listener.ended:
            try:
                async with asyncio.timeout(STATE_EVERY_S):
                    event = await listener.get()
            except TimeoutError:
                event = None
            if isinstance(event, PromptShown):
                yield _event("prompt", json.dumps(dataclasses.asdict(event)))
            elif isinstance(event, PromptDropped):
                yield _event("replaced", json.dumps(dataclasses.asdict(event)))
            else:
                yield _event("state", channel.report_text.get())
                # However much changes, a listener is not told more often.
                await asyncio.sleep(REPORT_S)


async def _after(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for text in rest:
        yield text


def _event(name: str, data: str) -> str:
    return f"event: {name}\ndata: {data}\n\n"

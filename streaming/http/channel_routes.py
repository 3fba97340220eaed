"""Routes of channels: they begin and end, change, report and tell events."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from engine.wire.prompt import LONGEST_PROMPT, check_prompt
from engine.wire.settings import MOST_STEPS, SEED_LIMIT, ChannelSettings
from streaming.channels.channel import REPORT_S, Channel
from streaming.channels.events import PromptDropped, PromptShown
from streaming.channels.prompts import RequestRefused
from streaming.channels.registry import ChannelExists
from streaming.channels.report import ChangeAnswer, ChannelReport
from streaming.errors import Unavailable
from streaming.http.access import address_of
from streaming.http.openapi import problems
from streaming.http.state import RETRY, ServerState, client_address
from streaming.media.viewer_report import ViewerReport

ANSWER_TIMEOUT_S = 10.0
ID = "^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$"
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
# What `check_prompt` takes, for programs: no control characters but white space, and a visible character.
_CONTROL = r"\u0000-\u0008\u000e-\u001f\u007f-\u0084\u0086-\u009f"
_INVISIBLE = (
    r"\s\u0085\u00ad\u0300-\u036f\u115f\u1160\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164"
    r"\ufe00-\ufe0f\ufeff\uffa0"
)
PROMPT_SCHEMA = {
    "type": "string",
    "maxLength": LONGEST_PROMPT,
    "pattern": rf"^[^{_CONTROL}]*[^{_CONTROL}{_INVISIBLE}][^{_CONTROL}]*$",
}


def _prompt(text: str) -> str:
    try:
        return check_prompt(text)
    except ValueError as error:
        raise PydanticCustomError("prompt", "{reason}", {"reason": str(error)}) from error


def _whole(value: object) -> object:
    """5.0 is an integer in JSON's schemas."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Seed = Annotated[StrictInt, Field(ge=0, lt=SEED_LIMIT), BeforeValidator(_whole)]
Steps = Annotated[StrictInt, Field(ge=1, le=MOST_STEPS), BeforeValidator(_whole)]
Prompt = Annotated[str, AfterValidator(_prompt), WithJsonSchema(PROMPT_SCHEMA)]


def json_only(request: Request) -> None:
    """Raises HTTPException 415 for another content type: a page of another origin sends JSON only if it is let."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise HTTPException(415, "The content type must be application/json.")


class NewChannel(BaseModel):
    """Body of POST /channels."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, Field(pattern=ID)] | None = None
    prompt: Prompt
    seed: Seed = 0
    steps: Steps | Literal["auto"] = "auto"

    def settings(self) -> ChannelSettings:
        """What the engine is asked for."""
        return ChannelSettings(self.prompt, self.seed, None if self.steps == "auto" else self.steps)


class ChannelChange(BaseModel):
    """Body of PATCH /channels/{id}; what is left out or null stays as it is."""

    model_config = ConfigDict(extra="forbid")

    prompt: Prompt | None = None
    seed: Seed | None = None
    mode: Literal["flow", "cut"] = "flow"
    paused: StrictBool | None = None


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
        responses=problems(400, 409, 415, 422, 504),
    )
    async def create(request: Request, body: NewChannel, response: Response) -> ChannelReport:
        """Makes a channel; its video begins with its first viewer, reader or recording."""
        name = body.id if body.id is not None else secrets.token_hex(4)
        try:
            async with _answered():
                channel = await state.channels.create(name, body.settings())
        except ChannelExists as error:
            raise HTTPException(409, str(error)) from error
        response.headers["Location"] = address_of(request, f"/channels/{name}")
        return channel.report()

    @app.delete("/channels/{channel_id}", status_code=204, response_class=Response, responses=problems(404))
    async def end(channel_id: str) -> Response:
        """Ends a channel, with its viewers, readers and recordings, whose files stay."""
        await state.end_channel(state.channel(channel_id))
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
        async with _answered():
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
async def _answered() -> AsyncIterator[None]:
    """What the engine answers in the block, or does not, as errors of a route."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            yield
    except Unavailable as error:
        raise HTTPException(503, str(error), RETRY) from error
    except RequestRefused as error:
        raise HTTPException(422, str(error)) from error
    except TimeoutError as error:
        raise HTTPException(504, f"The engine did not answer within {ANSWER_TIMEOUT_S:.0f} s.", RETRY) from error


async def _stream(channel: Channel, address: str, stopping: asyncio.Event) -> AsyncIterator[str]:
    with channel.events.listen(address) as listener:
        yield _event("state", channel.report_json())
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
                yield _event("state", channel.report_json())
                # However much changes, a listener is not told more often.
                await asyncio.sleep(REPORT_S)


async def _after(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for text in rest:
        yield text


def _event(name: str, data: str) -> str:
    return f"event: {name}\ndata: {data}\n\n"

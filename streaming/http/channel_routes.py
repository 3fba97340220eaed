"""Routes of channels: their reports, prompt changes and events."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, WithJsonSchema
from pydantic_core import PydanticCustomError

from engine.wire.prompt import LONGEST_PROMPT, check_prompt
from streaming.channels.channel import REPORT_S, Channel, PromptAnswer
from streaming.channels.events import PromptDropped, PromptShown
from streaming.channels.prompts import PromptRefused
from streaming.channels.report import ChannelReport
from streaming.errors import Unavailable
from streaming.http.openapi import problems
from streaming.http.state import RETRY, ServerState, client_address

ANSWER_TIMEOUT_S = 10.0
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


def json_only(request: Request) -> None:
    """Raises HTTPException 415 for another content type: a page of another origin sends JSON only if it is let."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise HTTPException(415, "The content type must be application/json.")


class PromptChange(BaseModel):
    """Body of PATCH /channels/{id}."""

    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str, AfterValidator(_prompt), WithJsonSchema(PROMPT_SCHEMA)]
    mode: Literal["flow"] = "flow"


def add(app: FastAPI, state: ServerState) -> None:
    """Adds the routes to the app."""

    @app.get("/channels")
    async def channels() -> list[ChannelReport]:
        """All channels."""
        return [channel.report() for channel in state.channels.values()]

    @app.get("/channels/{channel_id}", responses=problems(404))
    async def channel_report(channel_id: str) -> ChannelReport:
        """State of a channel."""
        return state.channel(channel_id).report()

    @app.patch(
        "/channels/{channel_id}",
        dependencies=[Depends(json_only)],
        responses=problems(400, 404, 415, 422, 503, 504),
    )
    async def change(channel_id: str, body: PromptChange) -> PromptAnswer:
        """Changes the prompt; the answer names the first frame under it."""
        channel = state.channel(channel_id)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await channel.set_prompt(body.prompt, body.mode)
        except Unavailable as error:
            raise HTTPException(503, str(error), RETRY) from error
        except PromptRefused as error:
            raise HTTPException(422, str(error)) from error
        except TimeoutError as error:
            raise HTTPException(504, f"The engine did not answer within {ANSWER_TIMEOUT_S:.0f} s.", RETRY) from error

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


async def _stream(channel: Channel, address: str, stopping: asyncio.Event) -> AsyncIterator[str]:
    with channel.events.listen(address) as listener:
        yield _event("state", channel.report_json())
        while not stopping.is_set() and not listener.cut_off:
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

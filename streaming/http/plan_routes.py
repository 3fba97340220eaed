"""Routes of what comes: the plan with its previews, and dropping it from a frame on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt

from engine.wire.understood import Understood
from streaming.http.access import address_of
from streaming.http.channel_bodies import Seed, whole
from streaming.http.channel_routes import ANSWER_TIMEOUT_S, answered, json_only
from streaming.http.openapi import problems
from streaming.http.state import ServerState

MOST_FRAMES = 1 << 53  # numbers that every program can read
JPEG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}
}
# Another picture has another name.
FOR_GOOD = {"Cache-Control": "private, max-age=3600, immutable"}


@dataclass(frozen=True, slots=True)
class PartReport:
    """About a second of what comes."""

    frame: int  # number of its first frame
    frames: int
    prompt: str
    rendered: bool
    picture: str | None  # address of a preview of its beginning; null before that is made, or of a model without
    words: dict[str, str]  # what it shows; empty before that is read, or of a model that cannot say


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What comes, from the frame on air on."""

    parts: list[PartReport]


@dataclass(frozen=True, slots=True)
class DiscardAnswer:
    """The answer to a plan that was dropped."""

    frame: int  # the first that is made anew
    seed: int  # from there on
    understood: Understood | None  # what is shown of the prompt with that seed; null from a model that cannot say


class Discard(BaseModel):
    """Body of POST /channels/{id}/plan/discard; without a seed the next one is taken."""

    model_config = ConfigDict(extra="forbid")

    frame: Annotated[StrictInt, Field(ge=0, lt=MOST_FRAMES), BeforeValidator(whole)]
    seed: Seed | None = None


def add(app: FastAPI, state: ServerState) -> None:
    """Adds the routes to the app."""
    path = "/channels/{channel_id}/plan"

    @app.get(path, responses=problems(404, 504))
    async def plan(channel_id: str, request: Request) -> PlanReport:
        """What is planned, with previews that are made when there is time; look again to see more of them."""
        folder = f"/channels/{quote(channel_id, safe='')}/plan"
        async with answered(ANSWER_TIMEOUT_S):
            parts = await state.channel(channel_id).plan.parts()
        reports = []
        for part in parts:
            picture = address_of(request, f"{folder}/{part.picture}.jpg") if part.picture else None
            reports.append(PartReport(part.frame, part.frames, part.prompt, part.rendered, picture, part.words))
        return PlanReport(reports)

    @app.get(path + "/{picture}.jpg", response_class=Response, responses=JPEG | problems(404))
    async def preview(channel_id: str, picture: str) -> Response:
        """A preview as JPEG."""
        still = await state.channel(channel_id).plan.jpeg(picture)
        if still is None:
            raise HTTPException(404, "There is no such preview any more; GET the plan for those that are there.")
        return Response(still.jpeg, 200, FOR_GOOD, media_type="image/jpeg")

    @app.post(path + "/discard", dependencies=[Depends(json_only)], responses=problems(400, 404, 409, 415, 422, 504))
    async def discard(channel_id: str, body: Discard) -> DiscardAnswer:
        """Drops what comes from a frame on, rendered or not, and plans it anew; what was on air is refused."""
        async with answered(ANSWER_TIMEOUT_S, 409):
            made = await state.channel(channel_id).plan.discard(body.frame, body.seed)
        return DiscardAnswer(made.frame, made.seed, made.understood)

"""Bodies of the channels' routes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from engine.wire.prompt import LONGEST_PROMPT, check_prompt
from engine.wire.settings import MOST_STEPS, SEED_LIMIT, ChannelSettings

ID = "^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$"
# Of a journal: engine.live.journal_writer adds the time to that of an earlier one.
FOLDER = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}(\.[0-9]{8}-[0-9]{6}-[0-9]{6})?$"
MOST_START_BYTES = 20_000_000
MOST_BASE64 = -(-MOST_START_BYTES // 3) * 4  # characters
MOST_CHUNKS = 1 << 53  # the most that a number in JSON can tell
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


def whole(value: object) -> object:
    """5.0 is an integer in JSON's schemas."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Seed = Annotated[StrictInt, Field(ge=0, lt=SEED_LIMIT), BeforeValidator(whole)]
Steps = Annotated[StrictInt, Field(ge=1, le=MOST_STEPS), BeforeValidator(whole)]
Prompt = Annotated[str, AfterValidator(_prompt), WithJsonSchema(PROMPT_SCHEMA)]
Chunk = Annotated[StrictInt, Field(ge=0, lt=MOST_CHUNKS), BeforeValidator(whole)]


class FromChannel(BaseModel):
    """A chunk of the past of a channel that runs."""

    model_config = ConfigDict(extra="forbid")

    channel: Annotated[str, Field(pattern=ID)]
    chunk: Chunk


class FromJournal(BaseModel):
    """A chunk of a journal that the server keeps, by the name of its folder."""

    model_config = ConfigDict(extra="forbid")

    journal: Annotated[str, Field(pattern=FOLDER)]
    chunk: Chunk


def _given(value: object) -> object:
    """For what may be left out, and not be null."""
    if value is None:
        raise PydanticCustomError("null", "leave it out, or give a value")
    return value


def _beginning(schema: dict[str, Any]) -> None:
    """What the fields alone do not say: what may be together, and that these may not be null.

    By `not`, which generators of clients pass over; of `anyOf` they would make a class for each case.
    """
    neither = {"allOf": [{"not": {"required": [name]}} for name in ("prompt", "from")]}
    schema["not"] = {"anyOf": [neither, {"required": ["from", "start"]}]}
    for name in ("prompt", "from", "start"):
        field = schema["properties"][name]
        del field["default"]
        field["anyOf"] = [one for one in field["anyOf"] if one != {"type": "null"}]


class NewChannel(BaseModel):
    """Body of POST /channels: a prompt, or what it goes on from."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_beginning)

    id: Annotated[str, Field(pattern=ID)] | None = None
    prompt: Annotated[Prompt | None, BeforeValidator(_given)] = None
    from_: Annotated[FromChannel | FromJournal | None, BeforeValidator(_given), Field(alias="from")] = None
    start: Annotated[str | None, BeforeValidator(_given), Field(max_length=MOST_BASE64)] = None
    seed: Seed | None = None
    steps: Steps | Literal["auto"] = "auto"

    @model_validator(mode="after")
    def check(self) -> NewChannel:
        """Raises ValueError unless it says what the video begins with."""
        if self.prompt is None and self.from_ is None:
            raise PydanticCustomError("prompt", "give a prompt, or what to go on from")
        if self.start is not None and self.from_ is not None:
            raise PydanticCustomError("start", "a channel goes on from a file or from a chunk, not from both")
        return self

    def settings(self) -> ChannelSettings:
        """What the engine is asked for, but for what the channel goes on from."""
        seed = 0 if self.seed is None and self.from_ is None else self.seed
        return ChannelSettings(self.prompt, seed, None if self.steps == "auto" else self.steps)


class ChannelChange(BaseModel):
    """Body of PATCH /channels/{id}; what is left out or null stays as it is."""

    model_config = ConfigDict(extra="forbid")

    prompt: Prompt | None = None
    seed: Seed | None = None
    mode: Literal["flow", "cut"] = "flow"
    paused: StrictBool | None = None

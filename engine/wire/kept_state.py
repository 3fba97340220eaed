"""What a channel's next engine process needs beside the snapshot of its video: a record of plain values, as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Promise:
    """A change that was answered and is not in the snapshot yet."""

    request: int
    prompt: str
    seed: int | None  # from there on; None keeps the one before
    mode: str  # "flow" or "cut"
    latent: int  # first latent of the chunk that it begins with
    frame: int  # that was answered


@dataclass(frozen=True, slots=True)
class KeptState:
    """A channel between two chunks, and what came since."""

    channel: str
    preset: str
    weights: str  # digest; empty where the model has no files
    prompt: str  # of the next chunk
    seed: int
    steps: int | None  # of a chunk, where the channel was made with a number
    chunk: int  # number of the next one
    frame: int  # first one of the next chunk that nobody has seen in another version
    snapshot: str | None = None  # file beside this one; None in memory
    running: tuple[int, int] | None = None  # denoising steps and threads of the next chunk, once it began
    costs: tuple[float, float, float, float] | None = None  # seconds: planning, opening, a step, a slice of a chunk
    tries: int = 0  # processes that began with it and ended before the next chunk was done
    promises: tuple[Promise, ...] = ()  # in the order in which they come true
    picture: str = "small"  # one of PICTURES

    def to_json(self) -> bytes:
        return json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, text: bytes) -> KeptState:
        """Raises ValueError, in words, for a record of another format, or one that is damaged."""
        try:
            fields = json.loads(text)
            form = fields.pop("format")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"it is damaged ({error})") from error
        if form != FORMAT:
            raise ValueError(f"it has format {form!r}, and this version reads {FORMAT}")
        try:
            promises = tuple(Promise(**promise) for promise in fields.pop("promises"))
            pairs = {name: None if fields[name] is None else tuple(fields[name]) for name in ("running", "costs")}
            kept = cls(**fields | pairs, promises=promises)
            kept._check()
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"it is damaged ({error})") from error
        return kept

    def _check(self) -> None:
        for name in ("channel", "preset", "weights", "prompt", "picture"):
            _text(getattr(self, name))
        for number in (self.seed, self.chunk, self.frame, self.tries, self.steps or 1, *(self.running or ())):
            _whole(number)
        if self.running is not None and (len(self.running) != 2 or min(self.running) < 1):
            raise ValueError(f"{self.running!r} are no steps and threads")
        if self.costs is not None and (len(self.costs) != 4 or not all(0 <= cost < 1e6 for cost in self.costs)):
            raise ValueError(f"{self.costs!r} are no seconds of a chunk")
        # A name, lest it leads elsewhere.
        if self.snapshot is not None and (_text(self.snapshot).startswith(".") or "/" in self.snapshot):
            raise ValueError(f"{self.snapshot!r} is no name of a file beside it")
        for promise in self.promises:
            _text(promise.prompt), _text(promise.mode)
            for number in (promise.request, promise.latent, promise.frame, promise.seed or 0):
                _whole(number)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _whole(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 62:
        raise ValueError(f"{value!r} is no number from 0 on")

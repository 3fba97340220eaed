"""What a channel's next engine process needs beside the snapshot of its video: a record of plain values, as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from engine.wire import plain

FORMAT = 1
PLAN = "plan"  # a plan that was dropped
PROMISED = ("flow", "cut", PLAN)


@dataclass(frozen=True, slots=True)
class Promise:
    """A change that was answered and is not in the snapshot yet."""

    request: int
    prompt: str
    seed: int | None  # from there on; None keeps the one before
    mode: str  # one of PROMISED
    latent: int  # first latent of the chunk that it begins with
    frame: int  # that was answered

    def check(self) -> None:
        """Raises ValueError for a field that is of another kind or out of range."""
        plain.prompt(self.prompt)
        if self.mode not in PROMISED:
            raise ValueError(f"mode {self.mode!r} is none of {', '.join(PROMISED)}")
        if self.seed is not None or self.mode == PLAN:
            plain.seed(self.seed)
        for number in (self.request, self.latent, self.frame):
            plain.whole(number)


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
    tries: int = 0  # processes that began with it and ended by themselves before the next chunk was done
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
            raise ValueError(f"it is damaged ({plain.one_line(error)})") from error
        if form != FORMAT:
            raise ValueError(f"it has format {form!r}, and this version reads {FORMAT}")
        try:
            promises = tuple(Promise(**promise) for promise in fields.pop("promises"))
            pairs = {name: None if fields[name] is None else tuple(fields[name]) for name in ("running", "costs")}
            kept = cls(**fields | pairs, promises=promises)
            kept._check()
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"it is damaged ({plain.one_line(error)})") from error
        return kept

    def _check(self) -> None:
        for name in (self.channel, self.preset, self.weights, self.picture):
            plain.text(name)
        plain.prompt(self.prompt), plain.seed(self.seed)
        for number in (self.chunk, self.frame, self.tries):
            plain.whole(number)
        if self.steps is not None:
            plain.steps(self.steps)
        if self.running is not None:
            steps, threads = self.running
            plain.steps(steps), plain.threads(threads)
        if self.costs is not None and (len(self.costs) != 4 or not all(0 <= cost < 1e6 for cost in self.costs)):
            raise ValueError(f"{self.costs!r} are no seconds of a chunk")
        if self.snapshot is not None:
            plain.file_name(self.snapshot)
        for promise in self.promises:
            promise.check()

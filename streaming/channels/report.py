"""What is told of a channel: its report, the answer to a change, and figures of the last chunks. No I/O."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import median

from engine.wire.messages import ChunkDone
from engine.wire.understood import Understood

CHUNKS_KEPT = 8  # over which the real-time factor is taken
REPORT_S = 0.1  # a report that is kept is at most so old


@dataclass(slots=True)
class PromptReport:
    """A prompt of the channel and the first frame under it."""

    prompt: str
    frame: int | None  # None for one that was replaced before it had a place
    shown: bool = False
    replaced_by: str | None = None  # the prompt that came in its place: it is never shown
    unread: tuple[str, ...] = ()  # words of it that have no effect
    seed: int = 0
    understood: Understood | None = None  # what is shown of it; None before the engine said, or if it cannot

    def answer(self, frame: int | None, eta_s: float | None) -> ChangeAnswer:
        """The answer to a change that leads to it."""
        return ChangeAnswer(self.prompt, self.seed, frame, eta_s, self.replaced_by, self.unread, self.understood)


@dataclass(frozen=True, slots=True)
class ChangeAnswer:
    """The answer to a change."""

    prompt: str
    seed: int
    frame: int | None  # first frame under the prompt; None if another came in its place
    eta_s: float | None  # until that frame is on air, if someone watches and the video does not stall
    replaced_by: str | None  # the prompt that came in its place: this one is never shown
    unread: tuple[str, ...]  # words of it that have no effect
    understood: Understood | None  # what is shown of it; None if it was replaced, or from a model that cannot say


@dataclass(frozen=True, slots=True)
class ChunkReport:
    """The last finished chunk: its number, milliseconds by stage, and the numbers of threads that computed it."""

    index: int
    ms: dict[str, float]
    threads: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChannelReport:
    """State of a channel as people and pages see it. Sizes are None before the engine is ready."""

    id: str
    prompt: str
    seed: int
    preset: str
    width: int | None
    height: int | None
    fps: float | None
    state: str  # starting, live, paused, idle, stalled, restarting or failed
    error: str | None  # why it is stalled, restarting or failed
    frame: int | None  # number of the frame on air
    buffered_s: float
    viewers: int
    repeats: int
    realtime_factor: float | None
    steps: int | None
    progress: str | None  # what the engine is doing while starting
    chunk: ChunkReport | None
    prompts: list[PromptReport]
    no_journal: str | None = None  # why its journal is not written


class ReportText:
    """A report as JSON: made once after a change for all listeners, and anew when it is older than REPORT_S."""

    def __init__(self, report: Callable[[], ChannelReport], clock: Callable[[], float]) -> None:
        self._report, self._clock = report, clock
        self._text, self._made_s = "", float("-inf")

    def get(self) -> str:
        now_s = self._clock()
        if now_s - self._made_s >= REPORT_S:
            self._text, self._made_s = json.dumps(asdict(self._report())), now_s
        return self._text

    def change(self) -> None:
        """There is something new."""
        self._made_s = float("-inf")


@dataclass(slots=True)
class ChunkStats:
    """Rolling figures of the last chunks."""

    last: ChunkDone | None = None
    _factors: deque[float] = field(default_factory=lambda: deque(maxlen=CHUNKS_KEPT))

    def add(self, chunk: ChunkDone) -> None:
        self.last = chunk
        if chunk.compute_s > 0:
            self._factors.append(chunk.seconds_of_video / chunk.compute_s)

    @property
    def realtime_factor(self) -> float | None:
        """Seconds of video per second of computing, median of the last chunks; None before the first."""
        return round(median(self._factors), 3) if self._factors else None

    def report(self) -> ChunkReport | None:
        return ChunkReport(self.last.chunk, self.last.stage_ms, self.last.threads) if self.last else None

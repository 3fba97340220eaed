"""Notes of a measurement while it goes on: what a viewer saw, what it asked for, and what the server said meanwhile.

Times are seconds of one monotonic clock unless a name says milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from streaming.bench.change import Sketch
from streaming.media.marker import Mark


class BenchError(Exception):
    """The measurement cannot go on; the text says why, in one line."""


class Packets(NamedTuple):
    """Arrivals of the packets of one frame, retransmissions too."""

    first_s: float
    last_s: float
    size: int  # bytes of payload


class Arrival(NamedTuple):
    """A decoded frame."""

    at_s: float
    media_s: float  # its timestamp, of a clock that begins with the first frame
    mark: Mark | None  # its marker's content, None when it cannot be read
    sketch: Sketch
    packets: Packets | None
    size: tuple[int, int]  # width and height, pixels


@dataclass(slots=True)
class Change:
    """A prompt change that was asked for."""

    prompt: str
    sent_s: float
    answered_s: float | None = None
    frame: int | None = None  # the first under the prompt, as the server says; None where none says it
    mode: str = "flow"


class Rendered(NamedTuple):
    """News of the engine: all frames below `end` are rendered."""

    at_s: float
    end: int


class ChunkSeen(NamedTuple):
    """A chunk that was reported: when, and milliseconds by stage."""

    at_s: float
    ms: dict[str, float]


@dataclass(slots=True)
class Recording:
    """Notes while a viewer watches; times of samples, memory and computing count from `begin_s`."""

    begin_s: float
    end_s: float
    same_clock: bool  # the server's clock marks are on the viewer's own clock
    arrivals: list[Arrival]  # in the order they came
    changes: list[Change] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    samples: list[tuple[float, dict[str, Any]]] = field(default_factory=list)  # the channel's reports
    rendered: list[Rendered] = field(default_factory=list)
    chunks: list[ChunkSeen] = field(default_factory=list)  # those that were done meanwhile
    memory: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # MB by process
    computing: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # seconds by process
    encode_s: float | None = None  # mean of a frame
    rung_changes: int | None = None  # of the viewer's bit rate; None where it is not known
    stats: dict[str, float] = field(default_factory=dict)  # the receiver's own, at the end

    def until(self, end_s: float) -> Recording:
        """What was noted before a time."""

        def noted(series: dict[str, list[tuple[float, float]]]) -> dict[str, list[tuple[float, float]]]:
            before = {name: [one for one in many if one[0] < end_s - self.begin_s] for name, many in series.items()}
            return {name: many for name, many in before.items() if many}

        return replace(
            self,
            end_s=end_s,
            arrivals=[one for one in self.arrivals if one.at_s < end_s],
            samples=[one for one in self.samples if one[0] < end_s - self.begin_s],
            rendered=[one for one in self.rendered if one.at_s < end_s],
            chunks=[one for one in self.chunks if one.at_s < end_s],
            memory=noted(self.memory),
            computing=noted(self.computing),
        )

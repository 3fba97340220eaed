"""Videos of a known length, made by the same units as endless ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.live.generator import ChannelState, Generator
from engine.wire.frames import FrameChunk


@dataclass(frozen=True, slots=True)
class Change:
    """A prompt from the first hop on that begins at `frame` or later."""

    frame: int
    prompt: str


def film(
    generator: Generator, channel: ChannelState, frames: int, changes: Sequence[Change] = ()
) -> Iterator[FrameChunk]:
    """The next `frames` frames of a channel, in order; the last chunk is cut to fit."""
    waiting = sorted(changes, key=lambda change: change.frame)
    left = frames
    while left > 0:
        while waiting and waiting[0].frame <= channel.frame:
            generator.change(channel, waiting.pop(0).prompt)
        while generator.needs_plan(channel):
            generator.plan(channel)
        for unit in generator.hop(channel):
            unit.mark.wait()
            if unit.chunk is not None and left > 0:
                yield dataclasses.replace(unit.chunk, i420=unit.chunk.i420[:left])
                left -= unit.chunk.frames

"""Videos of a known length, made by the same units as endless ones."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from engine.live.channel_state import ChannelState
from engine.live.generator import Generator, Unit
from engine.wire.frames import FrameBatch


@dataclass(frozen=True, slots=True)
class Change:
    """A prompt from the first chunk on that begins at `frame` or later."""

    frame: int
    prompt: str


def generate_frames(
    generator: Generator, channel: ChannelState, frames: int, changes: Sequence[Change] = ()
) -> Iterator[FrameBatch]:
    """The next `frames` frames of a channel, in order; the last batch is cut to fit."""
    waiting = sorted(changes, key=lambda change: change.frame)
    left = frames
    while left > 0:
        while waiting and waiting[0].frame <= channel.next.frame:
            generator.change(channel, waiting.pop(0).prompt, channel.next)
        for batch in finished(next_chunk(generator, channel), left):
            left -= batch.frames
            yield batch


def next_chunk(generator: Generator, channel: ChannelState) -> Iterator[Unit]:
    """Plans as far as the next chunk needs, and makes it."""
    while generator.needs_plan(channel):
        yield generator.plan(channel)
    yield from generator.chunk(channel).units


def finished(units: Iterable[Unit], most: int = sys.maxsize) -> Iterator[FrameBatch]:
    """The frames that the units finish, `most` at most. All units are done, so that the video can go on."""
    for unit in units:
        unit.mark.wait()
        if unit.batch is not None and most > 0:
            yield dataclasses.replace(unit.batch, i420=unit.batch.i420[:most])
            most -= unit.batch.frames

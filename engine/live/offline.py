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
    """A prompt, and a seed if it is given.

    `flow`: from the first chunk on that begins at `frame` or later. `cut`: from `frame` on, where the frames were made
    already; that must be possible (`RenderState.open_from`).
    """

    frame: int
    prompt: str
    mode: str = "flow"
    seed: int | None = None


def generate_frames(
    generator: Generator, channel: ChannelState, frames: int, changes: Sequence[Change] = ()
) -> Iterator[FrameBatch]:
    """The next `frames` frames of a channel, in order; the last batch is cut to fit."""
    waiting = sorted(changes, key=lambda change: change.frame)
    begin = channel.next.frame
    end = begin + frames
    while begin < end:
        make_due(generator, channel, waiting, begin)
        stop = min([end, *(change.frame for change in waiting if change.mode == "cut")])
        for batch in finished(next_chunk(generator, channel)):
            first, last = max(begin - batch.index, 0), min(stop - batch.index, batch.frames)
            if first < last:
                begin = batch.index + last
                yield dataclasses.replace(batch, index=batch.index + first, i420=batch.i420[first:last])


def make_due(generator: Generator, channel: ChannelState, waiting: list[Change], begin: int) -> None:
    """Makes the first of the waiting changes that are due where frame `begin` comes next, and takes them off."""
    while waiting and _is_due(waiting[0], channel, begin):
        _make(generator, channel, waiting.pop(0))


def _is_due(change: Change, channel: ChannelState, begin: int) -> bool:
    """Whether a change is the next thing to do, where frame `begin` comes next."""
    return change.frame <= (begin if change.mode == "cut" else channel.next.frame)


def _make(generator: Generator, channel: ChannelState, change: Change) -> None:
    if change.mode == "cut":
        generator.rewind(channel, change.frame)
    generator.change(channel, change.prompt, channel.next, change.seed)


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

"""A channel that goes on from a chunk of a journal, with a plan, a journal and numbers of its own from there on."""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass, replace

from engine.live.channel_state import ChannelState
from engine.live.chunk import Unit
from engine.live.generator import Generator
from engine.live.journal import Beginning, Environment, Journal
from engine.live.replay import OTHER_PICTURES, ForkPoint, Replay, differences
from engine.wire.settings import ChannelSettings, ChannelStart, Fork

MOST_AGAIN_S = 60.0  # of video, from a snapshot to the chunk that is forked from


@dataclass(frozen=True, slots=True)
class Made:
    """A channel that can begin."""

    state: ChannelState
    settings: ChannelSettings  # with all that was not asked for
    steps: int | None = None  # of its first chunk, where they are given


def fork(
    generator: Generator, own: Environment, journal: Journal, settings: ChannelSettings
) -> abc.Generator[Unit, None, Made]:
    """Reads the journal on, makes what its chunk began with, and a channel that goes on from there.

    Without another prompt or seed the chunk's own plan is kept: its pictures are those of the journal.

    Raises:
        ValueError: the journal is of another model or has no such chunk, or the solver no such number of steps.
    """
    assert isinstance(settings.source, Fork), "what is forked is named"
    while journal.read():
        yield Unit("plan")
    for record in journal.records:
        if isinstance(record, Beginning):
            _check(record.environment, own)
    point = yield from Replay(generator, journal).before(settings.source.chunk, MOST_AGAIN_S)
    return _go_on(generator, point, settings)


def _check(written: Environment, own: Environment) -> None:
    other = [words for name, words in differences(written, own).items() if name in OTHER_PICTURES]
    if other:
        raise ValueError(f"the journal is of another model ({'; '.join(other)}): fork it on a server with its weights")


def _go_on(generator: Generator, point: ForkPoint, settings: ChannelSettings) -> Made:
    rendered, record = point.state, point.record
    prompt = record.prompt if settings.prompt is None else settings.prompt
    seed = record.seed if settings.seed is None else settings.seed
    same = (prompt, seed) == (record.prompt, record.seed)
    with generator.model.computing():
        rendered.text, rendered.seed = generator.model.text.embed(prompt, seed), seed
    rendered.steps = generator.start(rendered.text, seed, settings.steps).steps
    # Nothing before it can be made anew: that is another channel's video.
    rendered.past, rendered.open_from = [], record.place.frame
    kept = record.parts if same else ()
    earlier = [part for part in point.parts if part.start not in {one.start for one in kept}]
    state = generator.go_on(rendered, prompt, [*earlier, *kept])
    if not same:
        generator.change(state, prompt, state.next, seed)
    start = ChannelStart(record.place.frame, record.place.chunk)
    steps = record.steps if same and settings.steps is None else None
    return Made(state, replace(settings, prompt=prompt, seed=seed, start=start, source=None), steps)

"""Renders once, when there is time, what the first cut would have to record: chunks in the steps that cuts take.

A CPU records denoising steps for each number of steps by themselves (`engine.runtime.graphs`): 0.2 s of `mini`'s first
chunk in two, for which somebody would wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from engine.live.chunk import Unit
from engine.live.controller import cut_steps
from engine.live.generator import Generator
from engine.live.live_channel import LiveChannel
from engine.runtime.cuda_streams import StreamEvent


class Practice:
    """Chunks that nobody sees, a unit at a time."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._units: Iterator[Unit] = iter(())
        self._mark = StreamEvent()
        self._known: set[int] = set()  # numbers of steps

    def work(self, channels: Iterable[LiveChannel]) -> bool:
        """Does a unit for the cuts of these channels; False if there is none to do now."""
        if not self._mark.done:
            return False
        unit = next(self._units, None) or self._begin(channels)
        if unit is None:
            return False
        self._mark = unit.mark
        return True

    def _begin(self, channels: Iterable[LiveChannel]) -> Unit | None:
        for channel in channels:
            for steps in cut_steps(channel.least_steps, channel.state.steps):
                if steps != channel.state.steps and steps not in self._known:
                    self._known.add(steps)
                    self._units = self._generator.practise(channel.state, steps)
                    return next(self._units)
        return None

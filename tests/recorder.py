"""Stands in for CUDA graphs: runs captured work again, and fills the places of its first outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.runtime.graphs import GraphRecorder
from engine.runtime.pytree import leaves


class FakeRecorder(GraphRecorder):
    """Counts what a graph would do. Work runs more than once before it counts, as for a warm-up."""

    def __init__(self) -> None:
        self.records = self.replays = 0

    def record(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        self.records += 1
        work()
        outputs = work()

        def replay() -> None:
            self.replays += 1
            for place, made in zip(leaves(outputs), leaves(work()), strict=True):
                place.copy_(made)

        return outputs, replay

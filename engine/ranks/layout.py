"""Which rank does what. Ranks are numbered from 0; 0 is the process that the caller started."""

from __future__ import annotations

from dataclasses import dataclass

from engine.config import EngineConfig
from engine.perceptual.schedule import DiffusionSchedule

PIPELINE_RANKS = 3  # the fewest: one decodes, one plans, one renders


@dataclass(frozen=True, slots=True)
class RankLayout:
    """The work of so many ranks.

    Those that render form a grid: `rows` rows of guidance, in each `context` ranks that share the tokens of a window.
    Where `pipeline` is set rank 0 decodes, rank 1 plans and the others render, so that three chunks are made at a time;
    else rank 0 plans and decodes, and leads the rendering in which all take part.
    """

    ranks: int
    pipeline: bool
    rows: int

    @classmethod
    def of(cls, config: EngineConfig, ranks: int, pipeline: bool = False) -> RankLayout:
        """The layout for a preset.

        Raises:
            ValueError: there are too few ranks for a pipeline, or more than have work.
        """
        if pipeline and ranks < PIPELINE_RANKS:
            raise ValueError(f"a pipeline needs at least {PIPELINE_RANKS} ranks, not {ranks}: leave out --pipeline")
        rendering = ranks - 2 * pipeline
        guided = isinstance(config.schedule, DiffusionSchedule)
        layout = cls(ranks, pipeline, rows=2 if guided and rendering % 2 == 0 else 1)
        heads = config.renderer.dit.heads
        if layout.context > heads:
            raise ValueError(
                f"{layout.context} ranks cannot share the {heads} attention heads of preset {config.name!r}: give fewer"
            )
        return layout

    @property
    def rendering(self) -> list[int]:
        """The ranks that render; the first of them leads."""
        return list(range(2 * self.pipeline, self.ranks))

    @property
    def context(self) -> int:
        """Ranks that share the tokens of a window."""
        return (self.ranks - 2 * self.pipeline) // self.rows

    def row(self, number: int) -> list[int]:
        """The ranks of a row of guidance: row 0 is without the text, if there are two."""
        return self.rendering[number * self.context : (number + 1) * self.context]

    @property
    def decoder(self) -> int:
        """The rank that makes frames of latents, and holds the file."""
        return 0

    @property
    def planner(self) -> int:
        """The rank that writes the plan."""
        return int(self.pipeline)

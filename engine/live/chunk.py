"""A chunk that is being made, cut into units of work."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from torch import Tensor

from engine.live.channel_state import Place
from engine.live.plan_writer import PlanPart
from engine.runtime.cuda_streams import StreamEvent
from engine.wire.frames import FrameBatch


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of work that was done."""

    stage: str  # "plan", "render" or "vae"
    batch: FrameBatch | None = None  # frames it finished
    mark: StreamEvent = StreamEvent()  # the next unit of the chunk finds its work done when this is done
    step: bool = False  # whether it is one of the chunk's denoising steps
    tokens: int = 0  # that it decided


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk that is being made. Its state advances when `units` come to their end."""

    start: Place
    end: Place  # where the next chunk begins
    steps: int
    parts: list[PlanPart]  # of the plan, which it reads
    units: Generator[Unit, None, Tensor]  # returns its latents, [1, T, C, H, W] float32

"""One channel of the engine process: its video, how far that is delivered, and what it costs."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace

import torch

from engine.live.channel_state import ChannelState, Place
from engine.live.controller import CostMeter, Costs, choose_steps
from engine.live.generator import Chunk, Unit
from engine.live.journal_writer import ChannelJournal
from engine.live.plan_writer import GOP
from engine.live.rewind import slices_again
from engine.live.state_keeper import ChannelKeeper
from engine.runtime.cuda_streams import StreamEvent
from engine.wire.frames import FrameBatch
from engine.wire.messages import ChunkDone, DiscardPlan, SetPrompt


@dataclass(slots=True)
class Spent:
    """What a chunk cost so far, and the planning since the chunk before it."""

    begun_s: float = 0.0  # when the chunk began
    stage_s: dict[str, float] = field(default_factory=dict)  # computing, by stage
    steps_s: float = 0.0  # the part of rendering that is denoising steps
    slices: int = 0
    threads: list[int] = field(default_factory=list)  # that computed it, in turn


@dataclass(slots=True)
class LiveChannel:
    """One video and how far it is delivered."""

    name: str
    state: ChannelState
    keeper: ChannelKeeper
    shown: int  # number of the next frame to show
    delivered: int  # number of the next frame to put into the ring
    meter: CostMeter  # of all channels
    least_steps: int  # that a chunk may take; the most are `state.steps`
    first: int = field(init=False)  # number of the first frame that can be told of
    paused: bool = True  # its media clock stands
    shown_s: float = 0.0  # when the last frame went on air
    wanted_from: int = 0  # number of the first frame that is not there yet or was dropped
    new_from: int = 0  # likewise, as far as this video goes: an engine process before may have made more of it
    earlier: int = 0  # frames above the low mark at which a chunk begins, until there are new frames
    slots: set[int] = field(default_factory=set)  # of the ring, whose frames are not all shown
    chunk: Chunk | None = None  # being made
    batch: FrameBatch | None = None  # finished, and waiting for a slot
    mark: StreamEvent = field(default_factory=StreamEvent)  # until it is done, the device is at work for this chunk
    spent: Spent = field(default_factory=Spent)
    stretch: float = 1.0  # elapsed time to computing time of the last chunk, until its first frames
    next_steps: int | None = None  # of the next chunk, where that is chosen already
    planned_under: SetPrompt | None = None  # the prompt that begins with the next chunk, if one does
    waiting: SetPrompt | None = None  # the prompt for the chunk after that
    cutting: SetPrompt | DiscardPlan | None = None  # a cut that waits for frames
    replanned: bool = False  # the plan of the next chunk was dropped on demand, and is written anew
    looked_s: float = -math.inf  # when somebody looked at what comes
    pictures: dict[int, tuple[GOP, int]] = field(default_factory=dict)  # of semantic frames: their numbers
    # Of GOPs, by the first frame: from how many frames they were read, and what they say.
    words: dict[int, tuple[GOP, int, dict[str, str]]] = field(default_factory=dict)
    journal: ChannelJournal | None = None

    def __post_init__(self) -> None:
        self.first = self.shown

    @property
    def buffered(self) -> int:
        """Frames in the ring that are not shown yet."""
        return self.delivered - self.shown

    @property
    def next(self) -> Place:
        """The start of the next chunk."""
        return self.chunk.end if self.chunk is not None else self.state.next

    def renders(self, low_mark: int) -> bool:
        """Whether it renders now: a chunk begins where `low_mark` frames are buffered, and `earlier` more, or fewer."""
        return self.batch is None and (self.chunk is not None or self.buffered <= low_mark + self.earlier)

    def costs(self) -> Costs | None:
        """What its next chunk will cost; None before anything was measured."""
        return self.meter.costs(self.stretch, slices_again(self.state))

    def choose_steps(self, fps: float) -> int:
        """Steps of the chunk that begins now."""
        chosen, self.next_steps = self.next_steps, None
        if chosen is not None:
            return chosen
        if self.paused:
            return self.state.steps
        return choose_steps(self.buffered / fps, self.costs(), self.least_steps, self.state.steps)

    def begin(self, chunk: Chunk) -> None:
        """Its next chunk begins."""
        self.chunk, self.planned_under, self.replanned = chunk, None, False
        self.spent.begun_s = time.monotonic()

    def spend(self, unit: Unit, seconds: float) -> None:
        """Counts a unit's compute, and notes the number of threads that it took."""
        spent = self.spent
        spent.stage_s[unit.stage] = spent.stage_s.get(unit.stage, 0.0) + seconds
        if spent.threads[-1:] != [torch.get_num_threads()]:
            spent.threads.append(torch.get_num_threads())
        if unit.stage == "plan":
            self.meter.planned(seconds, unit.tokens)
        elif unit.step:
            spent.steps_s += seconds
        if unit.batch is not None:
            self._receive(unit.batch)

    def _receive(self, batch: FrameBatch) -> None:
        spent = self.spent
        spent.slices += 1
        if spent.slices == 1 and not self.paused:
            computed_s = spent.stage_s["render"] + spent.stage_s["vae"]
            self.stretch = max(1.0, (time.monotonic() - spent.begun_s) / computed_s)
        # Behind a cut a chunk begins where a slice does; what comes before the cut was on air in another version.
        before = max(0, self.wanted_from - batch.index)
        if before < batch.frames:
            self.earlier = 0
            self.batch = replace(batch, index=batch.index + before, i420=batch.i420[before:])

    def finish(self, fps: float) -> ChunkDone:
        """The chunk is done; what it cost."""
        chunk, spent = self.chunk, self.spent
        assert chunk is not None, "only a chunk that is being made is finished"
        stage_s = spent.stage_s
        self.meter.rendered(
            stage_s["render"] - spent.steps_s, spent.steps_s / chunk.steps, stage_s["vae"] / spent.slices
        )
        self.chunk, self.spent = None, Spent()
        seconds = (chunk.end.frame - chunk.start.frame) / fps
        stage_ms = {stage: 1000 * seconds for stage, seconds in stage_s.items()}
        compute_s, threads = sum(stage_s.values()), tuple(spent.threads)
        return ChunkDone(self.name, chunk.start.chunk, chunk.steps, seconds, compute_s, stage_ms, threads)

    def abandon_chunk(self) -> None:
        """Ends the chunk that is being made, and drops frames that wait for a slot."""
        if self.chunk is not None:
            self.chunk.units.close()
        self.chunk = self.batch = None
        self.spent = Spent()

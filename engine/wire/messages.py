"""What the server process and the engine process say to each other over the control pipe.

Imports no torch, so that the server process can use it. Every message is a frozen dataclass of plain values, pickled
by `multiprocessing.connection.Connection`. Frames do not travel here: `ChunkReady` names the ring slot that holds them.
Frame numbers count from 0 since the channel's video began and go on across restarts of the engine process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

SEED_LIMIT = 1 << 32  # seeds are 32 bit, so that they fit any generator


class FrameRing(Protocol):
    """The engine's end of the shared ring: slots are credits, granted again by `Shown.freed_slots`."""

    @property
    def slot_bytes(self) -> int:
        """Size of one slot in bytes."""
        ...

    def acquire(self) -> int | None:
        """Takes a free slot, or None when every slot holds frames that were not shown yet."""
        ...

    def write(self, slot: int, i420: npt.NDArray[np.uint8]) -> None:
        """Copies frames [F, 3H/2, W] uint8 into an acquired slot. Raises ValueError when they do not fit."""
        ...

    def release(self, slots: Sequence[int]) -> None:
        """Gives slots back: their frames were shown, or were never announced."""
        ...


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Everything an engine process needs to begin, or to go on after a crash, with one channel."""

    preset: str
    weights: str | None  # folder or hub id; None means the preset's own
    device: str  # "auto", "cpu" or "cuda"
    channel: str
    prompt: str
    seed: int
    first_frame: int  # number of the first frame to deliver: 0, or where a crashed engine stopped
    first_hop: int  # number of the first hop, which keys the noise together with the seed
    low_mark_frames: int  # a hop starts only when at most this many rendered frames are not yet shown
    memory_gb: float | None = None  # most of the device's memory to use; None plans nothing
    steps: int | None = None  # denoising steps of a hop; None means the preset's own
    reuse: float = 0.0  # as in `EngineConfig`

    def __post_init__(self) -> None:
        if not 0 <= self.seed < SEED_LIMIT:
            raise ValueError(f"seed is {self.seed}; it must be at least 0 and below {SEED_LIMIT}")
        if self.first_frame < 0 or self.first_hop < 0:
            raise ValueError(f"first_frame {self.first_frame} and first_hop {self.first_hop} must be at least 0")
        if self.low_mark_frames < 1:
            raise ValueError(f"low_mark_frames is {self.low_mark_frames}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class SetPrompt:
    """Asks for a new prompt; answered by `PromptSet` or `Refused` with the same request number."""

    request: int
    channel: str
    prompt: str
    mode: str  # "flow": frames already rendered are kept


@dataclass(frozen=True, slots=True)
class Shown:
    """Progress on air, sent after every frame shown for the first time (a repeat is not news)."""

    channel: str
    frame: int  # number of the next frame to show: all frames below it were shown
    freed_slots: tuple[int, ...]  # slots whose frames were all shown, each named once


@dataclass(frozen=True, slots=True)
class Stop:
    """Asks the engine to finish its unit and exit. A closed pipe means the same."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far loading and warm-up are."""

    stage: str
    fraction: float  # 0 to 1 of the stage


@dataclass(frozen=True, slots=True)
class Ready:
    """Warm: sent once, before the first `ChunkReady`."""

    width: int  # pixels
    height: int  # pixels
    fps: float
    warm_up_s: float
    preset: str
    steps: int  # denoising steps per hop


@dataclass(frozen=True, slots=True)
class PromptSet:
    """The prompt was accepted; `frame` is the first frame rendered under it."""

    request: int
    channel: str
    prompt: str
    frame: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A request cannot be done; `reason` is one sentence for the person who asked."""

    request: int
    reason: str


@dataclass(frozen=True, slots=True)
class ChunkReady:
    """A slot of the ring holds finished frames [frames, 3H/2, W] uint8, I420."""

    channel: str
    slot: int
    index: int  # number of the first frame in the slot
    hop: int
    frames: int
    created_s: float  # time.monotonic() of the engine process; the clock is the same for both processes
    prompt: str


@dataclass(frozen=True, slots=True)
class HopDone:
    """Figures of a finished hop. `compute_s` excludes waiting for credits."""

    channel: str
    hop: int
    steps: int
    seconds_of_video: float
    compute_s: float
    stage_ms: dict[str, float]  # by stage: "plan", "render", "vae", ...


@dataclass(frozen=True, slots=True)
class Failed:
    """The engine cannot go on; `error` is one line that says what to do. The process exits after sending it."""

    error: str


ToEngine = SetPrompt | Shown | Stop
FromEngine = Progress | Ready | PromptSet | Refused | ChunkReady | HopDone | Failed

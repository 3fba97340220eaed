"""Settings of an engine process, and of each channel that it makes. Plain values, so that they cross the pipe."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import SupportsIndex

SEED_LIMIT = 1 << 32  # seeds are 32 bit, so that they fit any generator
PICTURES = ("large", "small")  # sizes of pictures that a preset may have
MOST_STEPS = 1000


def check_seed(seed: SupportsIndex) -> int:
    """The seed, an int of any library, as Python's: noise is keyed by how it is written. Raises ValueError."""
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < SEED_LIMIT:
        raise ValueError(f"seed {seed!r} is not a whole number from 0 to {SEED_LIMIT - 1}")
    return number


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Model and device of an engine process, loaded once for all of its channels."""

    preset: str
    weights: str | None = None  # folder or hub id; None means the preset's own
    device: str = "auto"  # "auto", "cpu" or "cuda"
    memory_gb: float | None = None  # most of the device's memory to use, 10^9 bytes; None keeps everything there
    log_level: str = "info"
    state: str | None = None  # folder for journals and snapshots of the channels; None keeps none
    spare: bool = False  # it is warmed up beside one that serves, at low priority
    warm_up: bool = True  # False where viewers wait: the first chunks are slower
    picture: str | None = "small"  # one of PICTURES; None: the largest for which there is time
    number: int = 0  # of several engines: each takes another GPU, as far as there are several
    ranks: int = 1  # processes that render together, a GPU each


@dataclass(frozen=True, slots=True)
class ChannelStart:
    """The place in its video where a channel begins: 0, or where a crashed engine stopped."""

    frame: int = 0  # number of the first video frame
    chunk: int = 0  # number of the first chunk, which keys the noise together with the seed
    shown: int | None = None  # number of the next frame to show, where some before `frame` are there
    goes_on: bool = False  # another process made it up to there; its state may be kept
    from_disk: bool = False  # by another server, which left it in the state folder
    killed: bool = False  # it was killed from outside, or its machine is gone: its end is no fault of that state

    def __post_init__(self) -> None:
        if self.frame < 0 or self.chunk < 0:
            raise ValueError(f"a channel cannot start at frame {self.frame}, chunk {self.chunk}: both count from 0")


@dataclass(frozen=True, slots=True)
class Fork:
    """A chunk of a journal: a video goes on from what was there before it."""

    folder: str  # of the journal, within the state folder
    chunk: int


@dataclass(frozen=True, slots=True)
class StartFile:
    """A picture or video that a video goes on from."""

    path: str


@dataclass(frozen=True, slots=True)
class ChannelSettings:
    """Prompt, seed, steps and start of one endless video."""

    prompt: str | None  # None: that of the video which it forks
    seed: int | None = 0  # likewise
    steps: int | None = None  # denoising steps of a chunk; None: as many of the preset's own as there is time for
    start: ChannelStart = ChannelStart()
    source: Fork | StartFile | None = None  # what it goes on from; a fork says where it starts, too

    def __post_init__(self) -> None:
        if self.seed is not None and not 0 <= self.seed < SEED_LIMIT:
            raise ValueError(f"seed is {self.seed}; it must be at least 0 and below {SEED_LIMIT}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps is {self.steps}; a chunk takes at least 1")

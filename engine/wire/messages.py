"""Messages between the server process and the engine process, over one pipe.

Every message is a frozen dataclass of plain values, pickled by `multiprocessing.connection.Connection`. Frames do not
travel here: `FramesReady` names the ring slot that holds them. Frame numbers count from 0 since the channel's video
began and go on across restarts of the engine process.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.wire.settings import ChannelSettings
from engine.wire.understood import Understood

HEARTBEAT_S = 1.0


@dataclass(frozen=True, slots=True)
class OpenChannel:
    """Asks for a channel's video; answered by `ChannelOpened`, then its frames follow as `FramesReady`, or by
    `ChannelRefused`."""

    channel: str
    settings: ChannelSettings
    area: int = 0  # of the state memory, the channel's own


@dataclass(frozen=True, slots=True)
class CloseChannel:
    """Ends a channel's video, whose frames nobody looks at any more; answered by `ChannelClosed`."""

    channel: str


@dataclass(frozen=True, slots=True)
class ReleaseChannel:
    """Asks to stop making a channel's video, which another engine goes on with; answered by `ChannelReleased`. Its
    slots keep their frames until `CloseChannel`."""

    channel: str


@dataclass(frozen=True, slots=True)
class Paused:
    """The channel's media clock stands, or goes on. A channel begins paused."""

    channel: str
    paused: bool


@dataclass(frozen=True, slots=True)
class SetPrompt:
    """Asks for a new prompt or seed; answered by `PromptSet` or `Refused` with the same request number, and by
    `PromptReplaced` later if another prompt takes its place."""

    request: int
    channel: str
    prompt: str
    mode: str  # "flow": frames already rendered are kept; "cut": those that are not shown yet are dropped
    seed: int | None = None  # from there on; None keeps the channel's


@dataclass(frozen=True, slots=True)
class LookAhead:
    """Asks what comes; answered by `PlanAhead`. For a while `PlanPicture` messages follow, when there is time."""

    channel: str


@dataclass(frozen=True, slots=True)
class DiscardPlan:
    """Asks to drop what comes from a frame on and to plan it anew; answered by `PlanDiscarded` or `Refused` with the
    same request number. It is the same prompt's, but that `PromptReplaced` may follow as for a cut."""

    request: int
    channel: str
    frame: int
    seed: int | None = None  # from there on; None stands for the one after the channel's


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
    """Progress of loading and warm-up."""

    stage: str
    fraction: float  # 0 to 1 of the stage


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The process is alive: sent every HEARTBEAT_S, whatever it computes."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Warm: sent once, before the first `FramesReady`."""

    width: int  # pixels
    height: int  # pixels
    fps: float
    warm_up_s: float
    preset: str
    steps: int  # denoising steps of a chunk, where a channel's settings name none
    picture: str = "small"  # one of PICTURES

    @property
    def video(self) -> tuple[int, int, float]:
        """Width, height and frames a second: what viewers notice if it changes."""
        return self.width, self.height, self.fps


@dataclass(frozen=True, slots=True)
class ChannelOpened:
    """The channel's video begins, or goes on."""

    channel: str
    unread: tuple[str, ...] = ()  # words of its prompt that have no effect
    understood: Understood | None = None  # what is shown of it; None from a model that cannot say
    went_on: bool = False  # from the state that another process left; changes that it answered hold
    settings: ChannelSettings | None = None  # of one with a source: where it begins, and what it was not told


@dataclass(frozen=True, slots=True)
class ChannelRefused:
    """The channel cannot be made; `reason` is one sentence for the person who asked."""

    channel: str
    reason: str


@dataclass(frozen=True, slots=True)
class ChannelClosed:
    """The channel is gone and its slots are free; no message before the next `OpenChannel` names it."""

    channel: str


@dataclass(frozen=True, slots=True)
class ChannelReleased:
    """The channel's state is kept, and this process writes it no more."""

    channel: str


@dataclass(frozen=True, slots=True)
class PromptSet:
    """The prompt was accepted; `frame` is the first frame rendered under it."""

    request: int
    channel: str
    prompt: str
    frame: int
    unread: tuple[str, ...] = ()  # words of the prompt that have no effect
    understood: Understood | None = None  # what is shown of it; None from a model that cannot say


@dataclass(frozen=True, slots=True)
class PromptReplaced:
    """A prompt that was accepted is not rendered: another took its place before its first frame."""

    request: int
    channel: str
    replaced_by: str


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """About a second of what comes."""

    frame: int  # number of its first frame
    frames: int
    rendered: bool
    words: dict[str, str]  # what its GOP shows; of a model that cannot say, and before it is read, none
    picture: int | None  # number of the `PlanPicture` that shows its beginning; None before that is made


@dataclass(frozen=True, slots=True)
class PlanAhead:
    """All that is planned, from the frame on air on, in order."""

    channel: str
    parts: tuple[PlannedPart, ...]


@dataclass(frozen=True, slots=True)
class PlanPicture:
    """A preview, drawn from the plan alone: I420 of the video's size, 37 kB of `mini`."""

    channel: str
    number: int  # each picture of a process has its own
    width: int  # pixels
    i420: bytes


@dataclass(frozen=True, slots=True)
class PlanDiscarded:
    """What comes from `frame` on is planned anew, with `seed`."""

    request: int
    channel: str
    frame: int
    seed: int
    understood: Understood | None = (
        None  # what is shown of the newest prompt with it; None from a model that cannot say
    )


@dataclass(frozen=True, slots=True)
class Refused:
    """A request cannot be done; `reason` is one sentence for the person who asked."""

    request: int
    channel: str
    reason: str


@dataclass(frozen=True, slots=True)
class FramesReady:
    """A slot of the ring holds finished frames [frames, 3H/2, W] uint8, I420."""

    channel: str
    slot: int
    index: int  # number of the first frame in the slot
    chunk: int
    frames: int


@dataclass(frozen=True, slots=True)
class FramesDropped:
    """Frames from `frame` on that were announced are not to be shown: others of these numbers follow."""

    channel: str
    frame: int


@dataclass(frozen=True, slots=True)
class ChunkDone:
    """Figures of a finished chunk. `compute_s` excludes waiting for credits."""

    channel: str
    chunk: int
    steps: int
    seconds_of_video: float
    compute_s: float
    stage_ms: dict[str, float]  # by stage: "plan", "render", "vae", ...
    threads: tuple[int, ...]  # that computed it, in turn; on a CPU they decide the last bits of its frames


@dataclass(frozen=True, slots=True)
class JournalStopped:
    """The channel goes on without its journal, or with it again."""

    channel: str
    reason: str | None  # None when it is written again


@dataclass(frozen=True, slots=True)
class Failed:
    """The engine cannot go on; `error` is one line that says what to do. The process exits after sending it."""

    error: str


ToEngine = OpenChannel | CloseChannel | ReleaseChannel | Paused | SetPrompt | LookAhead | DiscardPlan | Shown | Stop
ChannelMessage = (
    ChannelOpened
    | ChannelRefused
    | PromptSet
    | PromptReplaced
    | PlanAhead
    | PlanPicture
    | PlanDiscarded
    | Refused
    | FramesReady
    | FramesDropped
    | ChunkDone
    | JournalStopped
)
FromEngine = Heartbeat | Progress | Ready | ChannelMessage | ChannelClosed | ChannelReleased | Failed

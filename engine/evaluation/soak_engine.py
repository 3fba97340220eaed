"""An engine process as it serves, and in the server's place somebody who shows each frame as soon as it is there."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from types import TracebackType

import psutil

from engine.live.process import serve
from engine.wire.frames import FrameBatch
from engine.wire.messages import (
    ChannelOpened,
    ChannelRefused,
    Failed,
    FramesReady,
    JournalStopped,
    OpenChannel,
    Paused,
    PromptSet,
    Ready,
    Refused,
    SetPrompt,
    Shown,
    Stop,
    ToEngine,
)
from engine.wire.ring import RingConfig, RingReader, RingWriter
from engine.wire.settings import ChannelSettings, EngineSettings
from engine.wire.startup import follow_parent
from engine.wire.state_memory import StateMemory

SILENT_S = 300.0  # without a frame: the engine hangs
STOP_S = 5.0
LOOK_S = 0.02  # between two looks at its memory: what it gives back is in use again some 50 ms later

Target = Callable[[EngineSettings, RingWriter, Connection, StateMemory], None]


class SoakError(Exception):
    """The engine process did not go on; the text is one line that says why."""


def run_engine(settings: EngineSettings, ring: RingWriter, control: Connection, memory: StateMemory) -> None:
    """Runs in the engine process."""
    follow_parent()
    serve(settings, ring, control, memory)


class SoakEngine:
    """One channel of one engine process. A `with` block ends it."""

    def __init__(self, settings: EngineSettings, name: str, channel: ChannelSettings, target: Target = run_engine):
        context = multiprocessing.get_context("spawn")
        self._name, self._next = name, channel.start.frame
        self._ring, self._memory = RingReader(RingConfig()), StateMemory()
        self._pipe, theirs = context.Pipe()
        arguments = settings, self._ring.writer(), theirs, self._memory
        self._process = context.Process(target=target, args=arguments, name="engine")
        with theirs:
            self._process.start()
        self.went_on = False  # from the state that another process left
        self.memory_mb: list[float] = []  # resident, in 10^6 bytes, as it was seen; to be emptied
        self.wrong_frames = 0  # that were not the next one
        self.no_journal: str | None = None  # why it is not written
        self.under: int | None = None  # first frame under the prompt that was asked for last, once that is answered
        self._send(OpenChannel(name, channel))
        self._send(Paused(name, False))

    def frames(self) -> Iterator[FrameBatch]:
        """Finished frames in order, without end. Raises SoakError where none come any more."""
        heard_s, ready = time.monotonic(), None
        resident = psutil.Process(self._process.pid)
        while True:
            try:
                message = self._pipe.recv() if self._pipe.poll(LOOK_S) else None
            except (EOFError, OSError) as error:
                self._process.join(STOP_S)
                raise SoakError(f"the engine process ended with status {self._process.exitcode}") from error
            if ready is not None:
                self.memory_mb.append(resident.memory_info().rss / 1e6)
            match message:
                case FramesReady():
                    assert ready is not None, "frames come behind their size"
                    heard_s = time.monotonic()
                    planes = self._ring.frames(message.slot, message.frames, ready.height, ready.width)
                    self.wrong_frames += message.index != self._next
                    self._next = message.index + message.frames
                    yield FrameBatch(message.index, message.chunk, planes.copy())
                    self._send(Shown(self._name, self._next, (message.slot,)))
                case Ready():
                    ready, heard_s = message, time.monotonic()
                case ChannelOpened():
                    self.went_on = message.went_on
                case PromptSet():
                    self.under = message.frame
                case JournalStopped():
                    self.no_journal = message.reason
                case Failed(error=told) | ChannelRefused(reason=told) | Refused(reason=told):
                    raise SoakError(told)
            if time.monotonic() - heard_s > SILENT_S:
                raise SoakError(f"the engine process made no frame for {SILENT_S:.0f} s")

    def ask(self, number: int, prompt: str) -> None:
        """Asks for another prompt from the next chunk on."""
        self.under = None
        self._send(SetPrompt(number, self._name, prompt, "flow"))

    def figures(self) -> tuple[int, int]:
        """Of the process: open descriptors and threads."""
        process = psutil.Process(self._process.pid)
        return process.num_fds(), process.num_threads()

    def __enter__(self) -> SoakEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.is_alive():
            self._send(Stop())
            self._process.join(STOP_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()
        self._pipe.close()
        self._memory.close()
        self._ring.close()

    def _send(self, message: ToEngine) -> None:
        try:
            self._pipe.send(message)
        except OSError:
            # It has ended, which the next frame tells.
            return

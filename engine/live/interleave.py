"""The loop of the engine process: an asyncio loop that interleaves planning and rendering, one unit after another.

After each unit it reads its inbox, the control pipe, and then takes the next unit by deadline: rendering first while a
channel's buffer is low, then planning ahead, then waiting for a message.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field, replace

import torch

from engine.config import FRAMES_PER_LATENT
from engine.live.channel_state import ChannelState, Place
from engine.live.control_pipe import ControlPipe
from engine.live.generator import Chunk, Generator
from engine.runtime.cuda_streams import StreamEvent
from engine.runtime.threads import FIXED, ThreadChoice
from engine.wire.frames import FrameBatch
from engine.wire.messages import (
    ChunkDone,
    FramesReady,
    FromEngine,
    OpenChannel,
    PromptReplaced,
    PromptSet,
    Refused,
    SetPrompt,
    Shown,
    Stop,
    ToEngine,
)
from engine.wire.prompt import check_prompt
from engine.wire.ring import RingWriter

LOOK_AHEAD_S = 3.0  # of video, planned beyond the next chunk
LOW_MARK_S = 2.5  # of video: a chunk begins only when no more than this is rendered and not shown
DEVICE_POLL_S = 0.0005  # between two looks at the device's events, when there is nothing to launch

log = logging.getLogger(__name__)


@dataclass(slots=True)
class LiveChannel:
    """One video and how far it is delivered."""

    state: ChannelState
    shown: int  # number of the next frame to show
    delivered: int  # number of the next frame to put into the ring
    chunk: Chunk | None = None  # being made
    batch: FrameBatch | None = None  # finished, and waiting for a slot
    mark: StreamEvent = field(default_factory=StreamEvent)  # until it is done, the device is at work for this chunk
    spent_s: dict[str, float] = field(default_factory=dict)  # by stage, since the last chunk was finished
    threads: list[int] = field(default_factory=list)  # that computed since the last chunk was finished, in turn
    planned_under: SetPrompt | None = None  # the prompt that begins with the next chunk, if one does
    waiting: SetPrompt | None = None  # the prompt for the chunk after that

    @property
    def buffered(self) -> int:
        """Frames in the ring that are not shown yet."""
        return self.delivered - self.shown

    @property
    def next(self) -> Place:
        """The start of the next chunk."""
        return self.chunk.end if self.chunk is not None else self.state.next

    def spend(self, stage: str, seconds: float) -> None:
        """Counts compute of a stage, and notes the number of threads that it took."""
        self.spent_s[stage] = self.spent_s.get(stage, 0.0) + seconds
        if self.threads[-1:] != [torch.get_num_threads()]:
            self.threads.append(torch.get_num_threads())


class Interleaver:
    """Chooses units of the channels and speaks with the server; owns neither ring nor pipe."""

    def __init__(
        self,
        generator: Generator,
        ring: RingWriter,
        control: ControlPipe,
        threads: ThreadChoice = FIXED,
        low_mark_s: float = LOW_MARK_S,
    ) -> None:
        config = generator.model.config
        self._generator = generator
        self._ring = ring
        self._control = control
        self._threads = threads
        self._channels: dict[str, LiveChannel] = {}
        self._stopped = False
        self._heard = asyncio.Event()
        self._low_mark = round(low_mark_s * config.fps)  # frames
        self._look_ahead = config.chunk_length + round(LOOK_AHEAD_S * config.fps / FRAMES_PER_LATENT)  # semantic frames

    async def run(self) -> None:
        """Works until told to stop or until the server is gone."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._control.fileno(), self._heard.set)
        try:
            while not self._stopped:
                self._heard.clear()
                # Asked before: what the device finishes meanwhile must not be waited for.
                computing = not all(channel.mark.done for channel in self._channels.values())
                if self._work():
                    await asyncio.sleep(0)
                elif computing:
                    await asyncio.sleep(DEVICE_POLL_S)
                elif not self._threads.retry():
                    await self._heard.wait()
                # Not in the reader: it would lag one unit behind, and its errors would be lost.
                self.read_inbox()
        except (BrokenPipeError, ConnectionResetError):
            log.info("the server is gone")
        finally:
            loop.remove_reader(self._control.fileno())

    def _work(self) -> bool:
        """Does the most urgent unit; False if there is none to do."""
        channels = list(self._channels.items())
        for name, channel in channels:
            if channel.batch is not None:
                self._deliver(name, channel)
        for name, channel in sorted(channels, key=lambda item: item[1].buffered):
            if not channel.mark.done:
                continue
            if channel.batch is None and (channel.chunk is not None or channel.buffered <= self._low_mark):
                self._advance(name, channel)
                return True
        for _, channel in sorted(channels, key=lambda item: self._ahead(item[1])):
            if self._ahead(channel) < self._look_ahead:
                self._plan(channel)
                return True
        return False

    def _ahead(self, channel: LiveChannel) -> int:
        """Semantic frames that are planned and belong to no chunk yet."""
        return self._generator.planned(channel.state) - channel.next.latent

    def _advance(self, name: str, channel: LiveChannel) -> None:
        """The next unit towards the channel's next frame."""
        if channel.chunk is None:
            if self._generator.needs_plan(channel.state):
                self._plan(channel)
                return
            channel.chunk, channel.planned_under = self._generator.chunk(channel.state), None
        began_s = time.monotonic()
        unit = next(channel.chunk.units, None)
        if channel.waiting is not None and channel.planned_under is None:
            # Only now, since the chunk's first unit has read the text.
            self._apply(channel, channel.waiting)
            channel.waiting = None
        if unit is None:
            self._finish(name, channel, channel.chunk)
            return
        spent_s = time.monotonic() - began_s
        channel.spend(unit.stage, spent_s)
        channel.mark = unit.mark
        if unit.stage == "render":
            self._threads.spent(spent_s)
        if unit.batch is not None:
            channel.batch = unit.batch
            self._deliver(name, channel)

    def _plan(self, channel: LiveChannel) -> None:
        began_s = time.monotonic()
        unit = self._generator.plan(channel.state)
        channel.spend(unit.stage, time.monotonic() - began_s)

    def _deliver(self, name: str, channel: LiveChannel) -> None:
        """Puts the finished batch into the ring, if there is room."""
        batch = channel.batch
        assert batch is not None, "only finished frames are delivered"
        slot = self._ring.acquire()
        if slot is None:
            return
        self._ring.write(slot, batch.i420)
        self._send(FramesReady(name, slot, batch.index, batch.chunk, batch.frames))
        channel.delivered += batch.frames
        channel.batch = None

    def _finish(self, name: str, channel: LiveChannel, chunk: Chunk) -> None:
        spent_s, channel.spent_s = channel.spent_s, {}
        seconds = (chunk.end.frame - chunk.start.frame) / self._generator.model.config.fps
        stage_ms = {stage: 1000 * spent for stage, spent in spent_s.items()}
        compute_s, threads = sum(spent_s.values()), tuple(channel.threads)
        self._send(ChunkDone(name, chunk.start.chunk, chunk.steps, seconds, compute_s, stage_ms, threads))
        channel.chunk = None
        channel.threads.clear()

    def _send(self, message: FromEngine) -> None:
        self._control.send(message)

    def read_inbox(self) -> None:
        """Takes every message that waits in the pipe."""
        try:
            while not self._stopped and self._control.poll():
                self._handle(self._control.recv())
        except (EOFError, OSError):
            log.info("the server is gone")
            self._stopped = True

    def _handle(self, message: ToEngine) -> None:
        match message:
            case Stop():
                self._stopped = True
            case OpenChannel():
                self._open(message)
            case Shown():
                self._channels[message.channel].shown = message.frame
                self._ring.release(message.freed_slots)
            case SetPrompt():
                self._change(message)

    def _open(self, message: OpenChannel) -> None:
        settings, start = message.settings, message.settings.start
        if unread := self._generator.model.text.unread(settings.prompt):
            log.warning("not understood and left out of %r: %s", settings.prompt, ", ".join(unread))
        state = self._generator.open(settings.prompt, settings.seed, settings.steps, start.chunk, start.frame)
        self._channels[message.channel] = LiveChannel(state, start.frame, start.frame)

    def _change(self, request: SetPrompt) -> None:
        """Takes a prompt for the next chunk, or for the one after it if the next one's is being planned.

        So each chunk is planned under one prompt, however fast they come: the newest one that waits counts.
        """
        channel = self._channels.get(request.channel)
        reason = self._obstacle(request)
        if channel is None or reason is not None:
            self._send(Refused(request.request, request.channel, reason or f"there is no channel {request.channel!r}"))
            return
        request = replace(request, prompt=check_prompt(request.prompt))
        first = channel.next
        earlier = channel.planned_under
        if earlier is None or not self._generator.begun(channel.state, first):
            self._apply(channel, request)
        else:
            earlier, channel.waiting = channel.waiting, request
            first = self._generator.after(channel.state, first)
        unread = self._generator.model.text.unread(request.prompt)
        self._send(PromptSet(request.request, request.channel, request.prompt, first.frame, unread))
        if earlier is not None:
            self._send(PromptReplaced(earlier.request, earlier.channel, request.prompt))

    def _apply(self, channel: LiveChannel, request: SetPrompt) -> None:
        self._generator.change(channel.state, request.prompt, channel.next)
        channel.planned_under = request

    @staticmethod
    def _obstacle(request: SetPrompt) -> str | None:
        """Why a prompt cannot be taken, for the person who asked."""
        if request.mode != "flow":
            return f"mode {request.mode!r} is not known; 'flow' is"
        try:
            check_prompt(request.prompt)
        except ValueError as error:
            return str(error)
        return None

"""The loop of the engine process: an asyncio loop that interleaves planning and rendering, one unit after another.

After each unit it reads its inbox, the control pipe, and then takes the next unit by deadline: rendering first while a
channel's buffer is low, then planning ahead, then previews, then practice for cuts, then waiting for a message.
Channels whose media clock runs come before those whose clock stands, which fill their buffers when there is time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

import torch

from engine.live.changes import Changes
from engine.live.control_pipe import ControlPipe
from engine.live.controller import CostMeter, Costs, choose_steps
from engine.live.generator import Generator
from engine.live.journal_writer import JournalWriter
from engine.live.live_channel import LiveChannel
from engine.live.look_ahead import PlanPreviews
from engine.live.opening import Openings
from engine.live.practice import Practice
from engine.live.state_keeper import StateKeeper
from engine.runtime.heap import FreedMemory
from engine.runtime.threads import FIXED, ThreadChoice
from engine.wire.kept_state import KeptState
from engine.wire.messages import (
    ChannelClosed,
    ChannelReleased,
    CloseChannel,
    DiscardPlan,
    FramesReady,
    FromEngine,
    LookAhead,
    OpenChannel,
    Paused,
    ReleaseChannel,
    SetPrompt,
    Shown,
    Stop,
    ToEngine,
)
from engine.wire.ring import CHANNEL_SLOTS, RingWriter
from engine.wire.state_memory import StateMemory

LOOK_AHEAD_S = 3.0  # of video, planned beyond the next chunk
LOW_MARK_S = 2.5  # of video: a chunk begins only when no more than this is rendered and not shown
OPENING_MARK_S = 1.5  # of video: a chunk begins then even where a channel is being made of what is there
EARLIER_S = 0.5  # of video: so much above the mark the first chunk behind an engine's end begins; another may follow
DEVICE_POLL_S = 0.0005  # between two looks at the device's events, when there is nothing to launch

log = logging.getLogger(__name__)


class Interleaver:
    """Chooses units of the channels and speaks with the server; owns neither ring nor pipe."""

    def __init__(
        self,
        generator: Generator,
        ring: RingWriter,
        control: ControlPipe,
        threads: ThreadChoice = FIXED,
        low_mark_s: float = LOW_MARK_S,
        journals: JournalWriter | None = None,
        memory: StateMemory | None = None,
    ) -> None:
        """`memory` takes the channels' states, and has those of the process before."""
        config = generator.model.config
        self._generator, self._fps = generator, config.fps
        self._ring = ring
        self._control = control
        self._threads = threads
        self._heard = asyncio.Event()
        self._channels: dict[str, LiveChannel] = {}
        self._released: dict[str, set[int]] = {}  # channels that another engine makes, and slots with frames of them
        self._changes = Changes(generator, self._send)
        self._previews = PlanPreviews(generator, self._send)
        self._practice = Practice(generator)
        self._meter = CostMeter(config.chunk_tokens)
        keeper = StateKeeper(generator, memory, journals)
        self._openings = Openings(generator, self._meter, keeper, self._send, self._begin, self._heard.set)
        self._running = self._stopped = False
        self._freed = FreedMemory()  # between what several channels keep: a tenth of all, or more
        self._low_mark = round(low_mark_s * config.fps)  # frames
        self._earlier = round(EARLIER_S * config.fps)  # frames
        self._opening_mark = round(min(OPENING_MARK_S, low_mark_s) * config.fps)  # frames
        self._look_ahead = config.chunk_length + round(LOOK_AHEAD_S * config.latents_per_s)  # semantic frames

    async def run(self) -> None:
        """Works until told to stop or until the server is gone."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._control.fileno(), self._heard.set)
        self._running = True
        try:
            while not self._stopped:
                self._heard.clear()
                # Asked before: what the device finishes meanwhile must not be waited for.
                computing = not all(one.mark.done for one in self._channels.values()) or self._openings.computing
                if self._work():
                    await asyncio.sleep(0)
                elif computing:
                    await asyncio.sleep(DEVICE_POLL_S)
                elif not self._channels or not self._threads.retry():
                    await self._freed.wait(self._heard)
                # Not in the reader: it would lag one unit behind, and its errors would be lost.
                self.read_inbox()
        except (BrokenPipeError, ConnectionResetError):
            log.info("the server is gone")
        finally:
            self._openings.close()
            loop.remove_reader(self._control.fileno())

    def _work(self) -> bool:
        """Does the most urgent unit; False if there is none to do."""
        for channel in self._channels.values():
            if channel.batch is not None:
                self._deliver(channel)
        if self._openings.ready:
            if not self._render_most_urgent([one for one in self._channels.values() if self._comes_first(one)]):
                self._openings.work()
            return True
        for paused in (False, True):
            channels = [channel for channel in self._channels.values() if channel.paused == paused]
            if self._render_most_urgent(channels) or self._plan_most_urgent(channels):
                return True
        return self._previews.work(self._channels.values()) or self._practice.work(self._channels.values())

    def _comes_first(self, channel: LiveChannel) -> bool:
        """Whether a channel that runs must not wait for one that is being made of what is there."""
        return not channel.paused and (channel.chunk is not None or channel.buffered <= self._opening_mark)

    def _render_most_urgent(self, channels: Sequence[LiveChannel]) -> bool:
        """Does a unit for the channel whose buffer runs dry first, of those that render now; False if none does."""
        for channel in sorted(channels, key=lambda one: one.buffered):
            if channel.mark.done and channel.renders(self._low_mark):
                self._advance(channel)
                return True
        return False

    def _plan_most_urgent(self, channels: Sequence[LiveChannel]) -> bool:
        """Plans for the channel that is planned least far ahead; False if all are planned far enough."""
        channel = min(channels, key=self._ahead, default=None)
        if channel is None or self._ahead(channel) >= self._look_ahead:
            return False
        self._plan(channel)
        return True

    def _ahead(self, channel: LiveChannel) -> int:
        """Semantic frames that are planned and belong to no chunk yet."""
        return self._generator.planned(channel.state) - channel.next.latent

    def _advance(self, channel: LiveChannel) -> None:
        """The next unit towards the channel's next frame."""
        if channel.chunk is None:
            if self._generator.needs_plan(channel.state):
                self._plan(channel)
                return
            chunk = self._generator.chunk(channel.state, channel.choose_steps(self._fps))
            if channel.journal is not None:
                chunk = channel.journal.recorded(channel.state, chunk, max(chunk.start.frame, channel.new_from))
            channel.keeper.begun(chunk.steps, channel.costs())
            channel.begin(chunk)
        assert channel.chunk is not None, "it was begun"
        began_s = time.monotonic()
        unit = next(channel.chunk.units, None)
        self._changes.chunk_began(channel)
        if unit is None:
            channel.keeper.advanced(channel.state, channel.new_from)
            self._send(channel.finish(self._fps))
            self._changes.chunk_done(channel)
            self._freed.give_back()
            return
        spent_s = time.monotonic() - began_s
        channel.spend(unit, spent_s)
        channel.mark = unit.mark
        if unit.step:
            self._threads.spent(spent_s)
        if channel.batch is not None:
            self._deliver(channel)

    def _plan(self, channel: LiveChannel) -> None:
        began_s = time.monotonic()
        unit = self._generator.plan(channel.state)
        channel.spend(unit, time.monotonic() - began_s)

    def _deliver(self, channel: LiveChannel) -> None:
        """Puts the finished batch into the ring, if there is room."""
        batch = channel.batch
        assert batch is not None, "only finished frames are delivered"
        slot = self._ring.acquire() if len(channel.slots) < CHANNEL_SLOTS else None
        if slot is None:
            return
        channel.slots.add(slot)
        self._ring.write(slot, batch.i420)
        self._send(FramesReady(channel.name, slot, batch.index, batch.chunk, batch.frames))
        channel.delivered += batch.frames
        channel.batch = None
        self._changes.frames_delivered(channel)

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
                self._openings.open(message, self._running)
            case CloseChannel():
                self._close(message.channel)
            case ReleaseChannel():
                self._release(message.channel)
            case Paused() if message.channel in self._channels:
                self._channels[message.channel].paused = message.paused
            case Shown():
                self._on_shown(message)
            case SetPrompt():
                self._changes.take(self._channels.get(message.channel), message)
            case DiscardPlan():
                self._changes.discard(self._channels.get(message.channel), message)
            case LookAhead():
                self._previews.tell(message.channel, self._channels.get(message.channel))

    def _begin(self, channel: LiveChannel, kept: KeptState | None) -> None:
        """A channel is there: a new one, or one that goes on from what an engine process before kept."""
        self._channels[channel.name] = channel
        if kept is not None:
            self._go_on(channel, kept)

    def _go_on(self, channel: LiveChannel, kept: KeptState) -> None:
        """Goes on as an engine process before would have."""
        channel.wanted_from, channel.new_from, channel.earlier = channel.delivered, kept.frame, self._earlier
        self._changes.go_on(channel, began=False)
        if kept.running is not None:
            if kept.costs is not None:
                self._meter.begin_with(Costs(*kept.costs))
            self._begin_again(channel, *kept.running)
        self._changes.go_on(channel, began=True)

    def _begin_again(self, channel: LiveChannel, steps: int, threads: int) -> None:
        """Begins the chunk again that an engine process before was making, in the same way."""
        torch.set_num_threads(min(threads, torch.get_num_threads()))
        channel.next_steps = steps
        if channel.delivered <= channel.next.frame:
            # None of it is there that the rest must fit, and some of the time for it is gone.
            floor, left_s = min(steps, channel.least_steps), channel.buffered / self._fps
            channel.next_steps = choose_steps(left_s, channel.costs(), floor, steps)
        while self._generator.needs_plan(channel.state):
            self._plan(channel)
        self._advance(channel)

    def _close(self, name: str) -> None:
        self._openings.cancel(name)
        channel = self._channels.pop(name, None)  # None for one that was refused
        if channel is not None:
            channel.abandon_chunk()
            if channel.journal is not None:
                # Its thread may find a bad disk later, and must not name a channel that the server has forgotten.
                channel.journal.close()
            channel.keeper.close()
            self._ring.release(channel.slots)
        self._ring.release(self._released.pop(name, ()))
        self._send(ChannelClosed(name))

    def _release(self, name: str) -> None:
        """Another engine goes on with a channel, which stays kept as it is."""
        self._openings.cancel(name)
        channel = self._channels.pop(name, None)
        if channel is None:
            self._send(ChannelReleased(name))
            return
        channel.abandon_chunk()
        if channel.journal is not None:
            channel.journal.close()
        self._released[name] = channel.slots
        channel.keeper.release(lambda: self._send(ChannelReleased(name)))

    def _on_shown(self, message: Shown) -> None:
        channel = self._channels.get(message.channel)
        if channel is not None and message.frame > channel.shown:
            channel.shown = channel.state.open_from = message.frame
            channel.shown_s = time.monotonic()
        # Of one that it refused to go on with there are none.
        slots = self._released.get(message.channel, set()) if channel is None else channel.slots
        slots.difference_update(message.freed_slots)
        self._ring.release(message.freed_slots)

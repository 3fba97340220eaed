"""The engine process: an asyncio loop that interleaves planning and rendering, one unit after another.

After each unit it looks at its inbox, the control pipe, and then picks the next unit by deadline: what the next hop on
air needs comes first while a channel's buffer is low, then looking ahead, then waiting for a message.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection

from engine.config import FRAMES_PER_LATENT, preset
from engine.live.generator import ChannelState, Generator, Unit
from engine.live.offline import film
from engine.loading.model import load, pick_device, pick_dtype, use_cores, weights_folder
from engine.runtime.cuda_streams import Mark
from engine.wire.frames import FrameChunk
from engine.wire.messages import (
    ChunkReady,
    EngineSettings,
    Failed,
    FrameRing,
    FromEngine,
    HopDone,
    Progress,
    PromptSet,
    Ready,
    Refused,
    SetPrompt,
    Shown,
    Stop,
    ToEngine,
)
from engine.wire.prompt import check_prompt

LOOK_AHEAD_S = 3.0  # of video, planned beyond the next hop
DEVICE_POLL_S = 0.0005  # between two looks at the device's events, when there is nothing to launch
WARM_UP_HOPS = 2  # the first hop's shapes differ from all others'

log = logging.getLogger(__name__)


@dataclass(slots=True)
class RunningHop:
    """A hop that has begun."""

    number: int
    prompt: str
    first_frame: int
    units: Iterator[Unit]


@dataclass(slots=True)
class Channel:
    """One video and how far it is delivered."""

    state: ChannelState
    low_mark_frames: int
    shown: int  # number of the next frame to show
    delivered: int  # number of the next frame to put into the ring
    hop: RunningHop | None = None
    chunk: FrameChunk | None = None  # finished, and waiting for a slot
    mark: Mark = field(default_factory=Mark)  # until it is reached, the device is at work for this hop
    spent_s: dict[str, float] = field(default_factory=dict)  # by stage, since the last hop was finished

    @property
    def buffered(self) -> int:
        """Frames in the ring that are not shown yet."""
        return self.delivered - self.shown

    def spend(self, stage: str, seconds: float) -> None:
        """Counts compute of a stage."""
        self.spent_s[stage] = self.spent_s.get(stage, 0.0) + seconds


class Interleaver:
    """The loop. Chooses units of the channels and speaks with the server; owns neither ring nor pipe."""

    def __init__(self, generator: Generator, ring: FrameRing, control: Connection) -> None:
        self._generator = generator
        self._ring = ring
        self._control = control
        self._channels: dict[str, Channel] = {}
        self._stopped = False
        self._heard = asyncio.Event()
        fps = generator.model.config.fps
        self._look_ahead = generator.model.config.new_latents + round(LOOK_AHEAD_S * fps / FRAMES_PER_LATENT)

    def open(self, settings: EngineSettings) -> None:
        """Adds the settings' channel."""
        state = self._generator.open(settings.prompt, settings.seed, settings.first_frame, settings.first_hop)
        first = settings.first_frame
        self._channels[settings.channel] = Channel(state, settings.low_mark_frames, first, first)

    async def run(self) -> None:
        """Works until told to stop or until the server is gone."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._control.fileno(), self._heard.set)
        try:
            while not self._stopped:
                self._heard.clear()
                # Asked before: what the device finishes meanwhile must not be waited for.
                computing = not all(channel.mark.reached for channel in self._channels.values())
                if self._work():
                    await asyncio.sleep(0)
                elif computing:
                    await asyncio.sleep(DEVICE_POLL_S)
                else:
                    await self._heard.wait()
                # Not in the reader: it would lag one unit behind, and its errors would be lost.
                self._hear()
        except (BrokenPipeError, ConnectionResetError):
            log.info("the server is gone")
        finally:
            loop.remove_reader(self._control.fileno())

    def _work(self) -> bool:
        """Does the most urgent unit; False if there is none to do."""
        channels = list(self._channels.items())
        for name, channel in channels:
            if channel.chunk is not None:
                self._deliver(name, channel)
        for name, channel in sorted(channels, key=lambda item: item[1].buffered):
            if not channel.mark.reached:
                continue
            if channel.chunk is None and (channel.hop is not None or channel.buffered <= channel.low_mark_frames):
                self._advance(name, channel)
                return True
        for _, channel in sorted(channels, key=lambda item: self._generator.ahead(item[1].state)):
            if self._generator.ahead(channel.state) < self._look_ahead:
                self._plan(channel)
                return True
        return False

    def _advance(self, name: str, channel: Channel) -> None:
        """The next unit towards the channel's next frame."""
        if channel.hop is None:
            if self._generator.needs_plan(channel.state):
                self._plan(channel)
                return
            state = channel.state
            channel.hop = RunningHop(state.hop, state.prompt, state.frame, self._generator.hop(state))
        began_s = time.monotonic()
        unit = next(channel.hop.units, None)
        if unit is None:
            self._finish(name, channel, channel.hop)
            return
        channel.spend(unit.stage, time.monotonic() - began_s)
        channel.mark = unit.mark
        if unit.chunk is not None:
            channel.chunk = unit.chunk
            self._deliver(name, channel)

    def _plan(self, channel: Channel) -> None:
        began_s = time.monotonic()
        unit = self._generator.plan(channel.state)
        channel.spend(unit.stage, time.monotonic() - began_s)

    def _deliver(self, name: str, channel: Channel) -> None:
        """Puts the finished chunk into the ring, if there is room."""
        chunk, hop = channel.chunk, channel.hop
        assert chunk is not None and hop is not None, "a chunk belongs to a hop that has not ended"
        slot = self._ring.acquire()
        if slot is None:
            return
        self._ring.write(slot, chunk.i420)
        self._send(ChunkReady(name, slot, chunk.index, chunk.hop, chunk.frames, chunk.created_s, hop.prompt))
        channel.delivered += chunk.frames
        channel.chunk = None

    def _finish(self, name: str, channel: Channel, hop: RunningHop) -> None:
        spent_s, channel.spent_s = channel.spent_s, {}
        seconds = (channel.delivered - hop.first_frame) / self._generator.model.config.fps
        stage_ms = {stage: 1000 * spent for stage, spent in spent_s.items()}
        self._send(HopDone(name, hop.number, self._generator.steps, seconds, sum(spent_s.values()), stage_ms))
        channel.hop = None

    def _send(self, message: FromEngine) -> None:
        self._control.send(message)

    def _hear(self) -> None:
        """Takes every message that waits in the pipe."""
        try:
            while not self._stopped and self._control.poll():
                self._obey(self._control.recv())
        except (EOFError, OSError):
            log.info("the server is gone")
            self._stopped = True

    def _obey(self, message: ToEngine) -> None:
        match message:
            case Stop():
                self._stopped = True
            case Shown():
                self._channels[message.channel].shown = message.frame
                self._ring.release(message.freed_slots)
            case SetPrompt():
                self._send(self._change(message))

    def _change(self, request: SetPrompt) -> PromptSet | Refused:
        channel = self._channels.get(request.channel)
        if channel is None:
            return Refused(request.request, f"there is no channel {request.channel!r}")
        if request.mode != "flow":
            return Refused(request.request, f"mode {request.mode!r} is not known; 'flow' is")
        try:
            prompt = check_prompt(request.prompt)
        except ValueError as error:
            return Refused(request.request, str(error))
        frame = self._generator.change(channel.state, prompt)
        return PromptSet(request.request, request.channel, prompt, frame)


def serve(settings: EngineSettings, ring: FrameRing, control: Connection) -> None:
    """The engine process: loads the model, warms it up and serves one channel until told to stop.

    A model that cannot be loaded is told to the server as `Failed`; any other error too, and is then raised.
    """
    # Ctrl-C in a terminal reaches every process; the server tells this one to stop.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    use_cores()
    try:
        generator = _warm(settings, control)
        if generator is not None:
            asyncio.run(_serve(generator, settings, ring, control))
    except (BrokenPipeError, ConnectionResetError):
        log.info("the server is gone")
    except Exception as error:
        control.send(Failed(f"{type(error).__name__}: {error}"))
        raise


async def _serve(generator: Generator, settings: EngineSettings, ring: FrameRing, control: Connection) -> None:
    interleaver = Interleaver(generator, ring, control)
    interleaver.open(settings)
    await interleaver.run()


def _warm(settings: EngineSettings, control: Connection) -> Generator | None:
    """A generator that has made the first hops of a scratch video once; None if the model cannot be loaded."""
    began_s = time.monotonic()

    def tell(share: float) -> None:
        control.send(Progress("loading", share))

    try:
        config = preset(settings.preset)
        config = replace(config, steps=settings.steps or config.steps, reuse=settings.reuse)
        device = pick_device(settings.device)
        folder = weights_folder(config, settings.weights)
        model = load(config, folder, device, pick_dtype(device), tell, settings.memory_gb)
    except ValueError as error:
        control.send(Failed(str(error)))
        return None
    generator = Generator(model)
    frames = config.first_hop_frames + (WARM_UP_HOPS - 1) * config.hop_frames
    scratch = generator.open(settings.prompt, settings.seed)
    for chunk in film(generator, scratch, frames):
        control.send(Progress("warm-up", (chunk.index + chunk.frames) / frames))
    warm_up_s = time.monotonic() - began_s
    control.send(Ready(config.width_px, config.height_px, config.fps, warm_up_s, config.name, generator.steps))
    return generator

"""Stand-ins for tests: an engine process that draws test frames, a server around it, and a viewer that decodes.

`python tests/fakes.py [server.py's arguments]` runs the real server with the fake engine.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import httpx
import numpy as np
import numpy.typing as npt
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

import server
from engine.live.control_pipe import ControlPipe
from engine.wire.messages import (
    ChannelClosed,
    ChannelOpened,
    ChannelRefused,
    ChannelReleased,
    ChunkDone,
    CloseChannel,
    DiscardPlan,
    Failed,
    FramesDropped,
    FramesReady,
    LookAhead,
    OpenChannel,
    PlanAhead,
    PlanDiscarded,
    PlannedPart,
    PlanPicture,
    Progress,
    PromptSet,
    Ready,
    Refused,
    ReleaseChannel,
    SetPrompt,
    Shown,
    Stop,
)
from engine.wire.ring import CHANNEL_SLOTS, RingWriter
from engine.wire.settings import ChannelSettings, ChannelStart, EngineSettings, Fork
from engine.wire.startup import follow_parent
from streaming.engines.process import EngineTarget
from streaming.http.listening import listen
from streaming.media.rtp_hooks import end_consent_with_connection

WIDTH, HEIGHT, FPS = 192, 128, 16.0
LARGE = os.environ.get("FAKE_PICTURE") == "large"  # 256x384 with grain that fills the high rung's bit rate
GRAIN = 5  # levels
CHUNK_SLICES = (8, 8, 8)
FIRST_CHUNK_SLICES = (9, 8, 8)
LOW_MARK = 20  # frames
DARK = "night"  # a word of prompts under which pictures are darker
CUT_AHEAD = 4  # frames from the one on air to a cut
PART, PLANNED = 8, 24  # frames of a part of what comes, and planned behind what is rendered
COMPUTE_S = 0.1  # that a chunk is said to take
CRASH, HANG, REFUSE, BREAK = "crash now", "hang now", "refuse this", "break the protocol"  # prompts with an effect
UNREAD = "zebra"  # a word that the engine does not know
COLOURS = ((81, 90, 240), (145, 54, 34), (41, 240, 110), (106, 202, 222))  # Y, U, V of four squares
FORKED, FORKED_SEED, FORKED_CHUNKS = "what was there", 77, 9  # of every journal: prompt, seed and number of chunks
PNG = b"\x89PNG\r\n\x1a\n"
MISSING = "missing"  # weights that cannot be found


if LARGE:
    WIDTH, HEIGHT = 384, 256


def test_frame(index: int, height: int = HEIGHT, width: int = WIDTH) -> npt.NDArray[np.uint8]:
    """A moving I420 frame [3H/2, W]; its last luma pixel tells the index modulo 200."""
    frame = np.empty((height * 3 // 2, width), np.uint8)
    frame[:height] = 60 + (np.arange(width) + np.arange(height)[:, None] + 3 * index) % 128
    frame[height:] = 128
    for place, colour in enumerate(COLOURS):
        _paint(frame[:height], place, 16, colour[0])
        _paint(frame[height : height * 5 // 4].reshape(height // 2, width // 2), place, 8, colour[1])
        _paint(frame[height * 5 // 4 :].reshape(height // 2, width // 2), place, 8, colour[2])
    left = 4 * index % (width - 32)
    if LARGE:
        frame[:height] += np.roll(_grain(), 7919 * index).reshape(height, width)
    frame[height * 3 // 4 - 16 : height * 3 // 4 + 16, left : left + 32] = 220
    frame[height - 1, width - 1] = 16 + index % 200
    return frame


def _paint(plane: npt.NDArray[np.uint8], place: int, side: int, level: int) -> None:
    plane[side : 2 * side, (1 + 2 * place) * side : (2 + 2 * place) * side] = level


@functools.cache
def _grain() -> npt.NDArray[np.uint8]:
    """Noise for the luma plane of a large picture."""
    return np.random.default_rng(0).integers(0, 2 * GRAIN, 256 * 384, dtype=np.uint8)


test_frame.__test__ = False  # type: ignore[attr-defined]  # pytest would collect it


def fake_engine(settings: EngineSettings, ring: RingWriter, control: Connection, memory: object = None) -> None:
    """An engine process as the server expects it, fast and without torch."""
    follow_parent()
    if settings.weights == MISSING:
        control.send(Failed("no weights in 'missing': give --weights a folder with checkpoint files"))
        return
    with ControlPipe(control) as pipe:
        _FakeEngine(settings, ring, pipe).run()


@dataclass
class _FakeChannel:
    name: str
    index: int  # of the next frame to render
    shown: int
    chunk: int
    slots: set[int] = field(default_factory=set)
    slices: list[int] = field(default_factory=lambda: list(FIRST_CHUNK_SLICES))  # of the chunk, still to render
    chunk_frames: int = sum(FIRST_CHUNK_SLICES)
    dark: bool = False
    pictures: dict[int, int] = field(default_factory=dict)  # of what comes: numbers by frame


class _FakeEngine:
    """Renders as fast as there are slots, a slice of each channel in turn."""

    def __init__(self, settings: EngineSettings, ring: RingWriter, control: ControlPipe) -> None:
        self._ring = ring
        self._control = control
        self._channels: dict[str, _FakeChannel] = {}
        self._released: dict[str, set[int]] = {}  # slots by channel
        self._stopped = False
        if control.poll():
            # Channels are asked for while it loads; a spare has none, nor has one of several engines.
            self._read(control.recv())
        self._control.send(Progress("warm-up", 0.5))
        self._control.send(Ready(WIDTH, HEIGHT, FPS, 0.01, settings.preset, 4))

    def run(self) -> None:
        try:
            while not self._stopped:
                rendered = [self._render(channel) for channel in self._channels.values()]
                while (not any(rendered) or self._control.poll()) and not self._stopped:
                    self._read(self._control.recv())
                    rendered = [True]
        except (EOFError, OSError):
            # The server is gone; so is the reason to run.
            return

    def _read(self, message: Any) -> None:
        match message:
            case OpenChannel(settings=settings) if settings.prompt == REFUSE:
                self._control.send(ChannelRefused(message.channel, "this prompt is refused for the test"))
            case OpenChannel(settings=settings) if isinstance(settings.source, Fork):
                self._fork(message.channel, settings, settings.source)
            case OpenChannel(settings=settings) if settings.source is not None:
                self._start(message.channel, settings, Path(settings.source.path))
            case OpenChannel():
                start = message.settings.start
                shown = start.frame if start.shown is None else start.shown
                self._channels[message.channel] = _FakeChannel(message.channel, start.frame, shown, start.chunk)
                self._control.send(ChannelOpened(message.channel))
            case CloseChannel():
                channel = self._channels.pop(message.channel, None)
                self._ring.release(channel.slots if channel else self._released.pop(message.channel, ()))
                self._control.send(ChannelClosed(message.channel))
            case ReleaseChannel():
                self._released[message.channel] = self._channels.pop(message.channel).slots
                self._control.send(ChannelReleased(message.channel))
            case Shown(channel=name) if name in self._released:
                self._released[name] -= set(message.freed_slots)
                self._ring.release(message.freed_slots)
            case Shown():
                channel = self._channels[message.channel]
                channel.shown = message.frame
                channel.slots -= set(message.freed_slots)
                self._ring.release(message.freed_slots)
            case SetPrompt(prompt=prompt) if prompt == CRASH:
                os.kill(os.getpid(), signal.SIGKILL)
            case SetPrompt(prompt=prompt) if prompt == HANG:
                time.sleep(3600)
            case SetPrompt(prompt=prompt) if prompt == REFUSE:
                self._control.send(Refused(message.request, message.channel, "this prompt is refused for the test"))
            case SetPrompt(prompt=prompt) if prompt == BREAK:
                self._control.send(FramesReady(message.channel, 0, 10**6, 0, 1))
            case SetPrompt():
                unread = tuple(word for word in message.prompt.split() if word == UNREAD)
                channel = self._channels[message.channel]
                channel.dark = DARK in message.prompt
                if message.mode == "cut":
                    channel.index = min(channel.shown + CUT_AHEAD, channel.index)
                    self._control.send(FramesDropped(channel.name, channel.index))
                self._control.send(PromptSet(message.request, channel.name, message.prompt, channel.index, unread))
            case LookAhead():
                self._look_ahead(self._channels[message.channel])
            case DiscardPlan():
                self._discard(self._channels[message.channel], message)
            case Stop():
                self._stopped = True

    def _fork(self, name: str, settings: ChannelSettings, fork: Fork) -> None:
        """Goes on behind the first chunks of any journal, of which there are a few."""
        if fork.chunk >= FORKED_CHUNKS:
            self._control.send(ChannelRefused(name, f"chunk {fork.chunk} is not made yet"))
            return
        start = ChannelStart(fork.chunk * sum(CHUNK_SLICES) + 1, fork.chunk)
        said, seed = settings.prompt or FORKED, FORKED_SEED if settings.seed is None else settings.seed
        told = ChannelSettings(said, seed, settings.steps, start)
        self._channels[name] = _FakeChannel(name, start.frame, start.frame, start.chunk)
        self._control.send(ChannelOpened(name, settings=told))

    def _start(self, name: str, settings: ChannelSettings, path: Path) -> None:
        """Goes on from any file that begins as a PNG does."""
        if not path.read_bytes().startswith(PNG):
            self._control.send(ChannelRefused(name, "the file is no picture"))
            return
        self._channels[name] = _FakeChannel(name, 0, 0, 0)
        self._control.send(ChannelOpened(name, settings=replace(settings, source=None)))

    def _look_ahead(self, channel: _FakeChannel) -> None:
        """Tells what comes, and then sends the pictures that are new."""
        begin = max(channel.shown - 1, 0) // PART * PART
        end = channel.index + PLANNED
        words = {"subject": "fish", "colour": "red", "scene": "sea", "direction": "left", "speed": "normal"}
        parts = [
            PlannedPart(frame, PART, frame + PART <= channel.index, words, channel.pictures.get(frame))
            for frame in range(begin, end - PART + 1, PART)
        ]
        self._control.send(PlanAhead(channel.name, tuple(parts)))
        channel.pictures = {part.frame: part.frame for part in parts}
        for part in parts:
            if part.picture is None:
                self._control.send(PlanPicture(channel.name, part.frame, WIDTH, test_frame(part.frame).tobytes()))

    def _discard(self, channel: _FakeChannel, message: DiscardPlan) -> None:
        if not channel.shown <= message.frame < channel.index + PLANNED:
            reason = "on air" if message.frame < channel.shown else "not planned"
            self._control.send(Refused(message.request, channel.name, f"frame {message.frame} is {reason}"))
            return
        if message.frame < channel.index:
            channel.index = message.frame
            self._control.send(FramesDropped(channel.name, channel.index))
        channel.pictures = {frame: number for frame, number in channel.pictures.items() if frame < message.frame}
        seed = 1 if message.seed is None else message.seed
        self._control.send(PlanDiscarded(message.request, channel.name, message.frame, seed))

    def _render(self, channel: _FakeChannel) -> bool:
        """Renders a slice; False where the channel has enough of them."""
        begins = len(channel.slices) == len(CHUNK_SLICES)
        if (begins and channel.index - channel.shown > LOW_MARK) or len(channel.slots) == CHANNEL_SLOTS:
            return False
        slot, frames = self._ring.acquire(), channel.slices.pop(0)
        assert slot is not None, "the ring has room for every channel"
        channel.slots.add(slot)
        batch = np.stack([test_frame(channel.index + step) for step in range(frames)])
        self._ring.write(slot, batch // 2 if channel.dark else batch)
        self._control.send(FramesReady(channel.name, slot, channel.index, channel.chunk, frames))
        channel.index += frames
        if not channel.slices:
            compute_s = COMPUTE_S
            stage_ms = {"plan": 1.0, "render": compute_s * 1000 - 2.0, "vae": 1.0}
            seconds = channel.chunk_frames / FPS
            self._control.send(ChunkDone(channel.name, channel.chunk, 4, seconds, compute_s, stage_ms, (1,)))
            channel.chunk += 1
            channel.slices, channel.chunk_frames = list(CHUNK_SLICES), sum(CHUNK_SLICES)
        return True


@dataclass
class Serving:
    """A running server in this process."""

    url: str
    http: httpx.AsyncClient
    stop: asyncio.Event
    done: asyncio.Task[int]

    async def report(self) -> dict[str, Any]:
        return dict((await self.http.get("/channels/main")).json())

    async def until(self, condition: Any, limit_s: float = 10.0) -> dict[str, Any]:
        """Asks for the channel's report until it fulfils a condition; returns it."""
        async with asyncio.timeout(limit_s):
            # HTTP has no event to wait for; the event stream would hide short states.
            while not condition(report := await self.report()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return report


@asynccontextmanager
async def serving(*argv: str, target: EngineTarget = fake_engine) -> AsyncIterator[Serving]:
    """Runs the server in this process with media on loopback; the `loopback` fixture must be in use.

    `http` sends the strongest of the server's tokens.
    """
    arguments = server.parser().parse_args(["--port", "0", "--ice-address", "127.0.0.1", *argv])
    stop = asyncio.Event()
    with listen(arguments.host, arguments.port) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        task = asyncio.create_task(server.run(arguments, listener, target, stop))
        token = arguments.control_token or arguments.token or arguments.view_token
        headers = {"authorization": f"Bearer {token}"} if token else {}
        async with httpx.AsyncClient(base_url=url, timeout=10, headers=headers) as http:
            running = Serving(url, http, stop, task)
            try:
                await running.until(lambda report: report["state"] != "starting", limit_s=60)
                yield running
            finally:
                stop.set()
                await task


class Watcher:
    """A viewer that receives and decodes. `frames` holds the last ones, newest last; `pts` are all, in 1/90000 s."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self.peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.location = ""
        self.answer: httpx.Response | None = None
        self.pts: list[int] = []
        self.frames: deque[Any] = deque(maxlen=256)
        self._arrived = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None

    async def offer(self) -> str:
        """An offer to receive video."""
        transceiver = self.peer.addTransceiver("video", direction="recvonly")
        end_consent_with_connection(transceiver.receiver.transport)
        self.peer.on("track", self._on_track)
        await self.peer.setLocalDescription(await self.peer.createOffer())
        return str(self.peer.localDescription.sdp)

    async def join(self, query: str = "", endpoint: str = "/whep/main") -> None:
        reply = await self._http.post(
            f"{endpoint}{query}", content=await self.offer(), headers={"content-type": "application/sdp"}
        )
        assert reply.status_code == 201, reply.text
        self.answer, self.location = reply, reply.headers["location"]
        await self.peer.setRemoteDescription(RTCSessionDescription(reply.text, "answer"))

    async def received(self, count: int, limit_s: float = 10.0) -> None:
        """Waits until that many more frames were decoded."""
        wanted = len(self.pts) + count
        async with asyncio.timeout(limit_s):
            while len(self.pts) < wanted:
                self._arrived.clear()
                await self._arrived.wait()

    async def close(self) -> None:
        await self.peer.close()
        if self._reader is not None:
            # A track that never began is not ended by close.
            self._reader.cancel()
            await asyncio.wait([self._reader])

    @property
    def last(self) -> Any:
        """The newest frame."""
        return self.frames[-1]

    def luma(self) -> npt.NDArray[np.uint8]:
        """Luma plane [H, W] of the newest frame."""
        return np.asarray(self.last.to_ndarray()[: self.last.height])

    def _on_track(self, track: Any) -> None:
        self._reader = asyncio.create_task(self._read(track))

    async def _read(self, track: Any) -> None:
        try:
            while True:
                self.frames.append(await track.recv())
                self.pts.append(self.last.pts)
                self._arrived.set()
        except MediaStreamError:
            return


async def not_understood(*_: object) -> None:
    """In place of aiortc's `setRemoteDescription`: an offer that it cannot take."""
    raise ValueError("an offer is not understood, for the test")


async def sample_offer(running: Serving) -> str:
    """A good offer of a viewer that is gone again."""
    watcher = Watcher(running.http)
    offer = await watcher.offer()
    await watcher.close()
    return offer


@asynccontextmanager
async def watching(running: Serving, query: str = "") -> AsyncIterator[Watcher]:
    """A viewer of a running server that receives its first frame before the block begins."""
    watcher = Watcher(running.http)
    try:
        await watcher.join(query)
        await watcher.received(1)
        yield watcher
    finally:
        await watcher.close()


if __name__ == "__main__":
    sys.exit(server.main(target=fake_engine))

"""The server's side of an engine: the status of the process, its frames and its pipe.

Processes come and go; the link stays. The supervisor plugs each process in and out, channels send through the link
and get the messages that name them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import replace
from enum import StrEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from engine.wire.messages import (
    ChannelClosed,
    ChannelMessage,
    ChannelReleased,
    CloseChannel,
    FramesReady,
    FromEngine,
    Heartbeat,
    OpenChannel,
    Paused,
    Progress,
    Ready,
    ReleaseChannel,
    Shown,
    ToEngine,
)
from engine.wire.settings import ChannelSettings, EngineSettings
from streaming.errors import Unavailable
from streaming.media.metrics import Metrics

RELEASE_S = 5.0  # that a process has to write down a channel that it releases; a disk may hang


class EngineStatus(StrEnum):
    """State of the engine, over all of its processes."""

    STARTING = "starting"  # the first process loads and warms up
    RUNNING = "running"
    STALLED = "stalled"  # it was warm, and is not heard any more
    RESTARTING = "restarting"  # a process ended; the next one waits, loads or warms up
    FAILED = "failed"  # no further process is started


# A restart may end before it is warm, and is then followed by another.
TRANSITIONS = {
    EngineStatus.STARTING: {EngineStatus.RUNNING, EngineStatus.FAILED},
    EngineStatus.RUNNING: {EngineStatus.STALLED, EngineStatus.RESTARTING, EngineStatus.FAILED},
    EngineStatus.STALLED: {EngineStatus.RUNNING, EngineStatus.RESTARTING, EngineStatus.FAILED},
    EngineStatus.RESTARTING: {EngineStatus.RUNNING, EngineStatus.RESTARTING, EngineStatus.FAILED},
    EngineStatus.FAILED: set[EngineStatus](),
}


class EngineChannel(Protocol):
    """A channel as the engine's link knows it."""

    engine: EngineLink  # which makes it

    @property
    def id(self) -> str: ...

    @property
    def area(self) -> int:
        """Of the state memory, its own for as long as it lives."""
        ...

    @property
    def paused(self) -> bool:
        """Whether its media clock stands."""
        ...

    @property
    def load(self) -> float | None:
        """Seconds of computing for a second of video; None before that was measured."""
        ...

    def settings(self) -> ChannelSettings:
        """Settings for the next process: it goes on behind the frames that are already here."""
        ...

    def receive(self, message: ChannelMessage) -> None:
        """Takes a message that names the channel. Raises ValueError when it breaks the protocol."""
        ...

    def engine_changed(self) -> None:
        """The link's status, error or progress is another."""
        ...

    def interrupted(self, released: bool = False, killed: bool = False) -> None:
        """The process ended or was `killed`, or `released` it: slots and answers are gone; `engine_changed` follows."""
        ...


class FrameSource(Protocol):
    """Where a process puts its frames."""

    def frames(self, slot: int, frames: int, height: int, width: int) -> npt.NDArray[np.uint8]:
        """Read-only view [F, 3H/2, W] of a slot, valid until the slot is given back.

        Raises ValueError when the slot does not exist or is too small for that many frames.
        """
        ...


class EngineLink:
    """One engine, of one process after another; `settings` are those of each process."""

    def __init__(
        self, settings: EngineSettings, metrics: Metrics, picture: Callable[[], Ready | None] = lambda: None
    ) -> None:
        """`picture` is what engines beside it said of their video, which must be of the same size."""
        self.settings = settings
        self._picture = picture
        self.status = EngineStatus.STARTING
        self.error: str | None = None  # why it is stalled, is restarting or has failed
        self.progress: str | None = None  # of loading and warm-up
        self.ready: Ready | None = None  # what the first process said of its video; the later ones must say the same
        self._metrics = metrics
        self._channels: dict[str, EngineChannel] = {}
        self._closing: dict[str, asyncio.Future[None]] = {}  # channels that the process may still name
        # Channels that the process was asked to release, the limit for that, and who takes each then.
        self._releasing: dict[str, tuple[asyncio.TimerHandle, Callable[[EngineChannel], None]]] = {}
        self._ring: FrameSource | None = None
        self._send: Callable[[ToEngine], None] | None = None

    @property
    def channels(self) -> Collection[EngineChannel]:
        """Those that it makes."""
        return self._channels.values()

    @property
    def staying(self) -> list[EngineChannel]:
        """Those that it makes and is not about to release."""
        return [channel for name, channel in self._channels.items() if name not in self._releasing]

    def makes(self, channel: EngineChannel) -> bool:
        """Whether its process is warm and makes this channel, now and for the time being."""
        return self.running and channel in self.staying

    def open(self, channel: EngineChannel) -> None:
        """Adds a channel, which every process is asked to open."""
        self._channels[channel.id] = channel
        if self._send is not None:
            self._ask_for(channel)

    async def close(self, channel_id: str) -> None:
        """Removes a channel; returns when no process names it any more."""
        del self._channels[channel_id]
        self._releasing.pop(channel_id, None)
        if self._send is not None:
            gone = self._closing[channel_id] = asyncio.get_running_loop().create_future()
            self._send(CloseChannel(channel_id))
            await gone

    def release(self, channel: EngineChannel, give: Callable[[EngineChannel], None]) -> None:
        """Asks the process to make a channel no more; when it has answered, `give` gives that to another engine."""
        self.ask(channel, ReleaseChannel(channel.id))
        late = asyncio.get_running_loop().call_later(RELEASE_S, self._on_released, channel.id)
        self._releasing[channel.id] = late, give

    def _on_released(self, name: str) -> None:
        if name not in self._releasing or self._send is None:
            # It was closed meanwhile, or the answer is late.
            return
        late, give = self._releasing.pop(name)
        late.cancel()
        self._channels[name].interrupted(released=True)
        self._closing[name] = asyncio.get_running_loop().create_future()
        self._send(CloseChannel(name))
        give(self._channels[name])

    def give(self, channel: EngineChannel, other: EngineLink) -> None:
        """No process names the channel any more: another engine goes on with it."""
        del self._channels[channel.id]
        channel.engine = other
        other.open(channel)
        channel.engine_changed()

    def attach(self, ring: FrameSource, send: Callable[[ToEngine], None]) -> None:
        """A new process writes to `ring` and reads what is given to `send`."""
        self._ring, self._send = ring, send
        for channel in self._channels.values():
            self._ask_for(channel)

    def _ask_for(self, channel: EngineChannel) -> None:
        assert self._send is not None, "a process is there"
        self._send(OpenChannel(channel.id, channel.settings(), channel.area))
        if not channel.paused:
            self._send(Paused(channel.id, False))

    def detach(self, error: str, final: bool, killed: bool = False) -> None:
        """The process ended, `killed` from outside; `final` if no other follows."""
        self._ring = self._send = None
        self._releasing.clear()
        for name in tuple(self._closing):
            self._forget(name)
        for channel in self._channels.values():
            channel.interrupted(killed=killed)
        self._become(EngineStatus.FAILED if final else EngineStatus.RESTARTING, error)

    def receive(self, message: FromEngine) -> None:
        """Takes one message of the process. Raises ValueError when it breaks the protocol."""
        if self.status is EngineStatus.STALLED and not isinstance(message, Ready):
            self._become(EngineStatus.RUNNING, None)
        match message:
            case Heartbeat():
                pass
            case Progress():
                self.progress = f"{message.stage} {message.fraction:.0%}"
                self._tell()
            case Ready():
                known = self.ready or self._picture()
                if known is not None and known.video != message.video:
                    raise ValueError(f"the engine came back as {message}; viewers watch {known}")
                self.ready = message
                # Those that come later must not choose anew.
                self.settings = replace(self.settings, picture=message.picture)
                self._become(EngineStatus.RUNNING, None)
            case ChannelClosed():
                self._forget(message.channel)
            case ChannelReleased():
                self._on_released(message.channel)
            case _ if isinstance(message, ChannelMessage):
                self._hand_on(message)
            case _:
                raise ValueError(f"the engine sent {message!r}, which is not expected")

    def _hand_on(self, message: ChannelMessage) -> None:
        if message.channel in self._channels:
            self._channels[message.channel].receive(message)
        elif message.channel not in self._closing:
            raise ValueError(f"the engine sent {message}, but there is no such channel")

    def _forget(self, name: str) -> None:
        if name not in self._closing:
            raise ValueError(f"the engine closed {name!r}, which it was not asked for")
        gone = self._closing.pop(name)
        if not gone.done():
            gone.set_result(None)

    def stall(self, silent_s: float) -> None:
        """The process has said nothing for so long; does nothing unless it was warm."""
        if self.running:
            self._become(EngineStatus.STALLED, f"the engine process has not been heard for {silent_s:.0f} s")

    @property
    def running(self) -> bool:
        """True while a process is there and warm."""
        return self.status is EngineStatus.RUNNING

    @property
    def attached(self) -> bool:
        """Whether a process is there, warm or not: it was told of the channels."""
        return self._send is not None

    def check(self) -> None:
        """Raises Unavailable when no process is warm."""
        if self._send is None or not self.running:
            starting = "The engine is starting; try again in a moment."
            restarting = "The engine stopped and is coming back; try again in a moment."
            stalled = "The engine does not answer; it is restarted if that goes on."
            words = {EngineStatus.STARTING: starting, EngineStatus.STALLED: stalled}.get(self.status, restarting)
            raise Unavailable(f"{words} ({self.error})" if self.error else words)

    def ask(self, channel: EngineChannel, message: ToEngine) -> None:
        """Asks the process something of a channel. Raises Unavailable where none is warm that goes on making it."""
        self.check()
        if self._send is None or channel not in self.staying:  # its answer would name a channel that is gone
            raise Unavailable("The channel has ended, or moves to another engine; try again in a moment.")
        self._send(message)

    def tell(self, channel: EngineChannel, message: Shown | Paused) -> None:
        """Tells the process, if there is one, how far a channel is on air."""
        # Receivers may leave a channel after it was closed, when another may have its id.
        if self._send is not None and self._channels.get(channel.id) is channel:
            self._send(message)

    def frames(self, message: FramesReady) -> npt.NDArray[np.uint8]:
        """View [F, 3H/2, W] of the frames that a message announces. Raises ValueError when they cannot be there."""
        if self.ready is None or self._ring is None:
            raise ValueError(f"the engine sent {message} before it was ready")
        return self._ring.frames(message.slot, message.frames, self.ready.height, self.ready.width)

    def _become(self, status: EngineStatus, error: str | None) -> None:
        if status not in TRANSITIONS[self.status]:
            raise ValueError(f"the engine is {self.status} and cannot become {status}")
        ran, self.status, self.error, self.progress = self.running, status, error, None
        self._metrics.ready.inc(self.running - ran)
        self._tell()

    def _tell(self) -> None:
        for channel in self._channels.values():
            channel.engine_changed()

"""A film that every server shows, and an engine process of ours that plays it: `--weights FILM` tells it which.

Shapes: `H` x `W` picture size; frames are I420, [3H/2, W] uint8.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from engine.wire.messages import (
    ChannelOpened,
    ChunkDone,
    FramesReady,
    Heartbeat,
    OpenChannel,
    PromptSet,
    Ready,
    SetPrompt,
    Shown,
    Stop,
)
from engine.wire.ring import RingWriter
from engine.wire.settings import EngineSettings
from streaming.media.hub import Encoder, Geometry
from streaming.media.pacer import MEDIA_CLOCK_HZ

WIDTH, HEIGHT, FPS, SECONDS = 384, 256, 16, 10
KEY_EVERY = 2 * FPS  # frames: who joins somewhere waits for one
BATCH = 8  # frames
AHEAD = 24  # frames that are rendered and not shown yet
HEARTBEAT_S = 0.5


def make(h264: Path, mp4: Path, rounds: int) -> None:
    """Writes the film twice: as a byte stream, and in a container, there so many times in a row. A texture that pans,
    with noise, by our encoder, so that what others send on is what ours sends."""
    draw = np.random.default_rng(7)
    texture = np.kron(draw.integers(40, 200, (HEIGHT // 4, WIDTH // 2)), np.ones((8, 8))).astype(np.uint8)
    encoder = Encoder("h264", Geometry(WIDTH, HEIGHT, FPS))
    with h264.open("wb") as stream:
        for index in range(SECONDS * FPS):
            frame = np.full((HEIGHT * 3 // 2, WIDTH), 128, np.uint8)
            frame[:HEIGHT] = texture[:HEIGHT, 3 * index % WIDTH :][:, :WIDTH] + draw.integers(0, 24, (HEIGHT, WIDTH))
            stream.write(bytes(encoder.encode(frame, index * MEDIA_CLOCK_HZ // FPS, index % KEY_EVERY == 0)))
    with av.open(str(mp4), "w") as film:
        kept, index = None, 0
        for _ in range(rounds):
            with av.open(str(h264), format="h264", options={"framerate": str(FPS)}) as source:
                kept = kept or film.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.size:
                        packet.time_base, packet.pts, packet.dts = Fraction(1, FPS), index, index
                        packet.duration, packet.stream, index = 1, kept, index + 1
                        film.mux(packet)


def frames(path: Path) -> Iterator[npt.NDArray[np.uint8]]:
    """The film's frames, again and again."""
    while True:
        with av.open(str(path)) as film:
            for frame in film.decode(video=0):
                yield frame.to_ndarray(format="yuv420p")


def film_engine(settings: EngineSettings, ring: RingWriter, control: Connection, memory: object = None) -> None:
    """An engine process of ours, as the server starts it, that plays a film. It keeps no state."""
    assert settings.weights is not None, "a film is given"
    try:
        _Projector(ring, control).play(frames(Path(settings.weights)))
    except (EOFError, OSError):
        # The server is gone; so is the reason to run.
        return


class _Projector:
    """One channel, which the server opens before anything else."""

    def __init__(self, ring: RingWriter, control: Connection) -> None:
        self._ring, self._control = ring, control
        self._name, self._index, self._shown, self._chunk = "", 0, 0, 0
        self._stopped = False
        self._read(control.recv())
        control.send(Ready(WIDTH, HEIGHT, FPS, 0.0, "film", 1))

    def play(self, film: Iterator[npt.NDArray[np.uint8]]) -> None:
        while not self._stopped:
            slot = self._ring.acquire() if self._index - self._shown <= AHEAD else None
            if slot is not None:
                self._show(slot, np.stack([next(film) for _ in range(BATCH)]))
            while not self._stopped and self._control.poll(0 if slot is not None else HEARTBEAT_S):
                self._read(self._control.recv())
                slot = slot or 0
            self._control.send(Heartbeat())

    def _show(self, slot: int, batch: npt.NDArray[np.uint8]) -> None:
        began_s = time.monotonic()
        self._ring.write(slot, batch)
        self._control.send(FramesReady(self._name, slot, self._index, self._chunk, BATCH))
        took_s = time.monotonic() - began_s
        self._control.send(ChunkDone(self._name, self._chunk, 1, BATCH / FPS, took_s, {"vae": took_s * 1000}, (1,)))
        self._index, self._chunk = self._index + BATCH, self._chunk + 1

    def _read(self, message: Any) -> None:
        match message:
            case OpenChannel():
                self._name, start = message.channel, message.settings.start
                self._index = self._shown = start.frame
                self._chunk = start.chunk
                self._control.send(ChannelOpened(message.channel))
            case Shown():
                self._shown = message.frame
                self._ring.release(message.freed_slots)
            case SetPrompt():
                self._control.send(PromptSet(message.request, message.channel, message.prompt, self._index))
            case Stop():
                self._stopped = True

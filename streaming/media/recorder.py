"""One recording: a channel's H.264 packets in an mp4 file that plays to its end at any time, even after kill -9."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import av

from streaming.errors import Unavailable
from streaming.media.fragments import Fragments
from streaming.media.hub import Hub
from streaming.media.pacer import MEDIA_CLOCK_HZ
from streaming.media.packet_queue import PacketQueue
from streaming.media.viewer import Broadcaster

log = logging.getLogger(__name__)

KEYFRAME_EVERY_S = 5.0  # of video, so that players can seek
PATIENCE_S = 30.0  # of video that waits for a slow disk
PROBE_BYTES = 64 * 1024  # that the disk must have room for when a recording begins


class NoRoom(Exception):
    """A recording cannot be kept; the text says why and what helps."""


@dataclass(frozen=True, slots=True)
class RecordingReport:
    """A recording as people see it."""

    id: str
    state: str  # "recording" or "finished"
    error: str | None  # why it finished by itself
    bytes: int
    seconds: float | None  # of video; null where an earlier run of the server, or of the channel, made it


class FileRecorder:
    """A file that is being written, from the channel's next key frame on.

    The event loop wraps packets into mp4, the recording's own thread writes to the disk.
    """

    def __init__(self, channel: Broadcaster, path: Path, room: Callable[[int], None]) -> None:
        """`room(size)` raises NoRoom when no more may be written, else counts the bytes."""
        self.id = path.stem
        self.bytes = 0
        self.error: str | None = None
        self.channel, self._path, self._room = channel, path, room
        self._queue = PacketQueue(PATIENCE_S, self._too_slow)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="recording")
        self._seconds = 0.0
        self._key_pts: int | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Opens the file and joins the channel. Raises NoRoom, or Unavailable before the channel has video."""
        self.channel.check()
        try:
            file = await self._on_disk(_open, self._path)
        except OSError as error:
            self._thread.shutdown()
            raise NoRoom(_words(error)) from error
        try:
            hub = self.channel.join(self._queue, "h264", False, viewer=False)
        except Unavailable:
            await self._on_disk(_close, file, self._path)
            raise
        self._task = asyncio.create_task(self._run(file, hub), name=f"recording {self.id}")

    @property
    def running(self) -> bool:
        return self._task is not None and not self._task.done()

    async def stop(self) -> None:
        """Ends the recording and returns when the file is complete; idempotent."""
        self._queue.end()
        if self._task is not None:
            await asyncio.shield(self._task)

    def report(self) -> RecordingReport:
        """Its state now."""
        state = "recording" if self.running else "finished"
        return RecordingReport(self.id, state, self.error, self.bytes, round(self._seconds, 3))

    async def _run(self, file: int, hub: Hub) -> None:
        fragments = Fragments(hub.geometry)
        try:
            while packets := await self._queue.get():
                self._ask_for_keyframe(hub, packets)
                await self._write(file, b"".join(map(fragments.add, packets)))
                self._seconds = fragments.seconds
            await self._write(file, fragments.finish())
        except NoRoom as error:
            self._fail(str(error))
        except OSError as error:
            self._fail(_words(error))
        finally:
            self.channel.leave(self._queue)
            await self._on_disk(_close, file, self._path)
            self._thread.shutdown(wait=False)

    async def _write(self, file: int, data: bytes) -> None:
        if data:
            self._room(len(data))
            await self._on_disk(_append, file, data)
            self.bytes += len(data)

    def _ask_for_keyframe(self, hub: Hub, packets: list[av.Packet]) -> None:
        for packet in packets:
            if packet.is_keyframe:
                self._key_pts = packet.pts
        if self._key_pts is not None and packets[-1].pts - self._key_pts >= KEYFRAME_EVERY_S * MEDIA_CLOCK_HZ:
            hub.request_keyframe()

    def _too_slow(self) -> None:
        self.channel.leave(self._queue)
        self._fail(f"the disk was more than {PATIENCE_S:.0f} s behind; record to a faster one")

    def _fail(self, error: str) -> None:
        self.error = error
        log.warning("recording %s ended: %s", self._path, error)

    async def _on_disk(self, work: Callable[..., int], *arguments: object) -> int:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)


def _words(error: OSError) -> str:
    return f"the disk says: {error.strerror}; free some space there, or make the folder of --recordings writable"


def _open(path: Path) -> int:
    """A new file, of which nothing stays where there is no room to begin."""
    path.parent.mkdir(exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
    try:
        os.posix_fallocate(file, 0, PROBE_BYTES)
        os.ftruncate(file, 0)
    except OSError:
        os.close(file)
        path.unlink()
        raise
    return file


def _append(file: int, data: bytes) -> int:
    """Writes all of `data`, or leaves the file as it was."""
    size = os.fstat(file).st_size
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(file, rest) :]
    except OSError:
        os.ftruncate(file, size)
        raise
    return len(data)


def _close(file: int, path: Path) -> int:
    """Closes the file; one without a picture is removed."""
    size = os.fstat(file).st_size
    os.close(file)
    if not size:
        path.unlink(missing_ok=True)
    return size

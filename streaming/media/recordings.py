"""The folder of recordings: a folder for each channel, a file for each recording, and a quota over all of them."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from streaming.media.recorder import FileRecorder, NoRoom, RecordingReport
from streaming.media.viewer import Broadcaster

MOST_FILES = 1000  # of all channels, however small they are
GB = 10**9
_ID = re.compile(r"\d{8}-\d{6}-\d{3}")  # when it began, UTC: date, time, milliseconds


class Recordings:
    """Recordings of all channels. At most one of each channel runs."""

    def __init__(self, folder: Path, quota_gb: float) -> None:
        """`folder` is there; all files in it may take `quota_gb` 10^9 bytes."""
        self._folder, self._quota_bytes = folder, round(quota_gb * GB)
        self._newest: dict[str, FileRecorder] = {}  # of each channel, running or not
        self._starting = asyncio.Lock()
        self._used_bytes = 0
        for path, size in self._files():
            if not size:
                path.unlink()  # the server was killed before the first picture

    async def start(self, channel_id: str, channel: Broadcaster) -> RecordingReport | None:
        """Begins a recording; None where the channel is being recorded already.

        Raises NoRoom when there is no room for it, Unavailable before the channel has video.
        """
        async with self._starting:
            if channel_id in self._newest and self._newest[channel_id].running:
                return None
            sizes = [size for _, size in await asyncio.to_thread(self._files)]
            if len(sizes) >= MOST_FILES:
                raise NoRoom(f"{MOST_FILES} recordings are kept, which is the limit; delete some")
            # Files may also have come or gone by hand.
            self._used_bytes = sum(sizes)
            self._room(0)
            began = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")[:-3]
            recording = FileRecorder(channel, self._path(channel_id, began), self._room)
            await recording.start()
            self._newest[channel_id] = recording
            return recording.report()

    async def stop(self, channel_id: str, recording_id: str) -> RecordingReport | None:
        """Ends a recording, whose file stays; None where there is no such recording."""
        newest = self._newest.get(channel_id)
        if newest is not None and newest.id == recording_id:
            await newest.stop()
        return await self.find(channel_id, recording_id)

    async def find(self, channel_id: str, recording_id: str) -> RecordingReport | None:
        """The report of a recording; None where there is no such recording."""
        newest = self._newest.get(channel_id)
        if newest is not None and newest.id == recording_id:
            return newest.report()
        path = self.path(channel_id, recording_id)
        size = await asyncio.to_thread(_size, path) if path else None
        return None if size is None else RecordingReport(recording_id, "finished", None, size, None)

    async def reports(self, channel_id: str) -> list[RecordingReport]:
        """All recordings of a channel, newest first."""
        files = await asyncio.to_thread(self._files, self._place(channel_id))
        reports = {path.stem: RecordingReport(path.stem, "finished", None, size, None) for path, size in files}
        newest = self._newest.get(channel_id)
        if newest is not None:
            reports[newest.id] = newest.report()
        return [reports[key] for key in sorted(reports, reverse=True)]

    def path(self, channel_id: str, recording_id: str) -> Path | None:
        """Where a recording of this id would lie; None for what is no id."""
        return self._path(channel_id, recording_id) if _ID.fullmatch(recording_id) else None

    async def remove(self, channel_id: str, recording_id: str) -> bool:
        """Removes the file of a recording, after its end if it runs; False where there is none."""
        newest = self._newest.get(channel_id)
        if newest is not None and newest.id == recording_id:
            await newest.stop()
        path = self.path(channel_id, recording_id)
        size = await asyncio.to_thread(_remove, path) if path else None
        # Another may have begun meanwhile.
        if newest is not None and newest.id == recording_id and self._newest.get(channel_id) is newest:
            del self._newest[channel_id]
        self._used_bytes -= size or 0
        return size is not None

    async def end(self, channel: Broadcaster) -> None:
        """Ends the recording of a channel that is no more, and forgets it; its file stays."""
        newest = self._newest.get(channel.id)
        if newest is None or newest.channel is not channel:
            return
        await newest.stop()
        if self._newest.get(channel.id) is newest:
            del self._newest[channel.id]

    async def close(self) -> None:
        """Ends every recording; idempotent."""
        await asyncio.gather(*(recording.stop() for recording in self._newest.values()))

    def _room(self, size: int) -> None:
        if self._used_bytes + size >= self._quota_bytes:
            used, most = self._used_bytes / GB, self._quota_bytes / GB
            raise NoRoom(f"recordings take {used:.3g} of {most:.3g} GB (--recordings-gb); delete some or allow more")
        self._used_bytes += size

    def _place(self, channel_id: str) -> Path:
        return self._folder / quote(channel_id, safe="").replace(".", "%2E")

    def _path(self, channel_id: str, recording_id: str) -> Path:
        return self._place(channel_id) / f"{recording_id}.mp4"

    def _files(self, place: Path | None = None) -> list[tuple[Path, int]]:
        """Recordings and their sizes, in one channel's folder or in all; other files are passed over."""
        paths = place.glob("*.mp4") if place else self._folder.glob("*/*.mp4")
        sizes = ((path, _size(path)) for path in paths if _ID.fullmatch(path.stem))
        return [(path, size) for path, size in sizes if size is not None]


def _size(path: Path) -> int | None:
    """Size of a file in bytes; None where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def _remove(path: Path) -> int | None:
    """Removes a file and returns its size; None where there is none. Raises NoRoom where it cannot be removed."""
    size = _size(path)
    if size is None:
        return None
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise NoRoom(f"{path.name} cannot be removed: {error.strerror}") from error
    return size

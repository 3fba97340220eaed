"""The engines, channels and viewers that routes act on, found by id."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fastapi import HTTPException, Request

from engine.wire.state_folder import channel_folder
from streaming.channels.channel import Channel
from streaming.channels.events import StateChanged
from streaming.channels.registry import Channels
from streaming.engines.pool import EnginePool
from streaming.http import guard
from streaming.media.ice import IceAgent
from streaming.media.metrics import Metrics
from streaming.media.push import Pushes
from streaming.media.reader import Readers
from streaming.media.recorder import NoRoom
from streaming.media.recordings import Recordings
from streaming.media.viewer import Viewer
from streaming.media.viewers import Viewers

RETRY = {"Retry-After": str(guard.RETRY_AFTER_S)}


@dataclass(frozen=True, slots=True)
class ServerState:
    """One server: its engines, its channels by id, and who watches them."""

    engines: EnginePool
    channels: Channels
    viewers: Viewers
    readers: Readers
    pushes: Pushes
    recordings: Recordings | None  # None without a folder for them
    metrics: Metrics
    ice: IceAgent
    stopping: asyncio.Event  # set when streams should end

    async def end_receivers(self) -> None:
        """Ends event streams, viewers, readers, pushes and recordings, for the server stops."""
        for channel in self.channels.values():
            # Wakes the event streams, which see `stopping`.
            channel.events.publish(StateChanged())
        await asyncio.gather(self.pushes.close(), self.viewers.close())
        self.readers.close()
        if self.recordings is not None:
            await self.recordings.close()

    async def end_channel(self, channel: Channel, purge: bool = False) -> None:
        """Ends a channel, and first whoever receives it; with `purge` nothing of it is left on the disk.

        Raises NoRoom, when it has ended, where a file cannot be removed.
        """
        # From here on nobody new is let in.
        channel.end()
        self.readers.close(channel)
        await asyncio.gather(self.pushes.close(channel), self.viewers.end(channel))
        if self.recordings is not None:
            await self.recordings.end(channel)
        await self.channels.end(channel, partial(self._purge, channel.id) if purge else None)

    async def _purge(self, channel_id: str) -> None:
        """Removes all files of channels of this id."""
        if self.recordings is not None:
            for report in await self.recordings.reports(channel_id):
                await self.recordings.remove(channel_id, report.id)
        if self.engines.settings.state is not None:
            await asyncio.to_thread(remove_folders, Path(self.engines.settings.state), channel_id)

    def channel(self, channel_id: str) -> Channel:
        """The channel. Raises HTTPException 404."""
        if channel_id not in self.channels:
            raise HTTPException(404, "There is no such channel; GET /channels lists them.")
        return self.channels[channel_id]

    def viewer(self, channel_id: str, session: str) -> Viewer:
        """The viewer of a WHEP session of the channel. Raises HTTPException 404."""
        channel, viewer = self.channel(channel_id), self.viewers.find(session)
        if viewer is None or viewer.channel is not channel:
            raise HTTPException(404, "There is no such session; it may have ended.")
        return viewer


def remove_folders(state: Path, channel_id: str) -> None:
    """Removes journals and snapshots of a channel and of earlier ones of its id. Raises NoRoom where one stays."""
    folder = channel_folder(state, channel_id)
    for place in (folder, *state.glob(f"{folder.name}.[0-9]*")):
        try:
            shutil.rmtree(place)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise NoRoom(f"{place.name} cannot be removed: {error.strerror}") from error


def client_address(request: Request) -> str:
    """The address that the request comes from; empty where the server does not know it."""
    return request.client.host if request.client else ""

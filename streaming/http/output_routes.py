"""Routes of outputs beside WHEP: the picture on air, the fragmented mp4, and recordings."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from streaming.channels.channel import Channel
from streaming.errors import Unavailable
from streaming.http.access import address_of
from streaming.http.connection import Connection
from streaming.http.growing_file import growing_file
from streaming.http.openapi import problems
from streaming.http.ranges import by_range
from streaming.http.state import RETRY, ServerState
from streaming.media.reader import Readers
from streaming.media.recorder import NoRoom, RecordingReport
from streaming.media.recordings import Recordings
from streaming.media.still import Stills

MP4: dict[int | str, dict[str, Any]] = {
    200: {"content": {"video/mp4": {"schema": {"type": "string", "format": "binary"}}}}
}
JPEG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}},
    304: {"description": "It is the same frame"},
}
LIVE = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "Accept-Ranges": "none"}
NO_FOLDER = "This server keeps no recordings; start it with --recordings DIR."
NO_RECORDING = "There is no such recording; GET /channels/{id}/recordings lists them."


def add(app: FastAPI, state: ServerState) -> None:
    """Adds the routes to the app."""
    stills = Stills()

    @app.get(
        "/channels/{channel_id}/frame.jpg",
        response_class=Response,
        responses=JPEG | problems(404),
    )
    async def frame(channel_id: str, request: Request) -> Response:
        """The frame on air as JPEG; `If-None-Match` asks whether it is another."""
        channel = state.channel(channel_id)
        picture = channel.on_air
        if picture is None:
            raise HTTPException(503, "No frame is on air yet; the video begins with its first viewer.", RETRY)
        still = await stills.get(channel, picture)
        headers = {"ETag": still.etag, "Cache-Control": "no-cache"}
        tags = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if still.etag in tags or "*" in tags:
            return Response(status_code=304, headers=headers)
        return Response(still.jpeg, 200, headers, media_type="image/jpeg")

    @app.get("/channels/{channel_id}/live.mp4", response_class=Response, responses=MP4 | problems(404, 422))
    async def live(channel_id: str, mse: bool = False) -> Response:
        """The video as fragmented mp4 (H.264) without end, from a key frame on. Who reads too slowly is cut off. With
        `mse` its header is a segment of its own, for Media Source Extensions."""
        return _Live(state.readers, state.channel(channel_id), mse)

    _add_recordings(app, state)


def _add_recordings(app: FastAPI, state: ServerState) -> None:
    path = "/channels/{channel_id}/recordings"

    @app.post(path, status_code=201, responses=problems(404, 409, 415, 507))
    async def record(channel_id: str, request: Request, response: Response) -> RecordingReport:
        """Begins a recording of the channel."""
        channel = state.channel(channel_id)
        try:
            report = await _recordings(state).start(channel_id, channel)
        except Unavailable as error:
            raise HTTPException(503, str(error), RETRY) from error
        except NoRoom as error:
            raise HTTPException(507, f"The recording cannot be kept: {error}.") from error
        if report is None:
            raise HTTPException(409, "The channel is being recorded already; stop that recording first.")
        location = f"/channels/{quote(channel_id, safe='')}/recordings/{report.id}"
        response.headers["Location"] = address_of(request, location)
        return report

    @app.get(path, responses=problems(404, 409))
    async def recordings(channel_id: str) -> list[RecordingReport]:
        """All recordings of the channel, newest first."""
        state.channel(channel_id)
        return await _recordings(state).reports(channel_id)

    @app.get(path + "/{recording_id}.mp4", response_class=Response, responses=MP4 | problems(404, 409, 416))
    async def download(channel_id: str, recording_id: str) -> Response:
        """The file of a recording; of one that runs, what there is until now."""
        state.channel(channel_id)
        report = _found(await _recordings(state).find(channel_id, recording_id))
        file = _recordings(state).path(channel_id, recording_id)
        assert file is not None, "a recording that was found has an id"
        return await _file(file, f"{channel_id}-{recording_id}.mp4", report.state == "recording")

    @app.delete(
        path + "/{recording_id}.mp4", status_code=204, response_class=Response, responses=problems(404, 409, 507)
    )
    async def remove(channel_id: str, recording_id: str) -> Response:
        """Removes a recording and its file; one that runs is stopped first."""
        state.channel(channel_id)
        try:
            if not await _recordings(state).remove(channel_id, recording_id):
                raise HTTPException(404, NO_RECORDING)
        except NoRoom as error:
            raise HTTPException(507, f"{error}.") from error
        return Response(status_code=204)

    @app.get(path + "/{recording_id}", responses=problems(404, 409))
    async def recording(channel_id: str, recording_id: str) -> RecordingReport:
        """The report of a recording."""
        state.channel(channel_id)
        return _found(await _recordings(state).find(channel_id, recording_id))

    @app.delete(path + "/{recording_id}", responses=problems(404, 409))
    async def stop(channel_id: str, recording_id: str) -> RecordingReport:
        """Stops a recording, whose file stays; one that has ended is fine too."""
        state.channel(channel_id)
        return _found(await _recordings(state).stop(channel_id, recording_id))


class _Live(Response):
    """A reader's answer. Its place is taken and left here, so that a reader that leaves leaves nothing behind."""

    def __init__(self, readers: Readers, channel: Channel, mse: bool) -> None:
        super().__init__(media_type="video/mp4")
        self._readers, self._channel, self._mse = readers, channel, mse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection: Connection = scope["state"]["connection"]
        address = scope["client"][0] if scope["client"] else ""
        try:
            with self._readers.open(self._channel, address, connection.abort, self._mse) as reader:
                connection.notice_slowness()
                await StreamingResponse(reader.parts(), 200, LIVE, "video/mp4")(scope, receive, send)
        except Unavailable as error:
            raise HTTPException(503, str(error), RETRY) from error


class _Recording(FileResponse):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await by_range(super().__call__, scope, receive, send)


def _recordings(state: ServerState) -> Recordings:
    if state.recordings is None:
        raise HTTPException(409, NO_FOLDER)
    return state.recordings


def _found(report: RecordingReport | None) -> RecordingReport:
    if report is None:
        raise HTTPException(404, NO_RECORDING)
    return report


async def _file(path: Path, name: str, grows: bool) -> Response:
    """A file to download, as long as it is now."""
    try:
        facts = await asyncio.to_thread(os.stat, path)
    except OSError as error:
        raise HTTPException(404, NO_RECORDING) from error
    if not grows:
        return _Recording(path, media_type="video/mp4", filename=name, stat_result=facts)
    return growing_file(path, facts.st_size, "video/mp4")

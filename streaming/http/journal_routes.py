"""The route of a channel's journal."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Response

from engine.wire.state_folder import JOURNAL, channel_folder
from streaming.http.growing_file import PART_BYTES, growing_file
from streaming.http.openapi import problems
from streaming.http.state import RETRY, ServerState

KIND = "application/jsonl"
JSONL: dict[int | str, dict[str, Any]] = {200: {"content": {KIND: {"schema": {"type": "string"}}}}}
HEADERS = {"Content-Disposition": 'attachment; filename="journal.jsonl"'}
NOT_YET = "The channel has no journal yet; it begins with the engine, and needs a folder that can be written."


def add(app: FastAPI, state: ServerState) -> None:
    """Adds the route to the app."""

    @app.get("/channels/{channel_id}/journal", response_class=Response, responses=JSONL | problems(404, 503))
    async def journal(channel_id: str) -> Response:
        """The channel's journal as far as it is written: `python -m engine replay` makes the video of it again."""
        state.channel(channel_id)
        folder = state.engines.settings.state
        path = channel_folder(Path(folder), channel_id) / JOURNAL if folder is not None else None
        try:
            size = await asyncio.to_thread(_whole_lines, path) if path is not None else 0
        except OSError:
            size = 0
        if path is None or not size:
            raise HTTPException(503, NOT_YET, RETRY)
        return growing_file(path, size, KIND, HEADERS)


def _whole_lines(path: Path) -> int:
    """Bytes of a journal up to the end of its last whole line."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - PART_BYTES)
            file.seek(start)
            if found := file.read(end - start).rfind(b"\n") + 1:
                return start + found
            end = start
    return 0

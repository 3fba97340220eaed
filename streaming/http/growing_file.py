"""The answer with a file that another part of the server may still be writing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from fastapi import Response
from fastapi.responses import StreamingResponse

PART_BYTES = 64 * 1024


def growing_file(path: Path, size: int, kind: str, headers: Mapping[str, str] | None = None) -> Response:
    """The first `size` bytes of a file of media type `kind`."""
    own = {"Content-Length": str(size), "Cache-Control": "no-store", "Accept-Ranges": "none", **(headers or {})}
    return StreamingResponse(_parts(path, size), 200, own, kind)


async def _parts(path: Path, size: int) -> AsyncIterator[bytes]:
    file = await asyncio.to_thread(path.open, "rb")
    try:
        while size:
            part = await asyncio.to_thread(file.read, min(size, PART_BYTES))
            if not part:
                return
            size -= len(part)
            yield part
    finally:
        file.close()

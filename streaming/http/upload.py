"""A file that came with a request, in memory and under a path that other processes can read while it is held."""

from __future__ import annotations

import asyncio
import binascii
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

PART = 1 << 20  # characters decoded at a time, a multiple of 4: other threads wait so long at most


class NoUpload(Exception):
    """What came is no file; the text says why."""


@asynccontextmanager
async def uploaded(base64: str) -> AsyncIterator[str]:
    """The path of a file, given as base64 (RFC 4648, 4), within the block; nothing of it is left however that ends.

    Raises NoUpload if it is no base64, or empty.
    """
    # No file of the disk: it cannot be full, and nothing stays behind after kill -9.
    descriptor = os.memfd_create("upload")
    try:
        await asyncio.to_thread(_write, descriptor, base64)
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _write(descriptor: int, base64: str) -> None:
    for begin in range(0, len(base64), PART):
        try:
            part = binascii.a2b_base64(base64[begin : begin + PART], strict_mode=True)
        except ValueError as error:
            raise NoUpload(
                f"start is no base64 ({error}): send a file in RFC 4648's alphabet, without breaks"
            ) from error
        os.write(descriptor, part)
    if not base64:
        raise NoUpload("start is empty: send a picture or a video")

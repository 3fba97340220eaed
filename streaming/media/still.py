"""The picture on air as JPEG, encoded once however many ask for it, and never on the event loop."""

from __future__ import annotations

import asyncio
import hashlib
import io
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import av
from PIL import Image

from streaming.media.hub import Picture

JPEG_QUALITY = 90  # of Pillow's 95


@dataclass(frozen=True, slots=True)
class Still:
    """A JPEG, and a name for its bytes."""

    jpeg: bytes
    etag: str


class LazyStill:
    """A picture, and its JPEG once somebody asked for it."""

    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        self._encoding: asyncio.Task[Still] | None = None

    async def get(self) -> Still:
        """The JPEG."""
        if self._encoding is None:
            self._encoding = asyncio.create_task(asyncio.to_thread(encode_jpeg, self.picture))
        # One who stops waiting must not take it from the others.
        return await asyncio.shield(self._encoding)


class Stills:
    """The newest JPEG of each channel that was asked for; a channel that is gone takes its own along."""

    def __init__(self) -> None:
        self._newest: WeakKeyDictionary[object, LazyStill] = WeakKeyDictionary()

    async def get(self, channel: object, picture: Picture) -> Still:
        """The JPEG of `picture`, which is what `channel` has on air."""
        known = self._newest.get(channel)
        if known is None or known.picture is not picture:
            known = self._newest[channel] = LazyStill(picture)
        return await known.get()


def encode_jpeg(picture: Picture) -> Still:
    """Encodes a picture, whose samples are BT.601 of limited range."""
    rgb = av.VideoFrame.from_ndarray(picture.i420, format="yuv420p").to_ndarray(format="rgb24")
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=JPEG_QUALITY)
    jpeg = file.getvalue()
    return Still(jpeg, f'"{hashlib.blake2s(jpeg, digest_size=8).hexdigest()}"')

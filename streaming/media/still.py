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


class Stills:
    """The newest JPEG of each channel that was asked for; a channel that is gone takes its own along."""

    def __init__(self) -> None:
        self._newest: WeakKeyDictionary[object, tuple[Picture, asyncio.Task[Still]]] = WeakKeyDictionary()

    async def get(self, channel: object, picture: Picture) -> Still:
        """The JPEG of `picture`, which is what `channel` has on air."""
        known = self._newest.get(channel)
        if known is None or known[0] is not picture:
            known = picture, asyncio.create_task(asyncio.to_thread(encode_jpeg, picture))
            self._newest[channel] = known
        # One who stops waiting must not take it from the others.
        return await asyncio.shield(known[1])


def encode_jpeg(picture: Picture) -> Still:
    """Encodes a picture, whose samples are BT.601 of limited range."""
    rgb = av.VideoFrame.from_ndarray(picture.i420, format="yuv420p").to_ndarray(format="rgb24")
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=JPEG_QUALITY)
    jpeg = file.getvalue()
    return Still(jpeg, f'"{hashlib.blake2s(jpeg, digest_size=8).hexdigest()}"')

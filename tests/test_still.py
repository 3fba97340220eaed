"""The picture on air as JPEG."""

import asyncio
import gc
import io

import numpy as np
import pytest
from fakes import test_frame
from PIL import Image

from engine.video.video_file import to_rgb
from streaming.media import still
from streaming.media.hub import Picture
from streaming.media.still import Stills


class Channel:
    pass


async def test_a_jpeg_looks_like_its_frame() -> None:
    """Size and colours are those of the frame."""
    made = await Stills().get(Channel(), Picture(3, test_frame(3)))
    with Image.open(io.BytesIO(made.jpeg)) as image:
        assert (image.format, image.size) == ("JPEG", (192, 128))
        pixels = np.asarray(image.convert("RGB"), int)
    frame = to_rgb(test_frame(3)).astype(int)
    for place in range(4):
        assert np.abs(pixels[24, 24 + 32 * place] - frame[24, 24 + 32 * place]).max() <= 8


async def test_many_requests_cost_one_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred who ask at once get the bytes of one encoding, also when the first one left."""
    encoded: list[int] = []

    def counted(picture: Picture) -> still.Still:
        encoded.append(picture.index)
        return real(picture)

    real = still.encode_jpeg
    monkeypatch.setattr(still, "encode_jpeg", counted)
    stills, channel, picture = Stills(), Channel(), Picture(0, test_frame(0))
    first = asyncio.create_task(stills.get(channel, picture))
    await asyncio.sleep(0)
    first.cancel()
    answers = await asyncio.gather(*(stills.get(channel, picture) for _ in range(100)))
    assert len({answer.etag for answer in answers}) == 1
    assert encoded == [0]
    other = await stills.get(channel, Picture(1, test_frame(1)))
    assert other.etag != answers[0].etag and encoded == [0, 1]


async def test_a_channel_that_is_gone_leaves_nothing() -> None:
    """Its picture is kept no longer than the channel."""
    stills, channel = Stills(), Channel()
    await stills.get(channel, Picture(0, test_frame(0)))
    assert len(stills._newest) == 1
    del channel
    gc.collect()
    assert len(stills._newest) == 0

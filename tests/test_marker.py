import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.media.hub import Encoder, Geometry
from streaming.media.marker import CLOCK_WRAP_MS, Mark, draw, fits, read


def noisy(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(16, 236, (height * 3 // 2, width), dtype=np.uint8)


@given(st.integers(0, CLOCK_WRAP_MS - 1), st.integers(0, CLOCK_WRAP_MS - 1))
def test_mark_is_read_back(index: int, clock_ms: int) -> None:
    """Every frame number and clock value survives drawing and reading."""
    frame = noisy(128, 192)
    draw(frame, Mark(index, clock_ms))
    assert read(frame[:128]) == Mark(index, clock_ms)


def test_values_wrap_at_32_bits() -> None:
    """Larger values are drawn modulo 2**32 instead of failing."""
    frame = noisy(128, 192)
    draw(frame, Mark(CLOCK_WRAP_MS + 3, 2 * CLOCK_WRAP_MS + 4))
    assert read(frame[:128]) == Mark(3, 4)


@pytest.mark.parametrize("codec", ["vp8", "h264"])
@pytest.mark.parametrize(("height", "width"), [(128, 192), (480, 720)])
def test_mark_survives_encoding(codec: str, height: int, width: int) -> None:
    """Of 24 noisy frames through the encoder at its own bit rate, every mark is read from the decoded pictures."""
    import av

    encoder = Encoder(codec, Geometry(width, height, 8.0))
    decoder = av.CodecContext.create("libvpx" if codec == "vp8" else "h264", "r")
    read_back = []
    for index in range(24):
        frame = noisy(height, width, index)
        draw(frame, Mark(index, 1000 + index))
        for picture in decoder.decode(encoder.encode(frame, index * 11250, index == 0)):
            read_back.append(read(picture.to_ndarray()[:height]))
    for picture in decoder.decode(None):
        read_back.append(read(picture.to_ndarray()[:height]))
    assert read_back == [Mark(index, 1000 + index) for index in range(24)]


@pytest.mark.parametrize("luma", [0, 16, 128, 235, 255])
def test_plain_pictures_have_no_mark(luma: int) -> None:
    """Black, grey and white pictures are not taken for marks."""
    assert read(np.full((128, 192), luma, np.uint8)) is None


def test_damaged_mark_is_not_read() -> None:
    """Each single inverted cell of number, clock and CRC is noticed."""
    frame = noisy(128, 192)
    draw(frame, Mark(123456, 654321))
    for cell in range(96):
        row, column = divmod(cell, 24)
        damaged = frame[:128].copy()
        block = damaged[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
        block[:] = 251 - block
        assert read(damaged) is None, cell


def test_small_pictures_are_refused() -> None:
    """A picture without room raises ValueError when drawn and reads as None."""
    assert not fits(64, 64)
    assert fits(128, 192)
    assert fits(480, 720)
    with pytest.raises(ValueError, match="no room"):
        draw(noisy(64, 64), Mark(0, 0))
    assert read(noisy(64, 64)[:64]) is None
    assert read(np.zeros((0, 0), np.uint8)) is None

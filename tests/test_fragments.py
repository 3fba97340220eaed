"""Packets of the hub's encoder as fragmented mp4."""

import io

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from fakes import test_frame

from streaming.media.fragments import Fragments
from streaming.media.hub import Encoder, Geometry

SIZE = Geometry(192, 128, 8.0)
TICKS = 11250  # of a frame
START = 777_000  # timestamp of the first packet


@pytest.fixture(scope="module")
def packets() -> list[av.Packet]:
    encoder = Encoder("h264", SIZE)
    return [encoder.encode(test_frame(index), START + index * TICKS, index in (0, 12)) for index in range(24)]


@pytest.fixture(params=[True, False], ids=["header alone", "header with a frame"])
def fragments(request: pytest.FixtureRequest) -> Fragments:
    return Fragments(SIZE, request.param)


def played(data: bytes) -> list[av.VideoFrame]:
    with av.open(io.BytesIO(data)) as file:
        return list(file.decode(video=0))


def test_every_prefix_plays_to_its_end(packets: list[av.Packet], fragments: Fragments) -> None:
    """After each packet, all frames but the newest can be decoded; after the end all of them."""
    data = b""
    for count, packet in enumerate(packets):
        data += fragments.add(packet)
        if count:
            assert len(played(data)) == count
    data += fragments.finish()
    assert fragments.finish() == b""
    frames = played(data)
    assert [frame.pts for frame in frames] == [index * TICKS for index in range(24)]
    assert fragments.seconds == 3.0
    for index, frame in enumerate(frames):
        assert np.mean((frame.to_ndarray().astype(float) - test_frame(index)) ** 2) < 65


def test_it_says_size_rate_and_colors(packets: list[av.Packet], fragments: Fragments) -> None:
    """A player learns the size, and that samples are BT.601 of limited range, without decoding more than a frame."""
    data = b"".join(map(fragments.add, packets[:3]))
    with av.open(io.BytesIO(data)) as file:
        (stream,) = file.streams.video
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 192, 128)
        assert float(stream.average_rate) == pytest.approx(8.0)
    frame = played(data)[0]
    assert (frame.colorspace, frame.color_range) == (Colorspace.ITU601, ColorRange.MPEG)


def test_packets_are_left_as_they_are(packets: list[av.Packet], fragments: Fragments) -> None:
    """Other sinks hold the same packets: neither time nor bytes change. A later reader's time begins at 0 too."""
    before = [(packet.pts, packet.dts, packet.time_base, bytes(packet)) for packet in packets]
    data = b"".join(map(fragments.add, packets[12:])) + fragments.finish()
    assert [(packet.pts, packet.dts, packet.time_base, bytes(packet)) for packet in packets] == before
    assert [frame.pts for frame in played(data)] == [index * TICKS for index in range(12)]


def test_a_late_frame_keeps_its_time(fragments: Fragments) -> None:
    """Times are those of the clock: a gap between packets is a gap in the file."""
    encoder = Encoder("h264", SIZE)
    times = [0, TICKS, 9 * TICKS, 10 * TICKS]
    data = b"".join(fragments.add(encoder.encode(test_frame(0), time, time == 0)) for time in times)
    assert [frame.pts for frame in played(data + fragments.finish())] == times


class Arriving:
    """A stream of which a demuxer gets as much as came at a time."""

    def __init__(self, parts: list[bytes]) -> None:
        self._parts, self.taken = parts, 0

    def read(self, size: int) -> bytes:
        if self.taken == len(self._parts):
            return b""
        part = self._parts[self.taken]
        if len(part) > size:
            self._parts[self.taken] = part[size:]
            return part[:size]
        self.taken += 1
        return part


@pytest.mark.parametrize("header_alone", [True, False])
def test_a_player_begins_with_the_first_frames(packets: list[av.Packet], header_alone: bool) -> None:
    """FFmpeg's demuxer knows the frame rate from a header with a frame in it, and else waits for 20 frames."""
    fragments = Fragments(SIZE, header_alone)
    stream = Arriving([part for part in map(fragments.add, packets) if part])
    with av.open(stream, options={"probesize": "5000000"}) as file:
        next(file.decode(video=0))
        assert stream.taken > 20 if header_alone else stream.taken < 6

import asyncio
import time

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from fakes import test_frame

from streaming.media import marker
from streaming.media.hub import CODECS, KEYFRAME_GAP_S, Encoder, Geometry, Hub, Picture
from streaming.media.metrics import Metrics
from streaming.media.rate import Rung

SIZE = Geometry(192, 128, 8.0)


class Collector:
    def __init__(self) -> None:
        self.packets: list[av.Packet] = []

    def offer(self, packet: av.Packet) -> None:
        self.packets.append(packet)

    @property
    def keys(self) -> list[bool]:
        return [bool(packet.is_keyframe) for packet in self.packets]


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Broken(Collector):
    def offer(self, packet: av.Packet) -> None:
        raise AssertionError("a defect, for the test")


async def send(hub: Hub, first: int, count: int) -> None:
    for index in range(first, first + count):
        await hub.encode(Picture(index, test_frame(index)), index * 11250)


def decoded(codec: str, packets: list[av.Packet]) -> list[np.ndarray]:
    decoder = av.CodecContext.create("libvpx" if codec == "vp8" else "h264", "r")
    pictures = [picture for packet in [*packets, None] for picture in decoder.decode(packet)]
    return [picture.to_ndarray() for picture in pictures]


def test_h264_says_its_colors() -> None:
    """A decoder learns from the stream that the samples are BT.601 of limited range."""
    decoder = av.CodecContext.create("h264", "r")
    (picture,) = decoder.decode(Encoder("h264", SIZE).encode(test_frame(0), 0, True)) + decoder.decode(None)
    assert (picture.color_range, picture.colorspace) == (ColorRange.MPEG, Colorspace.ITU601)
    assert (picture.color_primaries, picture.color_trc) == (ColorPrimaries.SMPTE170M, ColorTrc.SMPTE170M)


@pytest.mark.parametrize("codec", CODECS)
def test_encoder_gives_one_decodable_packet_per_frame(codec: str) -> None:
    """Each frame becomes one packet with its own pts; the decoded pictures resemble the frames."""
    encoder = Encoder(codec, SIZE)
    packets = [encoder.encode(test_frame(index), index * 11250, index == 0) for index in range(20)]
    assert [packet.pts for packet in packets] == [index * 11250 for index in range(20)]
    assert [packet.is_keyframe for packet in packets] == [True] + [False] * 19
    pictures = decoded(codec, packets)
    assert len(pictures) == 20
    for index, picture in enumerate(pictures):
        error = np.mean((picture.astype(float) - test_frame(index)) ** 2)
        assert error < 65, f"frame {index} decodes to under 30 dB"


@pytest.mark.parametrize("codec", CODECS)
def test_forced_keyframe_decodes_alone(codec: str) -> None:
    """A key frame in mid-stream needs nothing that came before it."""
    encoder = Encoder(codec, SIZE)
    packets = [encoder.encode(test_frame(index), index * 11250, index in (0, 7)) for index in range(10)]
    assert [packet.is_keyframe for packet in packets] == [index in (0, 7) for index in range(10)]
    assert len(decoded(codec, packets[7:])) == 3


@pytest.mark.parametrize("codec", CODECS)
def test_rate_holds_on_noise(codec: str) -> None:
    """Content that cannot be compressed stays within 1.5 times the bit rate after the first second."""
    encoder = Encoder(codec, SIZE)
    random = np.random.default_rng(0)
    sizes = []
    for index in range(40):
        frame = random.integers(16, 236, (192, 192), dtype=np.uint8)
        sizes.append(encoder.encode(frame, index * 11250, index == 0).size)
    assert sum(sizes[8:]) * 8 / 4 < 1.5 * SIZE.rate_bps()


@pytest.mark.parametrize("codec", CODECS)
def test_low_rung_fits_a_slow_network(codec: str) -> None:
    """A picture of 256x384 in motion needs 200 kbit/s, and a key frame no more than half a second of it."""
    size = Geometry(384, 256, 16.0)
    encoder = Encoder(codec, size, Rung.LOW)
    packets = [encoder.encode(test_frame(index, 256, 384), index * 5625, index in (0, 32)) for index in range(80)]
    assert [packet.is_keyframe for packet in packets] == [index in (0, 32) for index in range(80)]
    assert sum(packet.size for packet in packets[16:]) * 8 / 4 < 1.15 * size.rate_bps(Rung.LOW)
    assert packets[32].size * 8 < 0.5 * size.rate_bps(Rung.LOW)


async def test_second_sink_gets_a_keyframe_and_the_first_sees_no_gap() -> None:
    """Encode once: both sinks hold the very same packets from the second one's join on."""
    hub, one, two = Hub("vp8", SIZE, False, Metrics().channel("main")), Collector(), Collector()
    hub.add(one)
    await send(hub, 0, 3)
    hub.add(two)
    assert hub.joined
    await send(hub, 3, 2)
    hub.close()
    assert one.keys == [True, False, False, True, False]
    assert two.packets == one.packets[3:]
    assert [packet.pts for packet in one.packets] == [index * 11250 for index in range(5)]


async def test_a_sink_that_fails_ends_nobody_elses_video(caplog: pytest.LogCaptureFixture) -> None:
    """It gets nothing more, which the log tells as the defect that it is."""
    hub, one, broken = Hub("vp8", SIZE, False, Metrics().channel("main")), Collector(), Broken()
    hub.add(broken)
    hub.add(one)
    await send(hub, 0, 3)
    hub.close()
    assert len(one.packets) == 3 and hub.sinks == 1
    assert caplog.text.count("a receiver failed, which is a defect") == 1


async def test_keyframe_requests_are_coalesced_and_rate_limited() -> None:
    """Many requests within the gap give one key frame, when the gap is over; none is lost."""
    clock, sink = Clock(), Collector()
    hub = Hub("vp8", SIZE, False, Metrics().channel("main"), clock)
    hub.add(sink)
    await send(hub, 0, 1)
    for index in range(1, 9):
        hub.request_keyframe()
        clock.now_s += KEYFRAME_GAP_S / 4
        await send(hub, index, 1)
    hub.close()
    assert sink.keys == [True, False, False, False, True, False, False, False, True]


async def test_discarded_sink_gets_nothing_more() -> None:
    """After discard no packet comes; discarding twice does no harm."""
    hub, sink = Hub("h264", SIZE, False, Metrics().channel("main")), Collector()
    hub.add(sink)
    await send(hub, 0, 1)
    hub.discard(sink)
    hub.discard(sink)
    await send(hub, 1, 1)
    hub.close()
    assert (len(sink.packets), hub.sinks) == (1, 0)


async def test_marker_is_drawn_on_a_copy() -> None:
    """A marked hub sends frame number and clock; the picture itself is left alone."""
    hub, sink = Hub("vp8", SIZE, True, Metrics().channel("main"), Clock()), Collector()
    hub.add(sink)
    frame = test_frame(41)
    await hub.encode(Picture(41, frame), 0)
    hub.close()
    np.testing.assert_array_equal(frame, test_frame(41))
    assert marker.read(decoded("vp8", sink.packets)[0][:128]) == marker.Mark(41, 1_000_000)


async def test_encoding_does_not_hold_the_event_loop() -> None:
    """While a large picture is encoded in the hub's thread, the loop goes on."""
    hub, sink = Hub("h264", Geometry(1920, 1080, 8.0), False, Metrics().channel("main")), Collector()
    hub.add(sink)
    frame = np.random.default_rng(0).integers(16, 236, (1620, 1920), dtype=np.uint8)
    encoding = asyncio.create_task(hub.encode(Picture(0, frame), 0))
    turns = 0
    began_s = time.monotonic()
    while not encoding.done() and time.monotonic() - began_s < 20:
        turns += 1
        await asyncio.sleep(0)
    await encoding
    hub.close()
    assert turns > 10
    assert len(sink.packets) == 1


@pytest.mark.parametrize(("width", "height", "fps"), [(0, 128, 8), (191, 128, 8), (192, 127, 8), (192, 128, 0)])
def test_bad_geometry_is_refused(width: int, height: int, fps: float) -> None:
    """I420 needs even sides, and a rate must be positive."""
    with pytest.raises(ValueError, match=r"even|fps"):
        Geometry(width, height, fps)


def test_unknown_codec_is_refused() -> None:
    """The message names the codecs there are."""
    with pytest.raises(ValueError, match="vp8, h264"):
        Encoder("av1", SIZE)

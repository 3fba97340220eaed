"""A viewer's jitter buffer: it waits for lost packets, but not for ever."""

from pathlib import Path

import pytest
from aiortc import RTCPeerConnection
from aiortc.rtp import RtpPacket
from test_profiles import COMMAND, needs_namespaces

from streaming.bench import profiles, run
from streaming.bench.jitter_buffer import BUFFER, PATIENCE_S, BrowserJitterBuffer
from streaming.bench.profiles import Profile
from streaming.bench.run import BenchPlan
from streaming.bench.watch import WatchConfig

VP8 = {True: (b"\x10", b"\x00"), False: (b"\x10", b"\x01")}  # payload descriptor and first byte, by key frame
H264 = {True: (b"", b"\x00\x00\x00\x01\x67"), False: (b"", b"\x00\x00\x00\x01\x41")}


class Stream:
    """Frames of one packet each, into a buffer whose clock the test sets."""

    def __init__(self, codec: str) -> None:
        self.now_s = 0.0
        self.heads = VP8 if codec == "video/VP8" else H264
        self.buffer = BrowserJitterBuffer(lambda kind: codec, lambda: self.now_s)

    def send(self, number: int, key: bool = False) -> tuple[bool, int | None]:
        """Whether a key frame is asked for, and the number of the frame that became whole."""
        descriptor, data = self.heads[key]
        packet = RtpPacket(payload_type=97, sequence_number=number, timestamp=3000 * number)
        packet.payload = descriptor + data
        packet._data = data  # type: ignore[attr-defined]
        wanted, frame = self.buffer.add(packet)
        return wanted, None if frame is None else frame.timestamp // 3000


@pytest.fixture(params=["video/VP8", "video/H264"])
def stream(request: pytest.FixtureRequest) -> Stream:
    made = Stream(request.param)
    assert [made.send(number, number == 0) for number in range(3)] == [(False, None), (False, 0), (False, 1)]
    return made


def test_a_packet_that_comes_late_is_waited_for(stream: Stream) -> None:
    """Nothing is left out then."""
    assert [stream.send(number) for number in (4, 5)] == [(False, None), (False, None)]
    assert stream.send(3)[1] == 2
    assert [stream.send(number)[1] for number in (6, 7)] == [3, 4]


def test_a_key_frame_ends_the_wait(stream: Stream) -> None:
    """What came before it and is not whole is left out."""
    assert stream.send(5) == (False, None)
    assert stream.send(6, key=True) == (False, None)
    assert stream.send(7) == (False, 6)


def test_a_key_frame_is_asked_for(stream: Stream) -> None:
    """Once for as long as a packet is waited for, whatever comes meanwhile."""
    assert stream.send(5) == (False, None)
    stream.now_s = 0.9 * PATIENCE_S
    assert stream.send(6) == (False, None)
    stream.now_s = 1.1 * PATIENCE_S
    assert stream.send(7) == (True, None)
    assert stream.send(8) == (False, None)
    stream.now_s = 2.2 * PATIENCE_S
    assert stream.send(9) == (True, None)


async def test_a_receiver_has_it() -> None:
    """aiortc has its own at the place that is taken."""
    peer = RTCPeerConnection()
    receiver = peer.addTransceiver("video", direction="recvonly").receiver
    assert type(receiver.__dict__[BUFFER]) is BrowserJitterBuffer.__base__
    BrowserJitterBuffer.put_into(receiver)
    assert isinstance(receiver.__dict__[BUFFER], BrowserJitterBuffer)
    await peer.close()


@needs_namespaces
def test_a_viewer_goes_on_when_its_network_is_back(loopback: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind three seconds without one, of a video of so few packets that aiortc would wait for the rest of it."""
    monkeypatch.setattr("streaming.bench.watch.PROMPTS", ("a white ball at night",))
    monkeypatch.setattr(profiles, "PROFILES", {"gone": Profile(blackhole_s=3.0)})
    monkeypatch.setattr(profiles, "BLACKHOLE_AFTER_S", 2.0)
    config = WatchConfig(16.0, settle_s=0.5, first_prompt_s=8.0, prompt_every_s=8.0)
    report = run._behind_wire(BenchPlan(config, Path("unused.json")), COMMAND, "gone")
    assert report["failed"] == []
    assert 2900 < report["longest_gap_ms"] < 6000

import asyncio
import resource
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import aiortc
import pytest
from aioice.ice import StunProtocol
from aiortc import RTCRtpCodecParameters, RTCRtpHeaderExtensionParameters, RTCRtpParameters, clock, rtp
from aiortc.rtcdtlstransport import State
from pylibsrtp import Policy, Session

from streaming.http.whep import HIGHEST_EXTENSION, LONGEST_MID
from streaming.media.rtp_hooks import SenderHooks
from streaming.media.rtp_sender import HISTORY, NTP_HZ, SLOTS, RtpSender, ntp_time

KEY = bytes(range(30))
PAYLOADS = [b"first", bytes(1300), b"last"]
EXTENSIONS = [
    RTCRtpHeaderExtensionParameters(2, "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time"),
    RTCRtpHeaderExtensionParameters(5, "urn:ietf:params:rtp-hdrext:sdes:mid"),
]


class Line:
    """A real RTCRtpSender with its keys and a socket, and who receives at the other end."""

    def __init__(self, protocol: Any, receiver: socket.socket, extensions: list[Any], rtx: bool) -> None:
        pair = SimpleNamespace(protocol=protocol, remote_addr=receiver.getsockname())
        self.transport: Any = SimpleNamespace(
            state="connected",
            _state=State.CONNECTED,
            _tx_srtp=Session(Policy(key=KEY, ssrc_type=Policy.SSRC_ANY_OUTBOUND)),
            transport=SimpleNamespace(_connection=SimpleNamespace(_nominated={1: pair})),
        )
        self.sender = aiortc.RTCRtpSender("video", self.transport)
        self.connections = 0
        self.packets = RtpSender(self.sender, self._connected)
        parameters = RTCRtpParameters(headerExtensions=extensions)
        self._receiver, self._session = receiver, Session(Policy(key=KEY, ssrc_type=Policy.SSRC_ANY_INBOUND))
        self._known = rtp.HeaderExtensionsMap()
        self._known.configure(parameters)
        named: Any = self.sender.__dict__
        named["_RTCRtpSender__rtp_header_extensions_map"].configure(parameters)
        named["_RTCRtpSender__mid"] = "0"
        named["_RTCRtpSender__rtx_payload_type"] = 98 if rtx else None

    def _connected(self) -> None:
        self.connections += 1

    def extensions(self) -> list[dict[int, bytes]]:
        """The header extensions of all packets that came, by their numbers."""
        found = []
        while (data := self._take()) is not None:
            plain = self._session.unprotect(data)
            end = 16 + 4 * int.from_bytes(plain[14:16], "big")
            found.append(dict(rtp.unpack_header_extensions(int.from_bytes(plain[12:14], "big"), plain[16:end])))
        return found

    def _take(self) -> bytes | None:
        try:
            return self._receiver.recv(2000)
        except BlockingIOError:
            return None

    def received(self) -> list[Any]:
        """All packets that came, in order."""
        found = []
        while (data := self._take()) is not None:
            found.append(rtp.RtpPacket.parse(self._session.unprotect(data), self._known))
        return found


@asynccontextmanager
async def line(
    protocol: Callable[[], Any] = lambda: StunProtocol(None),
    extensions: list[Any] = EXTENSIONS,
    rtx: bool = True,
) -> AsyncIterator[Line]:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)
        transport, made = await loop.create_datagram_endpoint(protocol, local_addr=("127.0.0.1", 0))
        one = Line(made, receiver, extensions, rtx)
        running = asyncio.create_task(one.sender._run_rtp(RTCRtpCodecParameters("video/VP8", 90000, payloadType=97)))
        await asyncio.sleep(0)
        try:
            yield one
        finally:
            running.cancel()
            await asyncio.wait([running])
            transport.close()


async def test_a_frame_goes_out_as_its_packets() -> None:
    """Headers, extensions, mark and payloads are those of RTP, encrypted with the connection's key."""
    async with line() as one:
        assert one.connections == 1
        assert one.packets.send(PAYLOADS, 9000) and one.packets.send([b"next"], 20250)
        first, second, third, fourth = one.received()
    assert [packet.payload for packet in (first, second, third, fourth)] == [*PAYLOADS, b"next"]
    assert [packet.marker for packet in (first, second, third, fourth)] == [0, 0, 1, 1]
    assert {packet.sequence_number - first.sequence_number for packet in (first, second, third, fourth)} == {0, 1, 2, 3}
    assert first.sequence_number < 1 << 15
    assert first.timestamp == third.timestamp and (fourth.timestamp - first.timestamp) % (1 << 32) == 11250
    assert {(packet.ssrc, packet.payload_type) for packet in (first, fourth)} == {(one.sender._ssrc, 97)}
    assert first.extensions.mid == "0" and first.extensions.abs_send_time > 0


async def test_the_longest_headers_have_room() -> None:
    """Of an offer with the longest mid, high numbers of extensions, and a receiver that holds pictures back."""
    extensions = [
        RTCRtpHeaderExtensionParameters(HIGHEST_EXTENSION - place, one.uri) for place, one in enumerate(EXTENSIONS)
    ]
    transceiver: Any = SimpleNamespace(_headerExtensions=[])
    async with line(extensions=extensions) as one:
        named: Any = one.sender.__dict__
        named["_RTCRtpSender__mid"] = "m" * LONGEST_MID
        one.packets.negotiate_playout_delay(transceiver, OFFER.format("14"))
        one.packets.hold(0.35)
        assert one.packets.send(PAYLOADS, 0)
        assert [packet.payload for packet in one.received()] == PAYLOADS


async def test_a_day_of_video_is_sent_in_order() -> None:
    """Timestamps of 32 bits and sequence numbers wrap without a gap; counts of sender reports go on."""
    day, frame, reports = 24 * 3600 * 90_000, 11_250, []
    async with line() as one:
        named: Any = one.sender.__dict__
        named["_RTCRtpSender__octet_count"] = (1 << 32) - 5

        async def keep(data: bytes) -> None:
            reports.extend(rtp.RtcpPacket.parse(data))

        one.transport._send_rtp = keep
        one.packets._number = (1 << 16) - 8
        stamps, numbers = [], []
        # Around the places where the timestamp wraps, and at the end of the day.
        wrap = (1 << 32) - one.packets._origin
        for first in (0, wrap - 3 * frame, wrap + (1 << 32) - 3 * frame, day - 6 * frame):
            for pts in range(first, first + 6 * frame, frame):
                assert one.packets.send(PAYLOADS, pts)
                packets = one.received()
                assert [packet.payload for packet in packets] == PAYLOADS
                stamps.append((packets[0].timestamp, pts))
                numbers += [packet.sequence_number for packet in packets]
            await SenderHooks(one.sender, one.packets, lambda: None, 500_000).ask_report()
    assert {(stamp - pts) % (1 << 32) for stamp, pts in stamps} == {one.packets._origin}
    assert {(later - earlier) % (1 << 16) for earlier, later in zip(numbers, numbers[1:], strict=False)} == {1}
    assert {0, 65535} <= set(numbers)
    assert [report.sender_info.rtp_timestamp for report in reports] == [stamp for stamp, _ in stamps[5::6]]
    assert [report.sender_info.octet_count for report in reports] == [6 * 1309 * count - 5 for count in (1, 2, 3, 4)]


async def test_times_of_sending_do_not_follow_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is set by hours makes no step in what receivers measure their network by."""
    async with line() as one:
        now = clock.current_datetime()
        times = []
        for hours in (0, 5, -5):
            monkeypatch.setattr(clock, "current_datetime", lambda hours=hours: now + timedelta(hours=hours))
            monkeypatch.setattr(time, "time", lambda hours=hours: now.timestamp() + 3600 * hours)
            one.packets.send([b"first"], 0)
            (packet,) = one.received()
            times.append(packet.extensions.abs_send_time)
        assert all(0 <= (later - times[0]) % (1 << 24) < 10 << 18 for later in times)
    assert abs((ntp_time() - clock.datetime_to_ntp(now)) / NTP_HZ) < 3600


OFFER = "v=0\r\na=extmap:3 urn:x\r\na=extmap:{} http://www.webrtc.org/experiments/rtp-hdrext/playout-delay\r\n"


async def test_every_packet_tells_how_long_to_hold_pictures_back() -> None:
    """From the first delay on, also in what is sent again; 0 ends it."""
    transceiver: Any = SimpleNamespace(_headerExtensions=[])
    async with line() as one:
        one.packets.negotiate_playout_delay(transceiver, OFFER.format("7/recvonly"))
        (negotiated,) = transceiver._headerExtensions
        assert (negotiated.id, negotiated.uri.rpartition("/")[2]) == (7, "playout-delay")
        one.packets.hold(0.0)
        one.packets.send([b"first"], 0)
        assert [sorted(values) for values in one.extensions()] == [[2, 5]]
        one.packets.hold(0.35)
        one.packets.send([b"next", b"last"], 5)
        one.packets.resend(one.packets.last(1)[0])
        told = one.extensions()
        assert [values[7].hex() for values in told] == ["0233e8"] * 3
        assert {values[5] for values in told} == {b"0"}
        one.packets.hold(0.0)
        one.packets.send([b"later"], 9)
        assert [values[7].hex() for values in one.extensions()] == ["0003e8"]


@pytest.mark.parametrize("offer", ["v=0\r\n", OFFER.format("0"), OFFER.format("15"), OFFER.format("x")])
async def test_a_receiver_that_knows_no_playout_delay_is_told_none(offer: str) -> None:
    """Neither one that does not offer it nor one with a number that the short header has not."""
    transceiver: Any = SimpleNamespace(_headerExtensions=[])
    async with line() as one:
        one.packets.negotiate_playout_delay(transceiver, offer)
        one.packets.hold(0.35)
        assert (transceiver._headerExtensions, one.packets.playout_delay_s) == ([], 0.0)
        one.packets.send([b"first"], 0)
        assert [sorted(values) for values in one.extensions()] == [[2, 5]]


async def test_a_frame_goes_out_without_a_descriptor_left() -> None:
    """A server that has no more of them sends by another way, and nothing is raised into the channel's clock."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with line() as one:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
        try:
            assert one.packets.send(PAYLOADS, 9000)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert [packet.payload for packet in one.received()] == PAYLOADS


async def test_a_long_frame_and_many_frames_are_sent_in_order() -> None:
    """More packets than the buffer has room for; sequence numbers wrap and old packets are forgotten."""
    payloads = [bytes([place % 251]) * 5 for place in range(2 * SLOTS + 3)]
    async with line(extensions=[]) as one:
        one.packets._number = (1 << 16) - 2
        assert one.packets.send(payloads, 0)
        received = one.received()
        assert [packet.payload for packet in received] == payloads
        assert [packet.sequence_number for packet in received[:4]] == [65534, 65535, 0, 1]
        assert received[0].extensions.abs_send_time is None
        for _ in range(HISTORY):
            one.packets.send([b"later"], 1)
            one.received()
        assert one.packets.sent(0) is None


@pytest.mark.parametrize("rtx", [True, False])
async def test_a_packet_is_sent_again(rtx: bool) -> None:
    """As RFC 4588 has it where the receiver knows that, with a send time of its own; otherwise as it was."""
    async with line(rtx=rtx) as one:
        one.packets.send(PAYLOADS, 9000)
        first, *_ = one.received()
        kept = one.packets.sent(first.sequence_number)
        assert kept is not None and one.packets.sent(first.sequence_number + HISTORY) is None
        await asyncio.sleep(0.001)
        one.packets.resend(kept)
        if rtx:
            one.packets.resend(kept)
            again, twice = one.received()
            assert twice.sequence_number == again.sequence_number + 1
            assert (again.payload_type, again.ssrc) == (98, one.sender._rtx_ssrc)
            assert rtp.unwrap_rtx(again, 97, one.sender._ssrc).payload == b"first"
            assert again.extensions.abs_send_time != first.extensions.abs_send_time
        assert one.received() == [], "a receiver without RTX drops its repetition as a replay"


async def test_nothing_is_kept_behind_the_end() -> None:
    """What could be sent again takes a megabyte, and aiortc's objects, which hold it, go later."""
    async with line() as one:
        one.packets.send(PAYLOADS, 9000)
        assert one.packets.last(3)
        one.packets.close()
        assert not one.packets.last(3)


async def test_sender_reports_tell_what_was_sent() -> None:
    """The counts that aiortc puts into RTCP are right."""
    async with line() as one:
        one.packets.send(PAYLOADS, 9000)
        (packet, *_) = one.received()
        named = one.sender.__dict__
        assert named["_RTCRtpSender__packet_count"] == 3
        assert named["_RTCRtpSender__octet_count"] == 1309
        assert named["_RTCRtpSender__rtp_timestamp"] == packet.timestamp


async def test_other_ways_than_a_socket_are_taken() -> None:
    """What TURN relays is handed to its transport, not to a socket."""

    class Relay(StunProtocol):
        pass

    async with line(lambda: Relay(None)) as one:
        one.packets.send(PAYLOADS, 0)
        assert [packet.payload for packet in one.received()] == PAYLOADS


async def test_nothing_is_sent_outside_of_a_connection() -> None:
    """Neither before ICE has a pair, nor while DTLS is closed, nor after the end; ending twice does no harm."""
    async with line() as one:
        one.transport._state = State.CLOSED
        assert one.packets.send(PAYLOADS, 0)
        one.transport._state = State.CONNECTED
        pairs = one.transport.transport._connection._nominated
        pair = pairs.pop(1)
        assert one.packets.send(PAYLOADS, 0)
        pairs[1] = pair
        one.packets.close()
        one.packets.close()
        assert one.packets.send(PAYLOADS, 0)
        assert one.received() == []


async def test_a_network_that_takes_no_more_is_told() -> None:
    """A full socket gives False, so that the picture goes on with a key frame; one that is down counts as loss."""
    async with line() as one:
        one.packets.send(PAYLOADS, 0)
        outlet: Any = one.packets._outlet
        outlet.close()
        for error, taken in ((BlockingIOError(), False), (OSError(101, "Network is unreachable"), True)):
            outlet._socket = Full(error)
            assert one.packets.send(PAYLOADS, 0) is taken


class Full:
    """A socket that takes nothing."""

    def __init__(self, error: OSError) -> None:
        self._error = error

    def sendto(self, *_: object) -> None:
        raise self._error

    def close(self) -> None:
        return

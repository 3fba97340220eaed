import gc
import struct
from types import SimpleNamespace
from typing import Any

import aioice.ice
import aiortc
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, rtp
from aiortc.rate import RateBucket

from streaming.media import rtp_hooks
from streaming.media.rate import Feedback
from streaming.media.rtp_hooks import (
    REQUESTS_AS_ONE,
    RTCP_HZ,
    SenderHooks,
    end_consent_with_connection,
    receive_nothing,
    self_check,
    use_addresses,
)
from streaming.media.rtp_sender import Sent


class Packets:
    """In place of an RtpSender: packets that were sent, and those that are sent again."""

    def __init__(self) -> None:
        self.history: dict[int, Sent] = {}
        self.again: list[Sent] = []

    def sent(self, number: int) -> Sent | None:
        return self.history.get(number)

    def last(self, count: int) -> list[Sent]:
        return list(self.history.values())[-count:]

    def forget(self) -> None:
        self.history.clear()

    def resend(self, packet: Sent) -> None:
        self.again.append(packet)


async def _send(data: bytes) -> None:
    """Takes RTCP."""


class Bench:
    """A real RTCRtpSender with hooks."""

    def __init__(self, rate_bps: int = 800_000) -> None:
        transport: Any = SimpleNamespace(state="new", _stats_id="transport", _send_rtp=_send)
        self.sender = aiortc.RTCRtpSender("video", transport)
        self.packets: Any = Packets()
        self.now_s = 50.0
        self.keyframes = 0
        self.heard: list[Feedback] = []
        self.hooks = SenderHooks(self.sender, self.packets, self._key, rate_bps, lambda: self.now_s, self.heard.append)

    def _key(self) -> None:
        self.keyframes += 1

    def remember(self, number: int, size: int = 1000) -> None:
        self.packets.history[number] = Sent(number, 0, 0, bytes(size))

    async def nack(self, *lost: int) -> None:
        await self.sender._handle_rtcp_packet(
            rtp.RtcpRtpfbPacket(fmt=rtp.RTCP_RTPFB_NACK, ssrc=1, media_ssrc=self.sender._ssrc, lost=list(lost))
        )


async def test_installed_aiortc_passes_the_self_check() -> None:
    """The pinned aiortc has every private name the hooks use."""
    await self_check()


async def test_other_aiortc_fails_the_self_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another series, or a private name that moved, is named with the cure."""
    monkeypatch.setattr(rtp_hooks, "PRIVATE_NAMES", ("_retransmit", "_moved_away"))
    with pytest.raises(RuntimeError, match=r"_moved_away; install aiortc==1\.16"):
        await self_check()
    monkeypatch.setattr(aiortc, "__version__", "2.0.0")
    with pytest.raises(RuntimeError, match=r"aiortc 2\.0\.0 is installed"):
        await self_check()


@pytest.mark.parametrize("fmt", [rtp.RTCP_PSFB_PLI, rtp.RTCP_PSFB_FIR])
async def test_keyframe_requests_reach_the_hub(fmt: int) -> None:
    """PLI and FIR call the hub's function."""
    bench = Bench()
    await bench.sender._handle_rtcp_packet(rtp.RtcpPsfbPacket(fmt=fmt, ssrc=1, media_ssrc=bench.sender._ssrc))
    assert bench.keyframes == 1


async def test_reports_are_heard_and_bandwidth_is_noted() -> None:
    """Any RTCP counts as a sign of life; REMB is read and other application feedback is ignored."""
    bench = Bench()
    assert bench.hooks.last_heard_s is None
    fci = rtp.pack_remb_fci(300_000, [bench.sender._ssrc])
    await bench.sender._handle_rtcp_packet(rtp.RtcpPsfbPacket(fmt=rtp.RTCP_PSFB_APP, ssrc=1, media_ssrc=0, fci=fci))
    assert bench.hooks.last_heard_s == 50.0
    assert bench.hooks.remb_bps == pytest.approx(300_000, rel=0.01)
    await bench.sender._handle_rtcp_packet(
        rtp.RtcpPsfbPacket(fmt=rtp.RTCP_PSFB_APP, ssrc=1, media_ssrc=0, fci=struct.pack("!4s", b"XXXX"))
    )
    assert bench.hooks.remb_bps == pytest.approx(300_000, rel=0.01)


async def test_retransmissions_keep_within_the_budget() -> None:
    """At 800 kbit/s a quarter is 25 kB a second: a storm of 100 packets sends 25, a second later 25 more."""
    bench = Bench()
    for number in range(100):
        bench.remember(number)
    await bench.nack(*range(100))
    assert (bench.hooks.resent, bench.hooks.withheld) == (25, 75)
    assert bench.heard[-1].withheld == 75
    bench.now_s += 1.0
    await bench.nack(*range(100))
    assert bench.hooks.resent == 50
    bench.now_s += 1000.0
    await bench.nack(*range(100))
    assert bench.hooks.resent == 75, "an unused budget is not saved up for ever"


async def test_one_packet_is_not_sent_again_at_once() -> None:
    """Requests for the same packet within 100 ms send it once."""
    bench = Bench()
    bench.remember(5, 10)
    await bench.nack(5)
    await bench.nack(5)
    assert len(bench.packets.again) == 1
    bench.now_s += 0.2
    await bench.nack(5)
    assert len(bench.packets.again) == 2


async def test_flood_of_feedback_is_not_heard() -> None:
    """Of 5,000 packets, or of requests for many packets, as much is heard as a receiver may say in a second."""
    bench = Bench()
    fci = rtp.pack_remb_fci(300_000, [bench.sender._ssrc])
    remb = rtp.RtcpPsfbPacket(fmt=rtp.RTCP_PSFB_APP, ssrc=1, media_ssrc=0, fci=fci)
    for _ in range(5000):
        await bench.sender._handle_rtcp_packet(remb)
    assert len(bench.heard) == RTCP_HZ
    bench.now_s += 0.5
    for _ in range(5000):
        await bench.nack(*range(6 * REQUESTS_AS_ONE))
    assert len(bench.heard) == RTCP_HZ + RTCP_HZ // 2 // 7
    assert bench.hooks.last_heard_s == bench.now_s


async def test_who_only_sends_keeps_nothing_to_receive_with() -> None:
    """Of each connection that is a thousand objects of aiortc's."""
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    try:
        transceiver = peer.addTransceiver("video", direction="sendonly")
        kept = len([one for one in gc.get_objects() if type(one) is RateBucket])
        receive_nothing(transceiver)
        left = len([one for one in gc.get_objects() if type(one) is RateBucket])
        assert kept - left >= 1000
    finally:
        await peer.close()


async def test_unknown_packets_cost_nothing() -> None:
    """A request for a packet that left the history, or never was, is ignored."""
    bench = Bench()
    bench.remember(5)
    await bench.nack(4, 9)
    assert (bench.hooks.resent, bench.hooks.withheld, bench.packets.again) == (0, 0, [])


async def test_requests_count_once() -> None:
    """A packet that is asked for again is no new loss; what the budget withholds is one."""
    bench = Bench()
    for number in range(100):
        bench.remember(number)
    await bench.nack(1, 2, 3)
    await bench.nack(2, 3, 4)
    assert [one.requested for one in bench.heard] == [3, 1]


async def test_few_packets_and_lost_reports_make_no_loss() -> None:
    """The share is of the packets since the last word on it, whatever each report says of its own few."""
    bench = Bench()
    lost = 0
    for highest in range(0, 1000, 10):
        # One packet in twenty, told by a report over two packets; every other report gets lost.
        lost += highest % 20 == 0
        own = rtp.RtcpReceiverInfo(bench.sender._ssrc, 128, lost, highest, 0, 0, 0)
        if highest % 20 == 0:
            await bench.sender._handle_rtcp_packet(rtp.RtcpRrPacket(ssrc=1, reports=[own]))
    told = [one.lost_share for one in bench.heard if one.lost_share is not None]
    assert told == [pytest.approx(0.05)] * 9


async def test_receiver_report_tells_loss_and_round_trip() -> None:
    """The round trip is counted from the sender report that it answers, less the time the receiver kept it."""
    bench = Bench()
    await bench.hooks.ask_report()
    bench.now_s += 1.3
    own, resent = (
        rtp.RtcpReceiverInfo(
            ssrc=ssrc, fraction_lost=lost, packets_lost=0, highest_sequence=0, jitter=0, lsr=0, dlsr=65536
        )
        for ssrc, lost in ((bench.sender._ssrc, 64), (bench.sender._rtx_ssrc, 128))
    )
    await bench.sender._handle_rtcp_packet(rtp.RtcpRrPacket(ssrc=1, reports=[own, resent]))
    own.highest_sequence = 2
    await bench.sender._handle_rtcp_packet(rtp.RtcpRrPacket(ssrc=1, reports=[own, resent]))
    assert [one.lost_share for one in bench.heard] == [None, None], "two packets say nothing"
    own.highest_sequence, own.packets_lost, own.fraction_lost = 104, 26, 0
    await bench.sender._handle_rtcp_packet(rtp.RtcpRrPacket(ssrc=1, reports=[own, resent]))
    feedback = bench.heard[-1]
    assert (feedback.lost_share, feedback.resent_lost_share, feedback.asked_s) == (0.25, 0.5, 50.0)
    assert feedback.rtt_s == pytest.approx(0.3)
    own.highest_sequence, own.packets_lost = 50, 0
    await bench.sender._handle_rtcp_packet(rtp.RtcpRrPacket(ssrc=1, reports=[own]))
    assert bench.heard[-1].lost_share is None, "a receiver that begins anew says nothing at first"
    own.highest_sequence, own.packets_lost = 150, -3
    await bench.sender._handle_rtcp_packet(rtp.RtcpRrPacket(ssrc=1, reports=[own]))
    assert bench.heard[-1].lost_share == 0.0, "packets that came late count as lost until then"
    own.lsr = 77
    await bench.sender._handle_rtcp_packet(rtp.RtcpRrPacket(ssrc=1, reports=[own]))
    assert bench.heard[-1].rtt_s is None, "that report was never sent"


async def test_new_bit_rate_forgets_what_was_sent() -> None:
    """After a change of rung no packet of the old one is sent again, and the budget is the new rate's."""
    bench = Bench()
    bench.remember(1)
    bench.hooks.limit(40_000)
    await bench.nack(1)
    assert bench.hooks.resent == 0
    for number in range(2, 22):
        bench.remember(number)
    await bench.nack(*range(2, 22))
    assert bench.hooks.resent == 12, "100 kbit/s are 12.5 kB a second"


async def test_probe_sends_what_was_sent() -> None:
    """A probe is as large as asked, of the largest packets, and costs no budget; without any packet it is nothing."""
    bench = Bench()
    bench.hooks.probe(3000)
    assert bench.packets.again == []
    for number in range(40):
        bench.remember(number, 100 if number % 2 else 1200)
    bench.hooks.probe(3000)
    assert [len(packet.payload) for packet in bench.packets.again] == [1200] * 3
    assert bench.hooks.resent == 0


async def test_consent_ends_with_its_connection() -> None:
    """A connection that was closed while its checks succeeded asks for no consent; an open one does."""
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    sender = peer.addTransceiver("video", direction="sendonly").sender
    connection = sender.transport.transport._connection
    asked = []

    async def ask() -> None:
        asked.append(True)

    connection.query_consent = ask
    end_consent_with_connection(sender.transport)
    await connection.query_consent()
    assert asked == [True]
    await connection.close()
    await connection.query_consent()
    assert asked == [True]
    await peer.close()


@pytest.mark.usefixtures("loopback")
async def test_ice_offers_the_chosen_addresses_only() -> None:
    """Candidates of a new connection carry the chosen address and no other."""
    use_addresses(["127.0.0.1"])
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    peer.addTransceiver("video", direction="recvonly")
    await peer.setLocalDescription(await peer.createOffer())
    candidates = [line for line in peer.localDescription.sdp.splitlines() if line.startswith("a=candidate:")]
    await peer.close()
    assert candidates
    assert all(line.split()[4] == "127.0.0.1" for line in candidates)


@pytest.mark.usefixtures("loopback")
def test_addresses_are_chosen_by_family() -> None:
    """IPv6 addresses are given only where ICE asks for IPv6; a name is refused."""
    use_addresses(["127.0.0.1", "::1"])
    assert aioice.ice.get_host_addresses(use_ipv4=True, use_ipv6=False) == ["127.0.0.1"]
    assert aioice.ice.get_host_addresses(use_ipv4=False, use_ipv6=True) == ["::1"]
    with pytest.raises(ValueError, match="localhost"):
        use_addresses(["localhost"])

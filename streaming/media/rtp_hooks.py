"""With `rtp_sender.py`, `ice.py` and `ice_requests.py` all that touches private names of aiortc, aioice and pylibsrtp.

`self_check` says when they moved.

It brings receivers' key-frame requests to the hub, keeps retransmissions within a budget (a storm of them would keep a
slow link full), notes when a receiver was last heard, takes RSA certificates, chooses the addresses of ICE, and ends
ICE with its connection.
"""

from __future__ import annotations

import inspect
import ipaddress
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import aioice.ice
import aiortc
import pylibsrtp
from aiortc import RTCConfiguration, RTCPeerConnection, rtp

from streaming.media.budget import Allowance, ResendBudget
from streaming.media.rate import Feedback
from streaming.media.rtp_sender import HISTORY, SENDER, SENDER_NAMES, TRANSPORT_NAMES, RtpSender

AIORTC_SERIES = "1.16."
COUNTERS = tuple(SENDER + name for name in ("ntp_timestamp", "rtp_timestamp", "packet_count", "octet_count"))
PRIVATE_NAMES = ("_handle_rtcp_packet", "_retransmit", "_send_keyframe", "_send_rtcp", *SENDER_NAMES)
CONNECTION_NAMES = (
    "query_consent",
    "_closing",
    "_closed",
    "_protocols",
    "_nominated",
    "get_component_candidates",
    "_queue",
    "data_received",
    "_event_waiter",
    "_emit_event",
    "_remote_candidates_end",
)  # of aioice
ICE_NAMES = ("_recv", "_send")  # of an RTCIceTransport
CERTIFICATE = "_RTCDtlsTransport__local_certificate"
CERTIFICATE_NAME = "_create_ssl_context"
ESTIMATOR = "_RTCRtpReceiver__remote_bitrate_estimator"  # None for audio
# aiortc lists those for ECDSA certificates alone; as DTLS client it then fails with servers that have an RSA one.
CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES"
RESEND_SHARE, RESEND_LEAST_BPS = 0.25, 100_000  # of the video's bit rate, and at least
RTCP_HZ = 300  # packets of a receiver that are heard, in the long run and at once; browsers send a tenth of it
REQUESTS_AS_ONE = 8  # packets that are asked for take as much computing as one that asks
REPORT_LEAST = 100  # packets of which a share is told: of few many may be lost by chance
REPORTS_KEPT = 8  # sender reports that a receiver may still answer
DLSR_HZ = 65536  # unit of the time between a sender report and its answer
PROBE_PACKETS = 32  # the last ones, largest first
# ICE asks a peer for consent this often, and gives up after so many in a row without an answer (RFC 7675).
CONSENT_S, CONSENT_FAILURES = 1, 5


class SenderHooks:
    """Hooks into one RTCRtpSender: what it hears from its receiver, and how it sends packets again."""

    def __init__(
        self,
        sender: Any,
        packets: RtpSender,
        request_keyframe: Callable[[], None],
        rate_bps: int,
        now: Callable[[], float] = time.monotonic,
        heard: Callable[[Feedback], None] = lambda feedback: None,
    ) -> None:
        """`heard` is called with what each RTCP packet says."""
        self.last_heard_s: float | None = None  # when the last RTCP packet came, on the clock `now`
        self.remb_bps: int | None = None  # the receiver's last bandwidth estimate
        self.rtt_s: float | None = None  # the last round trip
        self.lost_share: float | None = None  # of the last receiver report
        self.resent = 0
        self.withheld = 0  # retransmissions not made because of the budget
        self.keyframe_requests = 0
        self._sender, self._now, self._heard = sender, now, heard
        self._packets = packets
        self._handle_rtcp, self._send_rtcp = sender._handle_rtcp_packet, sender._send_rtcp
        self._request_keyframe = request_keyframe
        self._told: tuple[int, int] | None = None  # highest sequence number and packets lost when a share was told last
        self._requested: dict[int, int] = {}  # sequence number by its place in the history
        self._reports: deque[tuple[int, float]] = deque(maxlen=REPORTS_KEPT)  # LSR and time of sender reports
        self._words = Allowance(RTCP_HZ, RTCP_HZ, now())
        self.limit(rate_bps)
        sender._handle_rtcp_packet = self._on_rtcp
        sender._retransmit = self._on_lost
        sender._send_keyframe = self._on_keyframe_request
        sender._send_rtcp = self._on_report

    @property
    def can_probe(self) -> bool:
        """True where the receiver takes retransmissions apart from the video, also such as it did not ask for."""
        return self._packets.retransmits

    def limit(self, rate_bps: int) -> None:
        """The video has another bit rate from now on; what was sent before is not sent again."""
        self._budget = ResendBudget(max(RESEND_SHARE * rate_bps, RESEND_LEAST_BPS) / 8, self._now())
        self._packets.forget()

    def probe(self, size: int) -> None:
        """Sends about that many bytes of what the receiver has already."""
        packets = sorted(self._packets.last(PROBE_PACKETS), key=lambda packet: -len(packet.payload))
        for packet in packets:
            if size <= 0:
                return
            size -= len(packet.payload)
            self._packets.resend(packet)

    async def ask_report(self) -> None:
        """Sends a sender report now, which the receiver answers in its next report."""
        ntp, timestamp, packets, octets = (getattr(self._sender, name) for name in COUNTERS)
        info = rtp.RtcpSenderInfo(ntp, timestamp, packets & 0xFFFFFFFF, octets & 0xFFFFFFFF)
        await self._sender._send_rtcp([rtp.RtcpSrPacket(ssrc=self._sender._ssrc, sender_info=info)])

    async def _on_report(self, packets: list[Any]) -> None:
        for packet in packets:
            if isinstance(packet, rtp.RtcpSrPacket):
                self._reports.append(((packet.sender_info.ntp_timestamp >> 16) & 0xFFFFFFFF, self._now()))
        await self._send_rtcp(packets)

    async def _on_rtcp(self, packet: Any) -> None:
        lost = packet.lost if isinstance(packet, rtp.RtcpRtpfbPacket) else ()
        # A flood of them would take computing from other viewers.
        if not self._words.spend(1 + len(lost) / REQUESTS_AS_ONE, self._now()):
            return
        self.last_heard_s = self._now()
        packets, octets = (getattr(self._sender, name) for name in COUNTERS[2:])
        said: dict[str, Any] = {}
        if isinstance(packet, rtp.RtcpRrPacket | rtp.RtcpSrPacket):
            said = self._read_report(packet)
        elif isinstance(packet, rtp.RtcpRtpfbPacket) and packet.fmt == rtp.RTCP_RTPFB_NACK:
            said["requested"] = self._count_requested(lost)
        elif isinstance(packet, rtp.RtcpPsfbPacket) and packet.fmt in (rtp.RTCP_PSFB_PLI, rtp.RTCP_PSFB_FIR):
            said["keyframe"] = True
        elif isinstance(packet, rtp.RtcpPsfbPacket) and packet.fmt == rtp.RTCP_PSFB_APP:
            try:
                self.remb_bps = said["estimate_bps"] = int(rtp.unpack_remb_fci(packet.fci)[0])
            except ValueError:
                # Some other application's feedback, which is of no use here.
                return
        self._heard(Feedback(packets, octets, **said))
        spent = self._budget.refused
        await self._handle_rtcp(packet)
        if withheld := self._budget.refused - spent:
            self._heard(Feedback(packets, octets, withheld=withheld))

    def _read_report(self, packet: Any) -> dict[str, Any]:
        """What a receiver report says of this sender."""
        said: dict[str, Any] = {}
        for report in packet.reports:
            if report.ssrc == self._sender._rtx_ssrc:
                said["resent_lost_share"] = report.fraction_lost / 256
            elif report.ssrc == self._sender._ssrc:
                share = self._count_lost(report.highest_sequence, report.packets_lost)
                if share is not None:
                    self.lost_share = said["lost_share"] = share
                sent_s = next((time_s for lsr, time_s in self._reports if lsr == report.lsr and report.dlsr), None)
                if sent_s is not None:
                    self.rtt_s = said["rtt_s"] = max(0.0, self._now() - sent_s - report.dlsr / DLSR_HZ)
                    said["asked_s"] = sent_s
        return said

    def _count_lost(self, highest: int, lost: int) -> float | None:
        """Share of the packets that were lost since it was told last; None while they are few.

        By the sums of a report, not its own share: receivers send a report with each request, over a few packets, and
        some reports get lost.
        """
        highest_then, lost_then = self._told or (highest, lost)
        expected = (highest - highest_then) & 0xFFFFFFFF
        if self._told is not None and expected < REPORT_LEAST:
            return None
        self._told = highest, lost
        # Otherwise the first one, or the receiver counts anew.
        return min(1.0, max(0.0, (lost - lost_then) / expected)) if 0 < expected < 1 << 31 else None

    def _count_requested(self, numbers: Sequence[int]) -> int:
        """How many packets are asked for that were not before."""
        new = [number for number in numbers if self._requested.get(number % HISTORY) != number]
        self._requested.update((number % HISTORY, number) for number in new)
        return len(new)

    def _on_keyframe_request(self) -> None:
        self.keyframe_requests += 1
        self._request_keyframe()

    async def _on_lost(self, sequence_number: int) -> None:
        packet = self._packets.sent(sequence_number)
        if packet is None:
            return
        if not self._budget.spend(sequence_number, len(packet.payload), self._now()):
            self.withheld += 1
            return
        self.resent += 1
        self._packets.resend(packet)


def end_consent_with_connection(transport: Any) -> None:
    """`end_consent` for the connection of one RTCDtlsTransport."""
    end_consent(transport.transport._connection)


def end_consent(connection: Any) -> None:
    """Mends a race of aioice on one connection, before it connects.

    A connection that is closed in the moment its checks succeed begins to ask for consent afterwards, for ever.
    """
    query_consent = connection.query_consent

    async def while_open() -> None:
        if not connection._closing:
            await query_consent()

    connection.query_consent = while_open


def take_rsa_certificates(transport: Any) -> None:
    """Lets one RTCDtlsTransport, before it connects, be the client of a server with an RSA certificate."""
    certificate = getattr(transport, CERTIFICATE)
    make = getattr(certificate, CERTIFICATE_NAME)

    def with_rsa(**settings: Any) -> Any:
        context = make(**settings)
        context.set_cipher_list(CIPHERS)
        return context

    setattr(certificate, CERTIFICATE_NAME, with_rsa)


def receive_nothing(transceiver: Any) -> None:
    """Frees what aiortc keeps for video that a transceiver which only sends never gets: a thousand objects."""
    setattr(transceiver.receiver, ESTIMATOR, None)


def notice_dead_peers() -> None:
    """Makes ICE of this process notice a peer that is gone within 6 s; aioice takes half a minute."""
    aioice.ice.CONSENT_INTERVAL, aioice.ice.CONSENT_FAILURES = CONSENT_S, CONSENT_FAILURES


def use_addresses(addresses: Sequence[str]) -> None:
    """Makes ICE of this process offer these host addresses only, loopback included. Raises ValueError for a bad one."""
    parsed = [ipaddress.ip_address(address) for address in addresses]

    def chosen(use_ipv4: bool, use_ipv6: bool) -> list[str]:
        return [str(ip) for ip in parsed if (use_ipv4 if ip.version == 4 else use_ipv6)]

    aioice.ice.get_host_addresses = chosen


async def self_check() -> None:
    """Raises RuntimeError when the installed aiortc is not the one that these hooks were written for."""
    if not aiortc.__version__.startswith(AIORTC_SERIES):
        raise RuntimeError(f"aiortc {aiortc.__version__} is installed; install aiortc=={AIORTC_SERIES}*")
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    try:
        transceiver = peer.addTransceiver("video", direction="sendonly")
        sender = transceiver.sender
        missing = [name for name in PRIVATE_NAMES if not hasattr(sender, name)]
        missing += [name for name in TRANSPORT_NAMES if not hasattr(sender.transport, name)]
        connection = getattr(sender.transport.transport, "_connection", None)
        missing += [name for name in ICE_NAMES if not hasattr(sender.transport.transport, name)]
        certificate = getattr(sender.transport, CERTIFICATE, None)
        missing += [] if hasattr(certificate, CERTIFICATE_NAME) else [CERTIFICATE_NAME]
        missing += [] if hasattr(transceiver.receiver, ESTIMATOR) else [ESTIMATOR]
        missing += [f"aioice {name}" for name in CONNECTION_NAMES if not hasattr(connection, name)]
    finally:
        await peer.close()
    if not hasattr(pylibsrtp.Session(), "_srtp") or not hasattr(pylibsrtp._binding.lib, "srtp_protect"):
        missing.append("pylibsrtp.Session._srtp")
    if set(inspect.signature(aioice.ice.get_host_addresses).parameters) != {"use_ipv4", "use_ipv6"}:
        missing.append("aioice.ice.get_host_addresses(use_ipv4, use_ipv6)")
    if missing:
        raise RuntimeError(f"aiortc {aiortc.__version__} lacks {', '.join(missing)}; install aiortc=={AIORTC_SERIES}*")

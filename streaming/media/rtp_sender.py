"""RTP packets of one viewer, a whole frame in one call, in place of aiortc's loop that awaits for every packet.

Payloads come ready from the hub and are shared by all its viewers. What is made for each viewer is a header and the
encryption, in one buffer from which the kernel takes the packets. With `rtp_hooks.py` and `ice.py` this touches private
names of aiortc, aioice and pylibsrtp.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from aioice.ice import StunProtocol
from aiortc import RTCRtpHeaderExtensionParameters, clock, rtp
from aiortc.rtcdtlstransport import State
from aiortc.utils import random16, random32
from pylibsrtp import _binding

HISTORY = 1024  # packets that can be sent again: some seconds of video
SLOT_BYTES = 1536  # of a packet in the buffer, with room for its encryption
SLOTS = 64  # packets that are encrypted before they are sent
HEADER = struct.Struct("!BBHII")
EXTENDED = 0x10  # of a header's first byte: extensions follow
MARKER = 0x80  # of its second byte: the last packet of a frame
PLAYOUT_DELAY = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay"
PLAYOUT_UNIT_S = 0.01
PLAYOUT_MOST = 1000  # units; what receivers allow where nothing is said
COMPONENT = 1  # of ICE: RTP and RTCP share it
NTP_HZ, NTP_MASK = 1 << 32, (1 << 64) - 1
# aiortc mangles them.
SENDER = "_RTCRtpSender__"
SENDER_NAMES = (
    "_run_rtp", "_ssrc", "_rtx_ssrc", "_enabled",
    *(SENDER + name for name in (
        "mid", "rtp_header_extensions_map", "rtp_started", "rtp_exited", "rtx_payload_type",
        "ntp_timestamp", "rtp_timestamp", "packet_count", "octet_count",
    )),
)  # fmt: skip
TRANSPORT_NAMES = ("_tx_srtp", "_state")
# The wall clock is read once: receivers measure their network by times of sending, and it may be set meanwhile.
_NTP_ZERO: int = clock.current_ntp_time() - round(time.monotonic() * NTP_HZ)


def ntp_time() -> int:
    """Now as 64 bits of NTP; it goes on evenly however the system's clock is set."""
    return (_NTP_ZERO + round(time.monotonic() * NTP_HZ)) & NTP_MASK


class Sent(NamedTuple):
    """A packet without its header; the payload is shared with other viewers."""

    number: int  # sequence number
    timestamp: int  # with the random offset of its stream
    marker: int  # MARKER or 0
    payload: bytes


class RtpSender:
    """Sends video over one RTCRtpSender. `connected` is called when it can, once."""

    def __init__(self, sender: Any, connected: Callable[[], None]) -> None:
        self._sender, self._connected = sender, connected
        self._history: list[Sent | None] = [None] * HISTORY
        # In the lower half, so that none wraps while a receiver's SRTP learns where they begin.
        self._number, self._resent_number = random16() >> 1, random16() >> 1
        self._origin = random32()
        self._payload_type = 0
        self._resent_type: int | None = None
        self._outlet: _Outlet | None = None
        self._playout_id: int | None = None  # of the header extension; None where the receiver knows none
        self._playout_delay: bytes | None = None  # its value; None until there was one to tell
        self.playout_delay_s = 0.0  # that the receiver is told to hold pictures back
        sender._run_rtp = self._run

    def send(self, payloads: Sequence[bytes], pts: int) -> bool:
        """Sends one frame with its timestamp in 1/90000 s; False if the network took only a part of it."""
        if self._outlet is None or not self._sender._enabled:
            return True
        timestamp, last = (self._origin + pts) & 0xFFFFFFFF, len(payloads) - 1
        packets = [
            Sent((self._number + place) & 0xFFFF, timestamp, MARKER if place == last else 0, payload)
            for place, payload in enumerate(payloads)
        ]
        self._number = (self._number + len(packets)) & 0xFFFF
        for packet in packets:
            self._history[packet.number % HISTORY] = packet
        ntp = ntp_time()
        self._count(ntp, timestamp, payloads)
        extensions = self._extensions(ntp)
        return all(
            self._outlet.send(self._payload_type, self._sender._ssrc, extensions, packets[begin : begin + SLOTS])
            for begin in range(0, len(packets), SLOTS)
        )

    def negotiate_playout_delay(self, transceiver: Any, offer: str) -> None:
        """Takes the header extension into the answer to an offer that has it; to be called before that is made."""
        if found := re.search(rf"^a=extmap:([0-9]+)\S* {re.escape(PLAYOUT_DELAY)}\s*$", offer, re.MULTILINE):
            # Larger numbers make every header larger.
            if 0 < int(found[1]) < 15:
                self._playout_id = int(found[1])
                transceiver._headerExtensions.append(RTCRtpHeaderExtensionParameters(self._playout_id, PLAYOUT_DELAY))

    def hold(self, delay_s: float) -> None:
        """Tells the receiver to show pictures that much later than it could, where it knows how."""
        if self._playout_id is not None and delay_s != self.playout_delay_s:
            self.playout_delay_s = delay_s
            value = round(delay_s / PLAYOUT_UNIT_S) << 12 | PLAYOUT_MOST
            self._playout_delay = value.to_bytes(3, "big")

    def sent(self, number: int) -> Sent | None:
        """The packet of a sequence number, as long as it can be sent again."""
        packet = self._history[number % HISTORY]
        return packet if packet is not None and packet.number == number else None

    @property
    def retransmits(self) -> bool:
        """True where the receiver takes what is sent again apart from the video (RFC 4588)."""
        return self._resent_type is not None

    def last(self, count: int) -> list[Sent]:
        """The last packets, as many as can be sent again."""
        return [packet for back in range(1, count + 1) if (packet := self.sent(self._number - back & 0xFFFF))]

    def forget(self) -> None:
        """Nothing that was sent can be sent again."""
        self._history = [None] * HISTORY

    def resend(self, packet: Sent) -> None:
        """Sends a packet once more, with its own send time; as a retransmission (RFC 4588) if that was negotiated."""
        if self._outlet is None:
            return
        kind, ssrc = self._payload_type, self._sender._ssrc
        if self._resent_type is not None:
            kind, ssrc = self._resent_type, self._sender._rtx_ssrc
            payload = packet.number.to_bytes(2, "big") + packet.payload
            packet = packet._replace(number=self._resent_number, payload=payload)
            self._resent_number = (self._resent_number + 1) & 0xFFFF
        self._outlet.send(kind, ssrc, self._extensions(ntp_time()), (packet,))

    def close(self) -> None:
        """Sends nothing any more; idempotent."""
        outlet, self._outlet = self._outlet, None
        if outlet is not None:
            outlet.close()
        # aiortc's objects, which hold this one, are a cycle: they and the packets would stay until a full collection.
        self.forget()

    async def _run(self, codec: Any) -> None:
        """In place of aiortc's loop: from when the connection is encrypted until aiortc cancels it."""
        sender = self._sender
        getattr(sender, SENDER + "rtp_started").set()
        try:
            self._payload_type = codec.payloadType
            self._resent_type = getattr(sender, SENDER + "rtx_payload_type")
            self._outlet = _Outlet(sender.transport)
            self._connected()
            await asyncio.get_running_loop().create_future()
        finally:
            self.close()
            getattr(sender, SENDER + "rtp_exited").set()

    def _extensions(self, ntp: int) -> bytes:
        """Header extensions with the time of sending and the playout delay, as negotiated; empty if none was."""
        values = rtp.HeaderExtensions(abs_send_time=(ntp >> 14) & 0x00FFFFFF, mid=getattr(self._sender, SENDER + "mid"))
        profile, content = getattr(self._sender, SENDER + "rtp_header_extensions_map").set(values)
        if self._playout_delay is not None:
            # In every packet: any of them may get lost.
            others = rtp.unpack_header_extensions(profile, content)
            profile, content = rtp.pack_header_extensions([*others, (self._playout_id, self._playout_delay)])
        return struct.pack("!HH", profile, len(content) // 4) + content if profile else b""

    def _count(self, ntp: int, timestamp: int, payloads: Sequence[bytes]) -> None:
        """Keeps what aiortc tells in its RTCP sender reports."""
        counts = self._sender.__dict__
        counts[SENDER + "ntp_timestamp"], counts[SENDER + "rtp_timestamp"] = ntp, timestamp
        counts[SENDER + "packet_count"] += len(payloads)
        counts[SENDER + "octet_count"] += sum(map(len, payloads))


class _Outlet:
    """Encrypts packets and hands them to the network, by the candidate pair that ICE chose."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._protocol: Any = None  # of ICE, to which the socket belongs
        self._socket: socket.socket | None = None  # None where packets do not go out as they are, behind TURN
        # Of its own: the session's buffer holds one packet.
        self._memory = _binding.ffi.new("char[]", SLOT_BYTES * SLOTS)
        self._view = memoryview(_binding.ffi.buffer(self._memory))
        self._size = _binding.ffi.new("int *")

    def send(self, kind: int, ssrc: int, extensions: bytes, packets: Sequence[Sent]) -> bool:
        """Sends SLOTS packets at most; False if the network took only a part of them."""
        # Of the connection that there is now: an ICE restart brings another.
        pair = self._transport.transport._connection._nominated.get(COMPONENT)
        if pair is None or self._transport._state != State.CONNECTED:
            return True
        if pair.protocol is not self._protocol:
            self._use(pair.protocol)
        encrypted = self._encrypt(kind, ssrc, extensions, packets)
        address = pair.remote_addr
        if self._socket is None:
            for packet in encrypted:
                self._protocol.transport.sendto(bytes(packet), address)
            return True
        try:
            for packet in encrypted:
                self._socket.sendto(packet, address)
        except BlockingIOError:
            return False
        except OSError:
            # As on any lossy path: a network that is down may come back, and a peer that is gone is noticed by ICE.
            return True
        return len(encrypted) == len(packets)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _use(self, protocol: Any) -> None:
        self.close()
        self._protocol = protocol
        if type(protocol) is StunProtocol:
            # Where no descriptor is left packets go as those behind TURN, which takes longer.
            with suppress(OSError):
                self._socket = protocol.transport.get_extra_info("socket").dup()

    def _encrypt(self, kind: int, ssrc: int, extensions: bytes, packets: Sequence[Sent]) -> list[memoryview]:
        """The packets as they go over the network, up to one that libsrtp refuses; the next call overwrites them."""
        protect, session = _binding.lib.srtp_protect, self._transport._tx_srtp._srtp[0]
        first = 0x80 | (EXTENDED if extensions else 0)
        body = HEADER.size + len(extensions)
        view, size, encrypted = self._view, self._size, []
        for slot, (number, timestamp, marker, payload) in enumerate(packets):
            begin = slot * SLOT_BYTES
            HEADER.pack_into(view, begin, first, kind | marker, number, timestamp, ssrc)
            view[begin + HEADER.size : begin + body] = extensions
            length = body + len(payload)
            view[begin + body : begin + length] = payload
            size[0] = length
            if protect(session, self._memory + begin, size):
                break
            encrypted.append(view[begin : begin + size[0]])
        return encrypted

"""`python -m streaming.bench.light`: many viewers in one process, so that they do not disturb who is measured.

Each has a connection of its own, decrypts every packet and puts frames together by sequence number and marker; none
decodes. The process prints one line of JSON for each viewer that sees its first frame, and one with all figures when
its input ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import struct
import sys
import time
import urllib.parse
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpReceiver, RTCSessionDescription
from aiortc.rtp import RtcpReceiverInfo, RtcpRrPacket

from streaming.bench.client import Http, RequestError
from streaming.bench.timeline import Figures, spread
from streaming.media.rtp_hooks import end_consent_with_connection, use_addresses

REPORT_S = 1.0  # between a viewer's RTCP reports
CONNECT_S = 30.0
RECEIVE_BYTES = 1 << 21  # as far as the system grants it
HEADER = struct.Struct("!BBHII")


class LightViewer:
    """Counts the frames of one connection."""

    def __init__(self, http: Http, codec: str | None) -> None:
        self._http, self._codec = http, codec
        self._peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._session: str | None = None
        self._last: int | None = None  # sequence number
        self._whole = False  # nothing is missing since the last marker
        self._stream = self._type = -1  # the first SSRC and payload type that come: the video's
        self.first = asyncio.Event()
        self.ttff_s: float | None = None
        self.frames_s: list[float] = []
        self.packets = self.missing = self.bytes = 0

    async def join(self) -> None:
        """Joins and waits for the first frame. Raises RequestError when it is refused, TimeoutError without a frame."""
        transceiver = self._peer.addTransceiver("video", direction="recvonly")
        if self._codec is not None:
            known = RTCRtpReceiver.getCapabilities("video").codecs
            transceiver.setCodecPreferences([one for one in known if one.mimeType.lower() == f"video/{self._codec}"])
        transport = transceiver.receiver.transport
        end_consent_with_connection(transport)
        transport._handle_rtp_data = self._on_packet
        self._transport = transport
        self._peer.on("iceconnectionstatechange", self._widen)
        await self._peer.setLocalDescription(await self._peer.createOffer())
        began_s = time.monotonic()
        offer = self._peer.localDescription.sdp.encode()
        headers, answer = await self._http.request("POST", "", offer, "application/sdp")
        if headers["Location"] is not None:
            self._session = urllib.parse.urljoin(self._http.url, headers["Location"])
        async with asyncio.timeout(CONNECT_S):
            await self._peer.setRemoteDescription(RTCSessionDescription(answer.decode(), "answer"))
            await self.first.wait()
        self.ttff_s = self.frames_s[0] - began_s

    def _widen(self) -> None:
        """Lets the kernel keep what comes while this process serves others: packets that it drops are no loss."""
        for protocol in self._transport.transport._connection._protocols:
            if (own := protocol.transport.get_extra_info("socket")) is not None:
                own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)

    async def aclose(self) -> None:
        """Leaves; idempotent."""
        session, self._session = self._session, None
        if session is not None:
            with suppress(RequestError):
                await self._http.request("DELETE", session)
        await self._peer.close()

    async def report(self) -> None:
        """Tells the sender that somebody receives, for as long as it runs."""
        own = random.getrandbits(32)
        while True:
            await asyncio.sleep(REPORT_S)
            if self._last is not None:
                info = RtcpReceiverInfo(self._stream, 0, self.missing, self._last, 0, 0, 0)
                with suppress(ConnectionError):
                    await self._transport._send_rtp(bytes(RtcpRrPacket(own, [info])))

    async def _on_packet(self, data: bytes, arrival_time_ms: int) -> None:
        _, kind, number, _, stream = HEADER.unpack_from(data)
        if self._stream == -1:
            self._stream, self._whole = stream, True
        if stream != self._stream:
            return
        self.packets += 1
        self.bytes += len(data)
        if self._last is not None and number != (self._last + 1) & 0xFFFF:
            behind = (number - self._last - 1) & 0xFFFF
            if behind >= 1 << 15:
                return
            self.missing += behind
            self._whole = False
        self._last = number
        if kind & 0x80:
            if self._whole:
                self.frames_s.append(time.monotonic())
                self.first.set()
            self._whole = True


async def run(url: str, viewers: int, ramp: float, codec: str | None, token: str | None) -> Figures:
    """Lets viewers join, `ramp` a second, keeps them until the input ends, and returns what they saw."""
    http = Http(url, token)
    crowd = [LightViewer(http, codec) for _ in range(viewers)]
    failed: list[str] = []
    began_s = time.monotonic()

    async def one(place: int, viewer: LightViewer) -> None:
        await asyncio.sleep(began_s + place / ramp - time.monotonic())
        try:
            await viewer.join()
        except (RequestError, TimeoutError, ValueError, ConnectionError) as error:
            failed.append(str(error) or f"no frame within {CONNECT_S:.0f} s")
            return
        sys.stdout.write(json.dumps({"ttff_s": viewer.ttff_s}) + "\n")
        sys.stdout.flush()

    reports = [asyncio.create_task(viewer.report()) for viewer in crowd]
    await asyncio.gather(*(one(*numbered) for numbered in enumerate(crowd)))
    sys.stdout.write(json.dumps({"joined": viewers - len(failed), "failed": failed}) + "\n")
    sys.stdout.flush()
    joined_s = time.monotonic()
    before = sum(viewer.bytes for viewer in crowd)
    own_s = sum(os.times()[:2])
    await asyncio.to_thread(sys.stdin.read)
    lasted_s = time.monotonic() - joined_s
    after = sum(viewer.bytes for viewer in crowd)
    own_s = sum(os.times()[:2]) - own_s
    for report in reports:
        report.cancel()
    await asyncio.gather(*(viewer.aclose() for viewer in crowd))
    watched = [viewer for viewer in crowd if viewer.ttff_s is not None]
    steps = [
        (later - earlier) * 1000
        for viewer in watched
        for earlier, later in zip(viewer.frames_s, viewer.frames_s[1:], strict=False)
        if earlier >= joined_s
    ]
    return {
        "joined": len(watched),
        "failed": failed,
        "ttff_s": spread(viewer.ttff_s for viewer in watched if viewer.ttff_s is not None),
        "interval_ms": spread(steps),
        "frames": sum(len(viewer.frames_s) for viewer in watched),
        "packets": sum(viewer.packets for viewer in watched),
        "packets_missing": sum(viewer.missing for viewer in watched),
        "bytes": after - before,  # while all were there
        "watched_s": round(lasted_s, 3),
        "cpu_percent": round(100 * own_s / lasted_s, 1) if lasted_s else None,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs viewers until the input ends; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m streaming.bench.light", description=__doc__)
    parser.add_argument("url", help="the WHEP endpoint")
    parser.add_argument("--viewers", type=int, default=1, metavar="N")
    parser.add_argument("--ramp", type=float, default=10.0, metavar="R", help="that join in a second (default: 10)")
    parser.add_argument("--codec", help="what to ask for (default: what the server chooses)")
    parser.add_argument("--token", help="bearer token of the endpoint")
    parser.add_argument("--address", action="append", default=[], help="take part from this address only")
    arguments = parser.parse_args(argv)
    if arguments.address:
        use_addresses(arguments.address)
    figures: Any = asyncio.run(run(arguments.url, arguments.viewers, arguments.ramp, arguments.codec, arguments.token))
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

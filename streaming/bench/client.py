"""A client for measuring: plain HTTP requests, and a viewer of any WHEP endpoint that receives and decodes.

One asyncio event loop owns both. Requests run in threads, so that they never hold the loop, which takes frames' times.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpReceiver, RTCSessionDescription
from aiortc.exceptions import InvalidAccessError, InvalidStateError, OperationError
from aiortc.mediastreams import MediaStreamError

from streaming.bench import change
from streaming.bench.jitter_buffer import BrowserJitterBuffer
from streaming.bench.recording import Arrival, BenchError, Packets
from streaming.media import marker
from streaming.media.hub import CODECS
from streaming.media.pacer import MEDIA_CLOCK_HZ
from streaming.media.rtp_hooks import end_consent_with_connection

Pixels = npt.NDArray[np.uint8]
MOST_PENDING = 512  # frames whose packets are remembered
REQUEST_TIMEOUT_S = 30.0
EVENTS_END_S = 5.0
JOIN_TIMEOUT_S = 60.0  # POST to first decoded frame; a first chunk on a slow machine takes its time


class RequestError(BenchError):
    """A request that the server refused or did not answer."""

    def __init__(self, status: int | None, detail: str) -> None:
        super().__init__(detail)
        self.status = status  # None when there was no reply


class Http:
    """Requests to one server, `url` without a slash at its end, with a bearer token where it wants one.

    Paths are at `url`, or whole URLs.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url, self.token = url, token

    async def request(
        self, method: str, path: str, body: bytes | None = None, kind: str = "application/json"
    ) -> tuple[http.client.HTTPMessage, bytes]:
        """Headers and body that answer a request, with a body of that content type.

        Raises RequestError with the server's words.
        """
        return await asyncio.to_thread(self._request, method, path, body, kind)

    async def json(self, method: str, path: str, value: object = None) -> dict[str, Any]:
        """A request with a JSON value, or without a body, and the object that comes back. Raises RequestError."""
        _, body = await self.request(method, path, None if value is None else json.dumps(value).encode())
        with suppress(ValueError):
            if isinstance(content := json.loads(body), dict):
                return content
        raise RequestError(None, f"{method} {self.url}{path}: the reply is not a JSON object")

    def open(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> Any:
        """The open reply to a request, a context that reads like a file. Raises RequestError."""
        headers = {} if body is None else {"Content-Type": kind}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        target = path if path.startswith(("http:", "https:")) else self.url + path
        try:
            request = urllib.request.Request(target, body, headers, method=method)
            return urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            detail = error.reason
            with error, suppress(ValueError, KeyError, TypeError):
                detail = json.loads(error.read())["detail"]
            raise RequestError(error.code, f"{method} {target}: {error.code} {detail}") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise RequestError(None, f"{method} {target}: no reply: {reason}") from error

    def _request(self, method: str, path: str, body: bytes | None, kind: str) -> tuple[http.client.HTTPMessage, bytes]:
        try:
            with self.open(method, path, body, kind) as reply:
                return reply.headers, reply.read()
        except (OSError, http.client.HTTPException) as error:
            raise RequestError(None, f"{method} {self.url}{path}: the reply broke off: {error}") from error


class EventStream:
    """Reports of a channel, as its server-sent events bring them, with the time of their coming; in order.

    A thread reads them. It ends with the first event behind the end of the block, such as that a viewer left.
    """

    def __init__(self, http: Http, path: str) -> None:
        self._http, self._path = http, path
        self._queue: asyncio.Queue[tuple[float, dict[str, Any]]] = asyncio.Queue()
        self._ended = threading.Event()

    async def __aenter__(self) -> EventStream:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._read, name="events", daemon=True)
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ended.set()
        await asyncio.to_thread(self._thread.join, EVENTS_END_S)

    async def get(self) -> tuple[float, dict[str, Any]]:
        """The next report."""
        return await self._queue.get()

    def _read(self) -> None:
        # A server that is gone is noticed by others.
        with suppress(RequestError, OSError, http.client.HTTPException), self._http.open("GET", self._path) as reply:
            for line in reply:
                if self._ended.is_set():
                    return
                with suppress(ValueError):
                    if line.startswith(b"data:") and isinstance(report := json.loads(line[5:]), dict):
                        self._loop.call_soon_threadsafe(self._queue.put_nowait, (time.monotonic(), report))


class JoinTimes(NamedTuple):
    """Seconds from the offer sent to each step of a join; None for a step that was not seen."""

    http_s: float  # the answer came
    ice_s: float | None  # a way was found
    dtls_s: float | None  # and encrypted
    key_frame_s: float | None  # the last packet of the first frame came
    picture_s: float  # it was decoded


class BenchViewer:
    """A viewer of one WHEP endpoint that decodes every frame and hands it to `seen` in the event loop: its arrival, and
    I420 [3H/2, W].

    `path` is that of the endpoint at `http`; `codec` None takes what the server chooses.
    """

    def __init__(self, http: Http, path: str, codec: str | None, seen: Callable[[Arrival, Pixels], None]) -> None:
        self._http, self._path, self._codec, self._seen = http, path, codec, seen
        self._peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._receiver = self._peer.addTransceiver("video", direction="recvonly").receiver
        self._session: str | None = None
        self._ice_s: float | None = None
        self._dtls_s: float | None = None
        self._packets: dict[int, Packets] = {}  # by timestamp, the last MOST_PENDING
        self._peer.on("iceconnectionstatechange", self._on_ice)
        self._receiver.transport.on("statechange", self._on_dtls)
        BrowserJitterBuffer.put_into(self._receiver)
        self._take = self._receiver._handle_rtp_packet
        self._receiver._handle_rtp_packet = self._on_packet

    async def join(self) -> JoinTimes:
        """Joins and waits for a picture. Raises BenchError when the server refuses, or no picture comes."""
        (transceiver,) = self._peer.getTransceivers()
        if self._codec is not None:
            known = RTCRtpReceiver.getCapabilities("video").codecs
            # With its retransmissions, or nothing that was lost could be asked for again.
            wanted = (f"video/{self._codec}", "video/rtx")
            transceiver.setCodecPreferences([entry for entry in known if entry.mimeType.lower() in wanted])
        end_consent_with_connection(self._receiver.transport)
        await self._peer.setLocalDescription(await self._peer.createOffer())
        began_s = time.monotonic()
        answer = await self._ask(str(self._peer.localDescription.sdp))
        answered_s = time.monotonic()
        try:
            async with asyncio.timeout(JOIN_TIMEOUT_S):
                await self._peer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
                picture_s = await self._see()
        except TimeoutError as error:
            state = self._peer.connectionState
            raise BenchError(f"no picture came within {JOIN_TIMEOUT_S:.0f} s; the connection is {state}") from error
        except (ValueError, InvalidAccessError, InvalidStateError, OperationError) as error:
            raise BenchError(f"the server's answer is not usable: {error}") from error
        first = min((packets.last_s for packets in self._packets.values()), default=None)
        steps = (self._ice_s, self._dtls_s, first)
        ice_s, dtls_s, key_frame_s = (None if step is None else step - began_s for step in steps)
        return JoinTimes(answered_s - began_s, ice_s, dtls_s, key_frame_s, picture_s - began_s)

    async def watch(self) -> None:
        """Sees frame after frame. Raises BenchError at the end of the video, which no good server brings about."""
        while True:
            await self._see()

    def stats(self) -> dict[str, float]:
        """What aiortc counts of the video's own packets, without retransmissions, in the names of W3C's statistics."""
        # Its public statistics have one entry for both streams.
        streams = self._receiver.__dict__["_RTCRtpReceiver__remote_streams"].values()
        video = max(streams, key=lambda stream: stream.packets_received, default=None)
        if video is None:
            return {}
        received, lost, jitter_s = video.packets_received, video.packets_lost, video.jitter / MEDIA_CLOCK_HZ
        return {"packetsReceived": received, "packetsLost": lost, "jitter": jitter_s}

    async def aclose(self) -> None:
        """Leaves; idempotent. A server that is gone by now is no failure."""
        session, self._session = self._session, None
        if session is not None:
            with suppress(RequestError):
                await self._http.request("DELETE", session)
        await self._peer.close()

    async def _ask(self, offer: str) -> str:
        """The answer to an offer, with one video that aiortc can decode. Raises BenchError."""
        headers, body = await self._http.request("POST", self._path, offer.encode(), "application/sdp")
        place = f"POST {self._http.url}{self._path}"
        if headers.get_content_type() != "application/sdp":
            raise BenchError(f"{place}: the reply is {headers.get_content_type()}, not application/sdp: is it WHEP?")
        # A session that is not usable is given back too.
        if headers["Location"] is not None:
            self._session = urllib.parse.urljoin(self._http.url + self._path, headers["Location"])
        answer = body.decode(errors="replace")
        video = re.search(r"^m=video (\d+) [^\r\n]*(.*?)(?=^m=|\Z)", answer, re.MULTILINE | re.DOTALL)
        if video is None or video[1] == "0" or not re.search(r"^a=(sendonly|sendrecv)", video[2], re.MULTILINE):
            raise BenchError(f"{place}: the answer sends no video")
        names = re.findall(r"^a=rtpmap:\d+ ([^/\r\n]+)", video[2], re.MULTILINE)
        if not {name.lower() for name in names} & set(CODECS):
            raise BenchError(f"{place}: the answer's codecs are {', '.join(names)}; VP8 or H264 can be decoded here")
        return answer

    async def _see(self) -> float:
        """The arrival of the next frame."""
        try:
            frame = await self._receiver.track.recv()
        except MediaStreamError as error:
            raise BenchError(f"the viewer's video ended; its connection is {self._peer.connectionState}") from error
        at_s = time.monotonic()
        picture = frame if frame.format.name == "yuv420p" else frame.reformat(format="yuv420p", threads=1)
        i420 = picture.to_ndarray()
        mark = marker.read(i420[: frame.height])
        top = marker.lines(frame.width) if mark is not None else 0
        origin = self._receiver.__dict__["_RTCRtpReceiver__timestamp_mapper"]._origin
        packets = self._packets.get((frame.pts + origin) & 0xFFFFFFFF)
        size = (frame.width, frame.height)
        self._seen(Arrival(at_s, frame.pts / MEDIA_CLOCK_HZ, mark, change.sketch(i420, top), packets, size), i420)
        return at_s

    async def _on_packet(self, packet: Any, arrival_time_ms: int) -> None:
        now_s = time.monotonic()
        first_s, _, size = self._packets.get(packet.timestamp, (now_s, now_s, 0))
        self._packets[packet.timestamp] = Packets(first_s, now_s, size + len(packet.payload))
        while len(self._packets) > MOST_PENDING:
            del self._packets[next(iter(self._packets))]
        await self._take(packet, arrival_time_ms=arrival_time_ms)

    def _on_ice(self) -> None:
        if self._ice_s is None and self._peer.iceConnectionState in ("connected", "completed"):
            self._ice_s = time.monotonic()

    def _on_dtls(self) -> None:
        if self._dtls_s is None and self._receiver.transport.state == "connected":
            self._dtls_s = time.monotonic()

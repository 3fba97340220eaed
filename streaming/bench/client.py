"""The other end of the wire, for measuring: plain HTTP requests, and a viewer that receives and decodes.

One asyncio event loop owns both. Requests run in threads, so that they never hold the loop, which takes frames' times.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import av
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCRtpReceiver, RTCSessionDescription
from aiortc.exceptions import InvalidAccessError, InvalidStateError
from aiortc.mediastreams import MediaStreamError

from streaming.bench.measure import Arrival
from streaming.media import marker
from streaming.media.rtp_hooks import end_consent_with_connection

REQUEST_TIMEOUT_S = 30.0
JOIN_TIMEOUT_S = 60.0  # POST to first decoded frame; a first hop on a slow machine takes its time


class BenchError(Exception):
    """The measurement cannot go on; the text says why, in one line."""


class RequestError(BenchError):
    """A request that the server refused or did not answer."""

    def __init__(self, status: int | None, detail: str) -> None:
        super().__init__(detail)
        self.status = status  # None when there was no reply


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply with a good status."""

    headers: http.client.HTTPMessage
    body: bytes


class Http:
    """Requests to one server, `url` without a slash at its end."""

    def __init__(self, url: str, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self.url = url
        self._timeout_s = timeout_s

    async def request(
        self, method: str, path: str, body: bytes | None = None, content_type: str = "application/json"
    ) -> Reply:
        """One request and its reply. Raises RequestError with the server's own words."""
        return await asyncio.to_thread(self._request, method, path, body, content_type)

    async def json(self, method: str, path: str, value: object = None) -> dict[str, Any]:
        """A request with a JSON value, or without a body, and the object that comes back. Raises RequestError."""
        reply = await self.request(method, path, None if value is None else json.dumps(value).encode())
        try:
            content = json.loads(reply.body)
        except ValueError as error:
            raise RequestError(None, f"{method} {self.url}{path}: the reply is not JSON") from error
        if not isinstance(content, dict):
            raise RequestError(None, f"{method} {self.url}{path}: the reply is not a JSON object")
        return content

    def _request(self, method: str, path: str, body: bytes | None, content_type: str) -> Reply:
        headers = {} if body is None else {"Content-Type": content_type}
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as reply:
                return Reply(reply.headers, reply.read())
        except urllib.error.HTTPError as error:
            with error:
                detail = _detail(error.read())
            raise RequestError(
                error.code, f"{method} {self.url}{path}: {error.code} {detail or error.reason}"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise RequestError(None, f"{method} {self.url}{path}: no reply: {reason}") from error


def _detail(body: bytes) -> str:
    """The sentence of a problem+json body; empty when there is none."""
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return ""


class Spectator:
    """A viewer of one channel that decodes every frame and hands its arrival to `seen`, in the event loop."""

    def __init__(self, http: Http, channel: str, codec: str, seen: Callable[[Arrival], None]) -> None:
        self._http = http
        self._path = f"/whep/{channel}?codec={codec}&marker=1"
        self._codec = codec
        self._seen = seen
        self._peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._first_s: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._session: str | None = None
        self._reader: asyncio.Task[None] | None = None

    async def join(self) -> float:
        """Joins and waits for a picture; returns seconds from the offer sent to the first decoded frame.

        Raises BenchError when the server refuses, or no picture comes.
        """
        transceiver = self._peer.addTransceiver("video", direction="recvonly")
        known = RTCRtpReceiver.getCapabilities("video").codecs
        # With its retransmissions, or nothing that was lost could be asked for again.
        wanted = (f"video/{self._codec}", "video/rtx")
        transceiver.setCodecPreferences([entry for entry in known if entry.mimeType.lower() in wanted])
        end_consent_with_connection(transceiver.receiver.transport)
        self._peer.on("track", self._on_track)
        await self._peer.setLocalDescription(await self._peer.createOffer())
        offer = str(self._peer.localDescription.sdp).encode()
        began_s = time.monotonic()
        reply = await self._http.request("POST", self._path, offer, "application/sdp")
        self._session = reply.headers["Location"]
        try:
            async with asyncio.timeout(JOIN_TIMEOUT_S):
                await self._peer.setRemoteDescription(RTCSessionDescription(reply.body.decode(), "answer"))
                return await self._first_s - began_s
        except TimeoutError as error:
            state = self._peer.connectionState
            raise BenchError(f"no picture came within {JOIN_TIMEOUT_S:.0f} s; the connection is {state}") from error
        except (ValueError, InvalidAccessError, InvalidStateError) as error:
            raise BenchError(f"the server's answer is not usable: {error}") from error

    async def ended(self) -> None:
        """Waits for the end of the video, which no good server brings about, and raises BenchError."""
        assert self._reader is not None, "nobody joined"
        await asyncio.wait([self._reader])
        raise BenchError(f"the viewer's video ended; its connection is {self._peer.connectionState}")

    async def close(self) -> None:
        """Leaves; idempotent. A server that is gone by now is no failure."""
        session, self._session = self._session, None
        if session is not None:
            with suppress(RequestError):
                await self._http.request("DELETE", session)
        await self._peer.close()
        if self._reader is not None:
            # A track that never began is not ended by close.
            self._reader.cancel()
            await asyncio.wait([self._reader])

    def _on_track(self, track: MediaStreamTrack) -> None:
        self._reader = asyncio.create_task(self._read(track), name="spectator")

    async def _read(self, track: MediaStreamTrack) -> None:
        try:
            while True:
                frame = await track.recv()
                at_s = time.monotonic()
                if not self._first_s.done():
                    self._first_s.set_result(at_s)
                self._seen(Arrival(at_s, _mark(frame)))
        except MediaStreamError:
            if not self._first_s.done():
                self._first_s.set_exception(BenchError("the video ended before its first picture"))


def _mark(frame: av.VideoFrame) -> marker.Mark | None:
    picture = frame if frame.format.name == "yuv420p" else frame.reformat(format="yuv420p", threads=1)
    return marker.read(picture.to_ndarray()[: frame.height])

"""A client of the server, for measuring: plain HTTP requests, and a viewer that receives and decodes.

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
from typing import Any

from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpReceiver, RTCSessionDescription
from aiortc.exceptions import InvalidAccessError, InvalidStateError
from aiortc.mediastreams import MediaStreamError

from streaming.bench.measure import Arrival, BenchError
from streaming.media import marker
from streaming.media.rtp_hooks import end_consent_with_connection

REQUEST_TIMEOUT_S = 30.0
JOIN_TIMEOUT_S = 60.0  # POST to first decoded frame; a first chunk on a slow machine takes its time


class RequestError(BenchError):
    """A request that the server refused or did not answer."""

    def __init__(self, status: int | None, detail: str) -> None:
        super().__init__(detail)
        self.status = status  # None when there was no reply


class Http:
    """Requests to one server, `url` without a slash at its end."""

    def __init__(self, url: str) -> None:
        self.url = url

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

    def _request(self, method: str, path: str, body: bytes | None, kind: str) -> tuple[http.client.HTTPMessage, bytes]:
        headers = {} if body is None else {"Content-Type": kind}
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S) as reply:
                return reply.headers, reply.read()
        except urllib.error.HTTPError as error:
            detail = error.reason
            with error, suppress(ValueError, KeyError, TypeError):
                detail = json.loads(error.read())["detail"]
            raise RequestError(error.code, f"{method} {self.url}{path}: {error.code} {detail}") from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise RequestError(None, f"{method} {self.url}{path}: no reply: {reason}") from error


class BenchViewer:
    """A viewer of one channel that decodes every frame and hands its arrival to `seen`, in the event loop."""

    def __init__(self, http: Http, channel: str, codec: str, seen: Callable[[Arrival], None]) -> None:
        self._http, self._channel, self._codec, self._seen = http, channel, codec, seen
        self._peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._receiver = self._peer.addTransceiver("video", direction="recvonly").receiver
        self._session: str | None = None

    async def join(self) -> float:
        """Joins and waits for a picture; returns seconds from the offer sent to the first decoded frame.

        Raises BenchError when the server refuses, or no picture comes.
        """
        known = RTCRtpReceiver.getCapabilities("video").codecs
        # With its retransmissions, or nothing that was lost could be asked for again.
        wanted = (f"video/{self._codec}", "video/rtx")
        (transceiver,) = self._peer.getTransceivers()
        transceiver.setCodecPreferences([entry for entry in known if entry.mimeType.lower() in wanted])
        end_consent_with_connection(self._receiver.transport)
        await self._peer.setLocalDescription(await self._peer.createOffer())
        offer = str(self._peer.localDescription.sdp).encode()
        began_s = time.monotonic()
        path = f"/whep/{self._channel}?codec={self._codec}&marker=1"
        headers, answer = await self._http.request("POST", path, offer, "application/sdp")
        self._session = headers["Location"]
        try:
            async with asyncio.timeout(JOIN_TIMEOUT_S):
                await self._peer.setRemoteDescription(RTCSessionDescription(answer.decode(), "answer"))
                return await self._see() - began_s
        except TimeoutError as error:
            state = self._peer.connectionState
            raise BenchError(f"no picture came within {JOIN_TIMEOUT_S:.0f} s; the connection is {state}") from error
        except (ValueError, InvalidAccessError, InvalidStateError) as error:
            raise BenchError(f"the server's answer is not usable: {error}") from error

    async def watch(self) -> None:
        """Sees frame after frame. Raises BenchError at the end of the video, which no good server brings about."""
        while True:
            await self._see()

    async def aclose(self) -> None:
        """Leaves; idempotent. A server that is gone by now is no failure."""
        session, self._session = self._session, None
        if session is not None:
            with suppress(RequestError):
                await self._http.request("DELETE", session)
        await self._peer.close()

    async def _see(self) -> float:
        """The arrival of the next frame."""
        try:
            frame = await self._receiver.track.recv()
        except MediaStreamError as error:
            raise BenchError(f"the viewer's video ended; its connection is {self._peer.connectionState}") from error
        at_s = time.monotonic()
        picture = frame if frame.format.name == "yuv420p" else frame.reformat(format="yuv420p", threads=1)
        self._seen(Arrival(at_s, marker.read(picture.to_ndarray()[: frame.height])))
        return at_s

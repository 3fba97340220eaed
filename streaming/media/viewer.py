"""Viewers: one peer connection each, from its offer to one idempotent close.

A viewer's own task watches it and tears it down; everything that ends a viewer only asks that task. `viewers.py` owns
all of them. No SDP and no token reaches the log.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from aiortc.sdp import candidate_from_sdp

from streaming.errors import Unavailable
from streaming.media.adaptation import Adaptation, adapt
from streaming.media.feed import Feed
from streaming.media.hub import Hub, Sink
from streaming.media.ice import IceAgent
from streaming.media.ice_restart import IceRestarts
from streaming.media.metrics import Metrics
from streaming.media.offer import MOST_CANDIDATES, Fragment, IceSession, Offer, WhepError
from streaming.media.rate import Rung
from streaming.media.rtp_hooks import SenderHooks, end_consent_with_connection, receive_nothing
from streaming.media.viewer_report import ViewerReport

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ViewerConfig:
    """Limits of viewers; times in seconds."""

    most: int = 64
    most_an_address: int = 64
    most_connecting: int = 16  # sessions that are not connected yet
    patience_s: float = 2.0  # a session that is not connected by then makes room for a new one
    negotiations: int = 2  # at a time: each holds the loop for some milliseconds
    negotiate_s: float = 5.0
    connect_s: float = 10.0
    silence_s: float = 8.0  # without RTCP from a viewer that is sent video
    check_s: float = 0.5
    close_s: float = 1.0
    tombstones: int = 256  # ended sessions that are remembered, so that a late DELETE finds them

    def __post_init__(self) -> None:
        counts = (self.most, self.most_an_address, self.most_connecting, self.negotiations, self.tombstones)
        if min(counts) < 1:
            raise ValueError(f"numbers of viewers and sessions must be positive, not {counts}")
        if min(self.patience_s, self.negotiate_s, self.connect_s, self.silence_s, self.check_s, self.close_s) <= 0:
            raise ValueError("times of a viewer must be positive")


class Broadcaster(Protocol):
    """A channel as a viewer sees it."""

    @property
    def id(self) -> str: ...

    def rate_bps(self, rung: Rung = Rung.HIGH) -> int:
        """Bit rate of the encoded video. Raises Unavailable before there is one."""
        ...

    def check(self) -> None:
        """Raises Unavailable when nobody can join now."""
        ...

    def join(self, sink: Sink, codec: str, marked: bool, viewer: bool = True, rung: Rung = Rung.HIGH) -> Hub:
        """Sends to `sink` from now on, a key frame first; `viewer` tells whether someone watches there.

        A sink that joined before changes over.
        """
        ...

    def leave(self, sink: Sink) -> None:
        """Stops sending to `sink`; idempotent."""
        ...


class Viewer:
    """One peer connection of one channel. `ended` is called once, after everything was freed."""

    def __init__(
        self,
        number: int,
        channel: Broadcaster,
        offer: Offer,
        address: str,
        config: ViewerConfig,
        metrics: Metrics,
        ice: IceAgent,
        ended: Callable[[Viewer, str], None],
    ) -> None:
        self.id = secrets.token_urlsafe(16)
        # Enough to tell viewers apart in the log, not enough to end their sessions.
        self._name = self.id[:6]
        self.etag = _new_etag()
        self.number = number
        self.offer, self.address = offer, address
        self.channel = channel
        self._config, self._metrics = config, metrics
        self._ice, self._ended = ice, ended
        self._candidates = 0
        self._peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._transceiver: Any = None
        self._gathering: asyncio.Task[None] | None = None
        self._feed: Feed | None = None
        self._hooks: SenderHooks | None = None
        self._adaptation: Adaptation | None = None
        self._restarts: IceRestarts | None = None
        self._opened_s = time.monotonic()
        self._connected_s: float | None = None
        self._reason: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._peer.on("connectionstatechange", self._on_state)
        self._task = asyncio.create_task(self._live(), name=f"viewer {self._name}")

    def waiting_s(self) -> float | None:
        """Seconds that the session waits for its connection; None once it is connected."""
        return None if self._connected_s is not None else time.monotonic() - self._opened_s

    def report(self) -> ViewerReport:
        """What is known of the viewer's connection."""
        hooks, adaptation, feed = self._hooks, self._adaptation, self._feed
        return ViewerReport(
            number=self.number,
            channel=self.channel.id,
            codec=self.offer.codec,
            connected_s=None if self._connected_s is None else round(time.monotonic() - self._connected_s, 3),
            rung=(adaptation.rung if adaptation else Rung.HIGH).value,
            rung_changes=adaptation.changes if adaptation else 0,
            loss=hooks.lost_share if hooks else None,
            remb_bps=hooks.remb_bps if hooks else None,
            round_trip_s=hooks.rtt_s if hooks else None,
            retransmissions=hooks.resent if hooks else 0,
            playout_delay_s=feed.packets.playout_delay_s if feed else 0.0,
            withheld=hooks.withheld if hooks else 0,
            keyframes=feed.keyframes if feed else 0,
            keyframe_requests=hooks.keyframe_requests if hooks else 0,
        )

    async def gather(self, marked: bool) -> None:
        """Gathers this side's candidates, which may wait for STUN and TURN servers. Raises Unavailable."""
        codec = self.offer.codec

        def join(feed: Feed, rung: Rung) -> Hub:
            return self.channel.join(feed, codec, marked, rung=rung)

        self._transceiver = self._peer.addTransceiver("video", direction="sendonly")
        receive_nothing(self._transceiver)
        self._feed = Feed(self._transceiver.sender, join, self._metrics)
        self._gathering = asyncio.create_task(self._ice.gather(self._transceiver.sender.transport))
        await asyncio.wait([self._gathering])
        if not self._gathering.cancelled():
            await self._gathering
        if self._reason.done():
            raise Unavailable("The session was closed before it was answered; try again.")

    async def answer(self) -> str:
        """Negotiates and returns aiortc's answer to the offer's video, once candidates are gathered.

        Raises WhepError if aiortc cannot take the offer, Unavailable where the session ended meanwhile.
        """
        offer, transceiver, feed = self.offer, self._transceiver, self._feed
        assert feed is not None, "candidates are gathered"
        try:
            async with asyncio.timeout(self._config.negotiate_s):
                transceiver.setCodecPreferences(capabilities(offer.codec))
                await self._peer.setRemoteDescription(RTCSessionDescription(offer.sdp, "offer"))
                feed.packets.negotiate_playout_delay(transceiver, offer.sdp)
                transport = transceiver.sender.transport
                end_consent_with_connection(transport)
                self._restarts = IceRestarts(self._name, transport, self._ice, self._config.connect_s)
                rates_bps = {rung: self.channel.rate_bps(rung) for rung in Rung}
                self._adaptation, self._hooks = adapt(f"viewer {self._name}", feed, transceiver.sender, rates_bps)
                await self._peer.setLocalDescription(await self._peer.createAnswer())
        except TimeoutError as error:
            raise WhepError(400, "The offer could not be answered in time.") from error
        except Unavailable:
            raise
        except Exception as error:
            if self._reason.done():
                raise Unavailable("The session ended before it was answered; try again.") from error
            # aiortc has no error of its own for bad SDP: anything from ValueError to RuntimeError comes out of it.
            log.info("viewer %s: offer refused: %s", self._name, type(error).__name__)
            raise WhepError(400, "The offer could not be understood.") from error
        sdp: str = self._peer.localDescription.sdp
        if "a=sendonly" not in sdp:
            raise WhepError(400, "The offer does not let this server send video.")
        return sdp

    async def add(self, fragment: Fragment) -> None:
        """Adds trickled candidates, as many as a session may have; one that cannot be used is passed over."""
        if self._restarts is not None and self._restarts.begun:
            await self._restarts.add(fragment)
            return
        for text in fragment.candidates[: MOST_CANDIDATES - self._candidates]:
            self._candidates += 1
            try:
                candidate = candidate_from_sdp(text)
                candidate.sdpMid = self.offer.mid
                await self._peer.addIceCandidate(candidate)
            except Exception as error:
                # aiortc and aioice have no error of their own for a candidate that they do not like.
                log.info("viewer %s: a candidate is passed over: %s", self._name, type(error).__name__)

    async def restart(self, session: IceSession, fragment: Fragment) -> list[str]:
        """Begins a new ICE session, and with it a new entity-tag; returns this side's attributes.

        Raises WhepError 409 before the viewer is connected or while another is being answered, Unavailable where there
        is no port for it. The old session goes on then.
        """
        if self._connected_s is None or self._restarts is None:
            raise WhepError(409, "ICE can be restarted once the session is connected; add candidates, or try again.")
        attributes = await self._restarts.begin(session, fragment)
        self.offer = dataclasses.replace(self.offer, ufrag=session.ufrag)
        self.etag = _new_etag()
        return attributes

    async def close(self, reason: str) -> None:
        """Ends the viewer and returns when everything is freed; idempotent."""
        self._ask_to_end(reason)
        await asyncio.shield(self._task)

    def _ask_to_end(self, reason: str) -> None:
        if not self._reason.done():
            self._reason.set_result(reason)

    def _on_state(self) -> None:
        state = self._peer.connectionState
        if state == "connected":
            self._connected_s = time.monotonic()
        elif state in ("failed", "closed"):
            self._ask_to_end("connection lost")

    async def _live(self) -> None:
        """The viewer's life: watches until something ends it, then frees everything in order."""
        while not self._reason.done():
            await asyncio.wait([self._reason], timeout=self._config.check_s)
            overdue = self._overdue(time.monotonic())
            if overdue is not None:
                self._ask_to_end(overdue)
            elif self._adaptation is not None:
                self._adaptation.tick()
        reason = self._reason.result()
        # First off the air, so that nothing is queued for a connection that is closing.
        if self._adaptation is not None:
            self._adaptation.close()
        if self._feed is not None:
            self.channel.leave(self._feed)
            self._feed.end()
        if self._gathering is not None and not self._gathering.done():
            self._gathering.cancel()
            await asyncio.wait([self._gathering])
        if self._restarts is not None:
            await self._restarts.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._config.close_s):
                await self._peer.close()
        log.info("viewer %s: closed, %s", self._name, reason)
        self._ended(self, reason)

    def _overdue(self, now_s: float) -> str | None:
        if self._connected_s is None:
            return "not connected in time" if now_s - self._opened_s > self._config.connect_s else None
        if self._hooks is None or self._feed is None or self._feed.first_sent_s is None:
            return None
        # A receiver has nothing to report before it got something.
        heard_s = max(self._feed.first_sent_s, self._hooks.last_heard_s or 0.0)
        return "silent" if now_s - heard_s > self._config.silence_s else None


def _new_etag() -> str:
    return f'"{secrets.token_hex(8)}"'


def capabilities(codec: str) -> list[Any]:
    """The codec and its retransmissions, as aiortc wants to be told."""
    known = RTCRtpSender.getCapabilities("video").codecs
    return [entry for entry in known if entry.mimeType.lower() in (f"video/{codec}", "video/rtx")]

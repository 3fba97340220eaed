"""A push: a channel's video on its way to a WHIP server, from which others take it, connected anew after any end.

The packets are those of the channel's viewers. A push that is connected keeps its channel running and is no viewer.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from streaming.errors import Unavailable
from streaming.media.adaptation import Adaptation, adapt
from streaming.media.feed import Feed
from streaming.media.ice import IceAgent
from streaming.media.metrics import Metrics
from streaming.media.rate import Rung
from streaming.media.rtp_hooks import SenderHooks, end_consent_with_connection, receive_nothing, take_rsa_certificates
from streaming.media.viewer import Broadcaster, capabilities
from streaming.media.whip import WhipClient, WhipError, WhipSession, WhipTarget

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PushConfig:
    """Limits of pushes; times in seconds."""

    most: int = 16
    connect_s: float = 10.0  # for media, after the far end answered
    silence_s: float = 8.0  # without RTCP from a far end that is sent video
    check_s: float = 0.5
    close_s: float = 1.0
    first_wait_s: float = 1.0  # before the second try; doubles up to `longest_wait_s`
    longest_wait_s: float = 30.0

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f"the number of pushes must be positive, not {self.most}")
        times = (self.connect_s, self.silence_s, self.check_s, self.close_s, self.first_wait_s, self.longest_wait_s)
        if min(times) <= 0:
            raise ValueError("times of a push must be positive")


@dataclass(frozen=True, slots=True)
class PushReport:
    """A push as people see it."""

    id: str
    host: str  # scheme, host and port of its address, whose rest may be a secret
    codec: str  # "h264" or "vp8"
    state: str  # "connecting", "live", or "waiting" for its next try
    error: str | None  # why it was not live last; null until it failed once
    live_s: float | None  # for how long it is live now
    reconnects: int  # times that it was live again
    rung: str  # "high" or "low", as the far end's network takes it


class Push:
    """One push. `open` makes the first connection, then it stays until `close`."""

    def __init__(
        self,
        channel: Broadcaster,
        target: WhipTarget,
        codec: str,
        client: WhipClient,
        ice: IceAgent,
        metrics: Metrics,
        config: PushConfig,
    ) -> None:
        self.id = secrets.token_urlsafe(16)
        self.channel, self.target, self.codec = channel, target, codec
        self._client, self._ice, self._metrics, self._config = client, ice, metrics, config
        self._state = "connecting"
        self._error: str | None = None
        self._live_since_s: float | None = None
        self._uplink: _Uplink | None = None
        self._times_live = 0
        self._settled = asyncio.Event()  # the first connection is made or refused
        self._refusal: Exception | None = WhipError("The push was ended before it was live.")
        self._task = asyncio.create_task(self._live(), name=f"push {self.id[:6]}")

    async def open(self) -> None:
        """Returns when the far end takes video. Raises WhipError or Unavailable; the push has ended then."""
        try:
            await self._settled.wait()
        except BaseException:
            await self.close()
            raise
        if self._refusal is not None:
            raise self._refusal

    async def close(self) -> None:
        """Ends the push, tells the far end and returns when everything is freed; idempotent."""
        # A second cancellation would stop what the first one frees.
        if not self._task.cancelling():
            self._task.cancel()
        await asyncio.wait([self._task])

    def report(self) -> PushReport:
        """Its state now."""
        since_s = self._live_since_s
        live_s = None if since_s is None else round(time.monotonic() - since_s, 3)
        again = max(0, self._times_live - 1)
        rung = (self._uplink.rung if self._uplink else Rung.HIGH).value
        return PushReport(self.id, self.target.origin, self.codec, self._state, self._error, live_s, again, rung)

    async def _live(self) -> None:
        """The push's life: connects, stays until the connection ends, waits, and connects again."""
        wait_s = self._config.first_wait_s
        try:
            while True:
                try:
                    await self._connection()
                    wait_s = self._config.first_wait_s
                except (WhipError, Unavailable) as error:
                    self._error = str(error)
                    if self._refusal is not None:
                        self._refusal = error
                        return
                log.warning("push %s: %s Next try in %.0f s.", self.id[:6], self._error, wait_s)
                self._state = "waiting"
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, self._config.longest_wait_s)
        finally:
            self._settled.set()

    async def _connection(self) -> None:
        """One connection from its beginning to its end. Raises WhipError or Unavailable where it never is live."""
        self._state = "connecting"
        uplink = self._uplink = _Uplink(self)
        try:
            await uplink.connect()
            self._state, self._live_since_s = "live", time.monotonic()
            self._times_live += 1
            log.info("push %s: live at %s", self.id[:6], self.target.origin)
            self._refusal = None
            self._settled.set()
            self._error = await uplink.end()
        finally:
            self._live_since_s = self._uplink = None
            await uplink.aclose()


class _Uplink:
    """One connection of a push."""

    def __init__(self, push: Push) -> None:
        self._push, self._config = push, push._config
        self._peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._transceiver: Any = self._peer.addTransceiver("video", direction="sendonly")
        receive_nothing(self._transceiver)
        self._feed = Feed(self._transceiver.sender, self._join, push._metrics)
        self._hooks: SenderHooks | None = None
        self._adaptation: Adaptation | None = None
        self._session: WhipSession | None = None
        self._connected = asyncio.Event()
        self._over = asyncio.Event()
        self._peer.on("connectionstatechange", self._on_state)

    async def connect(self) -> None:
        """Returns when media flows. Raises WhipError, or Unavailable where the channel cannot be joined."""
        push, sender = self._push, self._transceiver.sender
        push.channel.check()
        rates_bps = {rung: push.channel.rate_bps(rung) for rung in Rung}
        self._adaptation, self._hooks = adapt(f"push {push.id[:6]}", self._feed, sender, rates_bps)
        self._transceiver.setCodecPreferences(capabilities(push.codec))
        end_consent_with_connection(sender.transport)
        take_rsa_certificates(sender.transport)
        await push._ice.gather(sender.transport)
        await self._peer.setLocalDescription(await self._peer.createOffer())
        self._session = await push._client.post(push.target, self._peer.localDescription.sdp)
        await push._ice.borrow(sender.transport, self._session.servers)
        await self._accept(self._session.answer)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._config.connect_s):
                await self._connected.wait()
        if not self._connected.is_set() or self._over.is_set():
            raise WhipError(f"{push.target.origin} answers, but no media connection to it comes about; see /doctor.")

    @property
    def rung(self) -> Rung:
        return self._adaptation.rung if self._adaptation else Rung.HIGH

    async def end(self) -> str:
        """Why the connection ended, once it did."""
        while not self._over.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._config.check_s):
                    await self._over.wait()
            if self._is_silent(time.monotonic()):
                return f"{self._push.target.origin} reports nothing any more."
            assert self._adaptation is not None, "it is connected"
            self._adaptation.tick()
        return f"the connection to {self._push.target.origin} was lost."

    async def aclose(self) -> None:
        """Frees everything, and tells the far end if it answered."""
        if self._adaptation is not None:
            self._adaptation.close()
        self._push.channel.leave(self._feed)
        self._feed.end()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._config.close_s):
                await self._peer.close()
        if self._session is not None:
            with suppress(WhipError):
                await self._push._client.delete(self._push.target, self._session)

    async def _accept(self, answer: str) -> None:
        origin = self._push.target.origin
        try:
            await self._peer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        except Exception as error:
            # aiortc has no error of its own for bad SDP: anything from ValueError to RuntimeError comes out of it.
            log.info("push %s: answer refused: %s", self._push.id[:6], type(error).__name__)
            raise WhipError(f"{origin} answers with SDP that does not fit the offer of {self._push.codec}.") from error
        if self._transceiver.currentDirection != "sendonly" or "\nm=video 0 " in answer:
            raise WhipError(f"{origin} answers that it does not take the video.")

    def _join(self, feed: Feed, rung: Rung) -> Any:
        return self._push.channel.join(feed, self._push.codec, False, viewer=False, rung=rung)

    def _on_state(self) -> None:
        state = self._peer.connectionState
        if state == "connected":
            self._connected.set()
        elif state in ("failed", "closed"):
            self._over.set()
            self._connected.set()

    def _is_silent(self, now_s: float) -> bool:
        if self._hooks is None or self._feed.first_sent_s is None:
            return False
        # A receiver has nothing to report before it got something.
        heard_s = max(self._feed.first_sent_s, self._hooks.last_heard_s or 0.0)
        return now_s - heard_s > self._config.silence_s


class Pushes:
    """All pushes of the server, within the limit of how many."""

    def __init__(self, metrics: Metrics, config: PushConfig | None = None, ice: IceAgent | None = None) -> None:
        self._config = config or PushConfig()
        self._metrics, self._ice = metrics, ice or IceAgent()
        self._client = WhipClient()
        self._pushes: dict[str, Push] = {}

    async def open(self, channel: Broadcaster, target: WhipTarget, codec: str) -> PushReport | None:
        """A new push, once the far end takes its video; None where the channel is pushed to this address already.

        Raises WhipError where it does not, Unavailable when there are too many or the channel has no video yet.
        """
        channel.check()
        if any(one.channel is channel and one.target.url == target.url for one in self._pushes.values()):
            return None
        if len(self._pushes) >= self._config.most:
            raise Unavailable(f"{self._config.most} pushes run, which is the limit; end one first.")
        push = Push(channel, target, codec, self._client, self._ice, self._metrics, self._config)
        self._pushes[push.id] = push
        try:
            await push.open()
        except BaseException:
            self._pushes.pop(push.id, None)
            raise
        return push.report()

    def reports(self, channel: Broadcaster) -> list[PushReport]:
        """All pushes of a channel, oldest first."""
        return [push.report() for push in self._pushes.values() if push.channel is channel]

    def find(self, channel: Broadcaster, push_id: str) -> PushReport | None:
        """The report of a push; None where the channel has no such push."""
        push = self._pushes.get(push_id)
        return None if push is None or push.channel is not channel else push.report()

    async def end(self, channel: Broadcaster, push_id: str) -> bool:
        """Ends a push; False where the channel has no such push."""
        if self.find(channel, push_id) is None:
            return False
        await self._pushes.pop(push_id).close()
        return True

    async def close(self, channel: Broadcaster | None = None) -> None:
        """Ends the pushes of a channel, or of all, which cannot begin again then."""
        ended = [push for push in self._pushes.values() if channel in (None, push.channel)]
        for push in ended:
            self._pushes.pop(push.id, None)
        await asyncio.gather(*(push.close() for push in ended))
        if channel is None:
            await self._client.aclose()

"""ICE restarts: a new ICE connection of one viewer beneath its DTLS and SRTP, which know nothing of it.

aioice gives a connection its credentials for good, and aiortc has no restart; so a second connection is made, and this
file touches private names of both. While it connects, video goes on over the old one and both are read from. When it
is connected it takes the old one's place; when it does not, the old one stays.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import aioice
from aioice.ice import ConnectionClosed

from streaming.media.ice import IceAgent
from streaming.media.offer import MOST_CANDIDATES, Fragment, IceSession, WhepError
from streaming.media.rtp_hooks import end_consent

log = logging.getLogger(__name__)


class IceRestarts:
    """Those of one viewer, over its RTCDtlsTransport; one connects at a time."""

    def __init__(self, name: str, transport: Any, agent: IceAgent, connect_s: float) -> None:
        self._name, self._ice, self._agent, self._connect_s = name, transport.transport, agent, connect_s
        self._answering = self._ended = False
        self._connection: aioice.Connection | None = None  # of the last restart
        self._candidates = 0
        self._connecting: asyncio.Task[None] | None = None

    @property
    def begun(self) -> bool:
        """True once there was a restart: candidates are its own from then on."""
        return self._connection is not None

    async def begin(self, session: IceSession, fragment: Fragment) -> list[str]:
        """Begins one; returns the attributes of this side. One that still connects is given up.

        Raises WhepError 409 while another is being answered and 404 once the session ended, Unavailable where there is
        no port for it.
        """
        if self._answering:
            raise WhepError(409, "Another ICE restart of this session is being answered; try again.")
        self._answering = True
        try:
            return await self._begin(session, fragment)
        finally:
            self._answering = False

    async def _begin(self, session: IceSession, fragment: Fragment) -> list[str]:
        connection = aioice.Connection(ice_controlling=self._ice._connection.ice_controlling)
        try:
            await self._agent.gather_connection(connection)
            await self._stop()
            if self._ended:
                raise WhepError(404, "The session ended before ICE was restarted.")
        except BaseException:
            await connection.close()
            raise
        end_consent(connection)
        connection.remote_username, connection.remote_password = session.ufrag, session.password
        self._connection, self._candidates = connection, 0
        candidates = [f"candidate:{candidate.to_sdp()}" for candidate in connection.local_candidates]
        await self.add(fragment)
        self._connecting = asyncio.create_task(self._connect(connection), name=f"ICE restart {self._name}")
        credentials = f"ice-ufrag:{connection.local_username}", f"ice-pwd:{connection.local_password}"
        return [*credentials, *candidates, "end-of-candidates"]

    async def add(self, fragment: Fragment) -> None:
        """Adds the peer's candidates to the last restart; one that cannot be used is passed over."""
        connection = self._connection
        assert connection is not None, "a restart was begun"
        for text in fragment.candidates[: MOST_CANDIDATES - self._candidates]:
            self._candidates += 1
            try:
                await connection.add_remote_candidate(aioice.Candidate.from_sdp(text))
            except ValueError as error:
                log.info("viewer %s: a candidate is passed over: %s", self._name, error)

    async def close(self) -> None:
        """Gives up a restart that connects, and begins no more; idempotent."""
        self._ended = True
        await self._stop()

    async def _stop(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
            self._connecting = None
            # The task closes it, but for one that was cancelled before it began.
            if self._connection is not None and self._connection is not self._ice._connection:
                await self._connection.close()

    async def _connect(self, new: Any) -> None:
        old = self._ice._connection
        received = old._queue
        self._share(old, new)
        try:
            async with asyncio.timeout(self._connect_s):
                await new.connect()
        except (TimeoutError, ConnectionError):
            log.info("viewer %s: the ICE restart does not connect", self._name)
            self._give_up(old, new, received)
            await new.close()
        except asyncio.CancelledError:
            self._give_up(old, new, received)
            await new.close()
            raise
        else:
            log.info("viewer %s: ICE was restarted", self._name)
            self._ice._connection = self._ice.iceGatherer._connection = new
            self._ice._send = new.send
            # Also where the viewer leaves in this moment.
            await asyncio.shield(asyncio.ensure_future(old.close()))

    def _share(self, old: Any, new: Any) -> None:
        """Lets both connections fill the queue that DTLS reads, and keeps the end of the old one from ending it."""
        received, new._queue, old._queue = old._queue, old._queue, asyncio.Queue()
        old.data_received = new.data_received
        new._event_waiter, old._event_waiter = old._event_waiter, None

        async def receive() -> bytes:
            item = await received.get()
            if item is None:
                raise ConnectionError("the ICE connection is closed")
            return bytes(item[0])

        self._ice._recv = receive

    def _give_up(self, old: Any, new: Any, received: Any) -> None:
        """Makes the old connection the only one again; where it has ended meanwhile, so does the viewer."""
        old._queue, new._queue = received, asyncio.Queue()
        del old.data_received
        old._event_waiter, new._event_waiter = new._event_waiter, None
        if old._closed:
            received.put_nowait(None)
            old._emit_event(ConnectionClosed())

"""All viewers of a server, within the limit of how many."""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import count

from streaming.errors import Unavailable
from streaming.media.ice import IceAgent
from streaming.media.metrics import Metrics
from streaming.media.offer import Offer
from streaming.media.viewer import Broadcaster, Viewer, ViewerConfig
from streaming.media.viewer_report import ViewerReport


class Viewers:
    """All viewers of the server, within the limit of how many."""

    def __init__(self, metrics: Metrics, config: ViewerConfig | None = None, ice: IceAgent | None = None) -> None:
        self._config = config or ViewerConfig()
        self._ice = ice or IceAgent()
        self._metrics = metrics
        self._viewers: dict[str, Viewer] = {}
        self._gone: deque[str] = deque(maxlen=self._config.tombstones)
        self._negotiating = asyncio.Semaphore(self._config.negotiations)
        metrics.watch_viewers(self.reports)

    def __len__(self) -> int:
        return len(self._viewers)

    async def open(self, channel: Broadcaster, offer: Offer, address: str, marked: bool) -> tuple[Viewer, str]:
        """A new viewer and its answer. Raises Unavailable when there are too many, WhepError for a bad offer."""
        while blocker := self._blocker(address):
            await blocker.close("made room")
            # It may have ended meanwhile.
            channel.check()
        viewer = Viewer(
            self._free_number(), channel, offer, address, self._config, self._metrics, self._ice, self._forget
        )
        self._viewers[viewer.id] = viewer
        try:
            # Outside of the turns: who waits for a STUN or TURN server holds nobody up.
            await viewer.gather(marked)
            async with self._negotiating:
                return viewer, await viewer.answer()
        except BaseException:
            await viewer.close("not negotiated")
            raise

    def _blocker(self, address: str) -> Viewer | None:
        """The session to close before one from `address` opens: the one that waited longest for its connection.

        None while every limit has room. Raises Unavailable where all sessions are connected or have not waited long.
        """
        config, viewers = self._config, list(self._viewers.values())
        waiting = {viewer: waited_s for viewer in viewers if (waited_s := viewer.waiting_s()) is not None}
        own = [viewer for viewer in viewers if viewer.address == address]
        for those, full, words in (
            (viewers, len(viewers) >= config.most, f"{config.most} viewers are connected"),
            (
                own,
                len(own) >= config.most_an_address,
                f"{config.most_an_address} viewers are connected from your address",
            ),
            (
                list(waiting),
                len(waiting) >= config.most_connecting,
                f"{config.most_connecting} viewers are being connected",
            ),
            (viewers, not self._ice.has_port(), "every media port is in use"),
        ):
            if full:
                oldest = max(waiting.keys() & those, key=waiting.__getitem__, default=None)
                if oldest is None or waiting[oldest] < config.patience_s:
                    raise Unavailable(f"{words[0].upper()}{words[1:]}, which is the limit; try again later.")
                return oldest
        return None

    def _free_number(self) -> int:
        taken = {viewer.number for viewer in self._viewers.values()}
        return next(number for number in count() if number not in taken)

    def reports(self) -> list[ViewerReport]:
        """Of all viewers, by their numbers."""
        return sorted((viewer.report() for viewer in self._viewers.values()), key=lambda report: report.number)

    def find(self, viewer_id: str) -> Viewer | None:
        """The viewer of a session that is open."""
        return self._viewers.get(viewer_id)

    def ended(self, viewer_id: str) -> bool:
        """Whether a session of this id ended lately."""
        return viewer_id in self._gone

    async def end(self, channel: Broadcaster | None = None, reason: str = "channel ended") -> None:
        """Ends the viewers of a channel, or all, and returns when everything is freed."""
        chosen = [viewer.close(reason) for viewer in self._viewers.values() if channel in (None, viewer.channel)]
        await asyncio.gather(*chosen)

    async def close(self) -> None:
        """Ends every viewer and returns when everything is freed."""
        await self.end(reason="server stops")
        await self._ice.aclose()

    def _forget(self, viewer: Viewer, reason: str) -> None:
        self._viewers.pop(viewer.id, None)
        self._gone.append(viewer.id)
        self._metrics.viewers_closed.labels(reason).inc()

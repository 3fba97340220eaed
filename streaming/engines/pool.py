"""All engines of the server: which of them makes which channel.

A channel goes to the engine with the least to do. One whose engine ends goes on in another that runs, from its kept
state; where none does it waits for whichever is there first. Engines that run give channels to each other in the same
way: to one that is new, to one with room for another viewer, and all of them before they are stopped.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from engine.wire.messages import Ready
from engine.wire.settings import EngineSettings
from streaming.engines.link import EngineChannel, EngineLink, EngineStatus
from streaming.media.metrics import Metrics

LOAD = 1.0  # seconds of computing for a second of video, of a channel that runs and is not measured yet

log = logging.getLogger(__name__)


class EnginePool:
    """The links of engines that differ in their number alone."""

    def __init__(self, settings: EngineSettings, metrics: Metrics, engines: int = 1) -> None:
        self.settings = settings
        self._metrics = metrics
        self.links: list[EngineLink] = []
        self._draining: set[EngineLink] = set()
        self._news = asyncio.Event()  # an engine is warm, or was lost
        for _ in range(engines):
            self.add()

    def add(self) -> EngineLink:
        """One more engine."""
        link = EngineLink(replace(self.settings, number=len(self.links)), self._metrics, self._ready)
        self.links.append(link)
        return link

    @property
    def running(self) -> bool:
        """True while any engine is warm."""
        return any(link.running for link in self.links)

    async def turn(self, link: EngineLink) -> None:
        """One engine chooses the size of the pictures, where none was given: the others wait until it is warm."""
        while self.settings.picture is None:
            if link is next(one for one in self.links if one is link or one.status is not EngineStatus.FAILED):
                return
            self._news.clear()
            await self._news.wait()

    def choose(self) -> EngineLink:
        """The engine for one more channel: the least loaded of those that run, if any does."""
        return min(self.links, key=self._rank)

    def others_run(self, link: EngineLink) -> bool:
        """Whether another engine could go on with the channels of this one."""
        return any(other.running for other in self.links if other is not link)

    def lost(self, link: EngineLink) -> None:
        """An engine's process ended, and no other is warm in its place: its channels go to other engines."""
        self._news.set()
        for channel in tuple(link.channels):
            other = self.choose()
            given_up = link.status is EngineStatus.FAILED and other.status is not EngineStatus.FAILED
            if other.running or given_up:
                self._give(channel, other)

    def came(self, link: EngineLink) -> None:
        """An engine is warm: it takes channels of those that have no process, and some of those that have many."""
        self._draining.discard(link)
        self._news.set()
        self.settings = replace(self.settings, picture=link.settings.picture)
        for other in self.links:
            other.settings = replace(other.settings, picture=link.settings.picture)
        for other in self.links:
            # A process that is not warm yet may name its channels, and go on with what is kept of them.
            if other.status in (EngineStatus.RESTARTING, EngineStatus.FAILED) and not other.attached:
                self.lost(other)
        makes = len(link.channels)
        while len((fullest := max(self._running(), key=lambda one: len(one.staying))).staying) >= makes + 2:
            self.move(fullest.staying[-1])
            makes += 1

    def drain(self, link: EngineLink) -> None:
        """An engine is about to be stopped: others that run take its channels."""
        self._draining.add(link)
        for channel in link.staying:
            if link.running and self.choose() is not link:
                self.move(channel)

    def move(self, channel: EngineChannel) -> None:
        """Has a channel made by another engine, whichever has the least to do when its own has stopped with it."""
        if channel in channel.engine.staying:
            channel.engine.release(channel, lambda one: self._give(one, self.choose()))

    def _give(self, channel: EngineChannel, other: EngineLink) -> None:
        log.info("channel %s goes on in engine %d", channel.id, other.settings.number)
        channel.engine.give(channel, other)

    def _running(self) -> list[EngineLink]:
        return [link for link in self.links if link.running]

    def _rank(self, link: EngineLink) -> tuple[bool, bool, bool, float, int]:
        stays = not link.running, link.status is EngineStatus.FAILED, link in self._draining
        return *stays, load(link), len(link.staying)

    def _ready(self) -> Ready | None:
        return next((link.ready for link in self.links if link.ready is not None), None)


def load(link: EngineLink) -> float:
    """Seconds of computing for a second of all its videos that run."""
    return sum(channel.load or LOAD for channel in link.staying if not channel.paused)

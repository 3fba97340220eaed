"""Makes channels. Those that go on from something are made a unit of work at a time, beside those that run."""

from __future__ import annotations

import asyncio
import logging
from collections import abc
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from engine.live.channel_state import ChannelState
from engine.live.chunk import Unit
from engine.live.controller import CostMeter
from engine.live.decoding import read_pictures
from engine.live.fork import Made, fork
from engine.live.generator import Generator
from engine.live.journal import Journal
from engine.live.live_channel import LiveChannel
from engine.live.start import Pictures, Starter
from engine.live.state_keeper import StateKeeper
from engine.runtime.cuda_streams import StreamEvent
from engine.wire.kept_state import KeptState
from engine.wire.messages import ChannelOpened, ChannelRefused, FromEngine, OpenChannel
from engine.wire.settings import ChannelSettings, StartFile
from engine.wire.state_folder import JOURNAL

Units = abc.Generator[Unit, None, Made]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Opening:
    """A channel that is being made."""

    message: OpenChannel
    reading: asyncio.Task[None] | None = None  # files, in a thread
    units: Units | None = None  # once that is done
    mark: StreamEvent = field(default_factory=StreamEvent)  # until it is done, the device is at work for it


class Openings:
    """Makes channels: new ones at once, others in the order in which they were asked for."""

    def __init__(
        self,
        generator: Generator,
        meter: CostMeter,
        keeper: StateKeeper,
        send: Callable[[FromEngine], None],
        begin: Callable[[LiveChannel, KeptState | None], None],
        wake: Callable[[], None],
    ) -> None:
        """`begin` takes a channel that is made, and what it goes on from; `wake` is called when a unit can be done."""
        self._generator, self._meter, self._keeper = generator, meter, keeper
        self._journals = keeper.journals
        self._send, self._begun, self._wake = send, begin, wake
        self._starter = Starter(generator)
        self._openings: dict[str, _Opening] = {}  # by the channel's name

    @property
    def computing(self) -> bool:
        """Whether the device is at work for one of them."""
        return not all(one.mark.done for one in self._openings.values())

    @property
    def ready(self) -> bool:
        """Whether there is a unit to do."""
        return self._next() is not None

    def open(self, message: OpenChannel, running: bool) -> None:
        """Makes a channel; one that goes on from something in a `running` loop, which does its units.

        Raises:
            ValueError: one that the engine was started with cannot be made, and the loop does not run yet.
        """
        settings, start = message.settings, message.settings.start
        if settings.source is not None:
            if running:
                opening = self._openings[message.channel] = _Opening(message)
                opening.reading = asyncio.get_running_loop().create_task(self._read(opening), name="opening")
            else:
                self._send(ChannelRefused(message.channel, "the engine was not ready: try again"))
            return
        assert settings.prompt is not None and settings.seed is not None, "only forks take them from elsewhere"
        try:
            left = self._keeper.left(message.channel, message.area, start)
            if left is None:
                arguments = settings.prompt, settings.seed, settings.steps
                state = self._generator.open(*arguments, start.chunk, start.frame)
        except ValueError as error:
            if not running:
                raise
            self._send(ChannelRefused(message.channel, str(error)))
            return
        kept, state = left or (None, state)
        self._begin(message.channel, message.area, state, settings, kept)

    def _begin(
        self, name: str, area: int, state: ChannelState, settings: ChannelSettings, before: KeptState | Made | None
    ) -> None:
        """A channel begins with a state: a new one, one that was kept, or one that was made."""
        made, kept = (before, None) if isinstance(before, Made) else (None, before)
        text, start = self._generator.model.text, settings.start
        assert settings.prompt is not None and settings.seed is not None, "they are known now"
        if unread := text.unread(settings.prompt):
            log.warning("without effect in %r: %s", settings.prompt, ", ".join(unread))
        # Of another video no frame can be made anew.
        shown = state.open_from = start.frame if kept is None or start.shown is None else start.shown
        least_steps = state.steps if settings.steps is not None else self._generator.model.config.least_steps
        journal = None
        if self._journals is not None:
            journal = self._journals.open(name, state, new=not start.goes_on)
        # Behind the journal, which may set the folder of an earlier video aside.
        keeper = self._keeper.open(name, area, state, settings.steps, kept)
        least_steps = min(least_steps, state.steps)
        channel = LiveChannel(name, state, keeper, shown, start.frame, self._meter, least_steps)
        channel.journal, channel.next_steps = journal, None if made is None else made.steps
        told = unread, text.understood(settings.prompt, settings.seed), kept is not None
        self._send(ChannelOpened(name, *told, None if made is None else settings))
        self._begun(channel, kept)

    def cancel(self, name: str) -> None:
        """The channel is not wanted any more; does nothing where none of this name is being made."""
        opening = self._openings.pop(name, None)
        if opening is not None and opening.reading is not None:
            opening.reading.cancel()
            if opening.units is not None:
                opening.units.close()

    def close(self) -> None:
        """None is wanted any more."""
        for name in tuple(self._openings):
            self.cancel(name)

    def work(self) -> None:
        """Does a unit of the first that is ready."""
        opening = self._next()
        if opening is None or opening.units is None:
            return
        name = opening.message.channel
        try:
            opening.mark = next(opening.units).mark
        except StopIteration as end:
            del self._openings[name]
            made: Made = end.value
            self._begin(name, opening.message.area, made.state, made.settings, made)
        except Exception as error:
            self._refuse(opening, error)

    def _next(self) -> _Opening | None:
        ready = (one for one in self._openings.values() if one.units is not None)
        first = next(ready, None)
        return first if first is not None and first.mark.done else None

    async def _read(self, opening: _Opening) -> None:
        try:
            opening.units = await self._units(opening.message.settings)
        except Exception as error:
            self._refuse(opening, error)
        self._wake()

    async def _units(self, settings: ChannelSettings) -> Units:
        """Reads files, so that only computing is left."""
        source, config = settings.source, self._generator.model.config
        if isinstance(source, StartFile):
            await asyncio.to_thread(self._starter.load)
            return start(self._starter, await read_pictures(source.path, config), settings)
        assert source is not None, "others need no files"
        if self._journals is None:
            raise ValueError("no journals are kept, which channels could go on from")
        await asyncio.to_thread(self._journals.flush)
        journal = await asyncio.to_thread(Journal, self._journals.folder / source.folder / JOURNAL, False)
        return fork(self._generator, self._journals.environment, journal, settings)

    def _refuse(self, opening: _Opening, error: Exception) -> None:
        name = opening.message.channel
        del self._openings[name]
        if not isinstance(error, ValueError):
            log.error("channel %s could not be made, which is a defect", name, exc_info=error)
            self._send(ChannelRefused(name, "the engine has a defect; its log says more"))
            return
        # Whoever asked need not know where the server keeps its files.
        folder = "" if self._journals is None else f"{self._journals.folder}/"
        self._send(ChannelRefused(name, str(error).replace(folder, "") if folder else str(error)))


def start(starter: Starter, pictures: Pictures, settings: ChannelSettings) -> Units:
    """A channel that goes on from pictures. Raises ValueError if the solver has no such number of steps."""
    assert settings.prompt is not None and settings.seed is not None, "only a fork takes them from elsewhere"
    state = yield from starter.units(pictures, settings.prompt, settings.seed, settings.steps)
    # What comes before its first frame is not its own.
    state.open_from = state.next.frame
    return Made(state, replace(settings, source=None))

"""Writes the journals and snapshots of an engine's channels, in a thread of its own: a disk never holds up a chunk.

A journal that cannot be written stops, once with a warning, and begins again with a snapshot when there is room.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import abc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.live.channel_state import ChannelState
from engine.live.generator import Chunk, Generator, Unit
from engine.live.journal import Beginning, ChunkRecord, Environment, JournalEncoder, Record, SnapshotRecord
from engine.live.snapshot import SUFFIX, take_snapshot, write_snapshot
from engine.wire.files import explained
from engine.wire.state_folder import JOURNAL, channel_folder

SNAPSHOT_S = 30.0  # of video from one snapshot to the next, at least
MOST_SNAPSHOTS = 32  # of a channel; the older, the sparser
MOST_BYTES = 10**9  # of them, but for the first and the newest
MOST_WAITING = 64  # jobs for the disk
CLOSE_S = 1.0  # for what waits when the engine ends
FLUSH_S = 5.0  # for what waits when a journal is read

log = logging.getLogger(__name__)

Tell = Callable[[str, str | None], None]  # a channel, and why its journal is not written; None when it is again


class JournalWriter:
    """The thread, and what all channels share."""

    def __init__(self, folder: Path, generator: Generator, tell: Tell) -> None:
        """Journals go into a folder of each channel in `folder`; `tell` is called in the thread."""
        self.folder, self.generator, self.tell = folder, generator, tell
        self.environment = Environment.of(generator.model)
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="journals", daemon=True)
        self._thread.start()

    def open(self, channel: str, state: ChannelState, new: bool) -> ChannelJournal:
        """The journal of a channel whose next chunk is made from `state`; a `new` video sets an earlier one aside."""
        return ChannelJournal(self, channel, state, new)

    def put(self, job: Callable[[], None]) -> bool:
        """Has a job done in its turn; False if too many wait."""
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            return False
        return True

    def flush(self) -> None:
        """Returns when all that waits is written, or after FLUSH_S; for other threads than the loop's."""
        written = threading.Event()
        if self.put(written.set):
            written.wait(FLUSH_S)

    def close(self, limit_s: float = CLOSE_S) -> None:
        """Writes what waits, for a moment at most."""
        with suppress(queue.Full):
            self._jobs.put_nowait(None)
        self._thread.join(limit_s)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:
                log.exception("a journal's job failed, which is a defect")


class ChannelJournal:
    """The engine's side of one journal; nothing in it waits."""

    def __init__(self, writer: JournalWriter, channel: str, state: ChannelState, new: bool) -> None:
        self._writer, self._channel = writer, channel
        config = writer.generator.model.config
        self._file = _JournalFile(writer, channel, config, new)
        self._every = max(1, round(SNAPSHOT_S / config.chunk_s))  # chunks
        self._since = 0  # chunks since the last snapshot
        self._latents: list[Tensor | None] = []  # of the chunks recorded since then; None of one that was dropped
        self._lost = False  # a record that the queue had no room for
        # From nothing a video begins without one.
        empty = state.features.shape[1] == 0
        self._begin(state, None if empty else take_snapshot(writer.generator, state))

    def recorded(self, state: ChannelState, chunk: Chunk, shown: int) -> Chunk:
        """The chunk, whose frames are new from number `shown` on.

        It is written down when its units end, even before their time if there are frames of it.
        """
        return replace(chunk, units=self._noted(state, chunk, (state.seed, state.prompt), shown))

    def close(self) -> None:
        """The channel is no more: what waits is still written, and nothing is told."""
        self._file.hush()

    def _noted(
        self, state: ChannelState, chunk: Chunk, key: tuple[int, str], first: int
    ) -> abc.Generator[Unit, None, Tensor]:
        latents: Tensor | None = None
        threads: list[tuple[int, int]] = []
        shown = False
        try:
            for number in count():
                if not threads or threads[-1][1] != torch.get_num_threads():
                    threads.append((number, torch.get_num_threads()))
                try:
                    unit = next(chunk.units)
                except StopIteration as end:
                    latents = end.value
                    break
                shown = shown or unit.batch is not None
                yield unit
        finally:
            chunk.units.close()
            if shown:
                frames = chunk.end.frame - chunk.start.frame
                record = ChunkRecord(chunk.start, frames, first, *key, chunk.steps, tuple(threads), tuple(chunk.parts))
                self._add(record)
                self._latents.append(latents)
        assert latents is not None, "the units came to their end"
        self._since += 1
        if self._since >= self._every:
            self._snapshot(state)
        return latents

    def _add(self, record: Record) -> None:
        self._put(lambda: self._file.add(record))

    def _snapshot(self, state: ChannelState) -> None:
        self._since = 0
        snapshot = take_snapshot(self._writer.generator, state, self._latents)
        self._latents = []
        if self._lost or self._file.error is not None:
            self._lost = False
            self._begin(state, snapshot)
        else:
            self._put(lambda: self._file.add_snapshot(snapshot))

    def _begin(self, state: ChannelState, snapshot: dict[str, Any] | None) -> None:
        beginning = Beginning(self._channel, state.next, state.seed, state.prompt, None, self._writer.environment)
        self._put(lambda: self._file.begin(beginning, snapshot))

    def _put(self, job: Callable[[], None]) -> None:
        if not self._lost and not self._writer.put(job):
            self._lost = True
            self._file.stop(f"the disk is {MOST_WAITING} records behind; give --state a faster one")


class _JournalFile:
    """The thread's side: the file and the snapshots beside it."""

    def __init__(self, writer: JournalWriter, channel: str, config: EngineConfig, new: bool) -> None:
        self._folder, self._tell, self._channel = channel_folder(writer.folder, channel), writer.tell, channel
        self._config, self._new = config, new
        self._encoder = JournalEncoder(config)
        self._numbers = count()
        self._telling = threading.Lock()
        self._hushed = False
        self.error: str | None = None  # why nothing is written

    def begin(self, beginning: Beginning, snapshot: dict[str, Any] | None) -> None:
        """Begins the file, or goes on in it."""
        self._encoder = JournalEncoder(self._config)
        try:
            with explained(self._folder):
                self._prepare()
                name = None if snapshot is None else self._write_snapshot(snapshot)
                self._append(replace(beginning, snapshot=name))
        except OSError as error:
            self.stop(str(error))
            return
        self._new = False
        if self.error is not None:
            self.error = None
            log.info("the journal of channel %s is written again", self._channel)
            self._say(None)

    def add(self, record: Record) -> None:
        """Appends a record; nothing after an error."""
        if self.error is None:
            try:
                with explained(self._folder):
                    self._append(record)
            except OSError as error:
                self.stop(str(error))

    def add_snapshot(self, snapshot: dict[str, Any]) -> None:
        """Writes the state behind the last record; nothing after an error."""
        if self.error is None:
            try:
                with explained(self._folder):
                    self._append(SnapshotRecord(self._write_snapshot(snapshot)))
            except OSError as error:
                self.stop(str(error))

    def stop(self, reason: str) -> None:
        """Nothing more is written until the next beginning."""
        first, self.error = self.error is None, reason
        if first:
            log.warning("channel %s goes on without its journal: %s", self._channel, reason)
            self._say(reason)

    def hush(self) -> None:
        """Nothing is told any more once this returns."""
        with self._telling:
            self._hushed = True

    def _say(self, reason: str | None) -> None:
        with self._telling:
            if not self._hushed:
                self._tell(self._channel, reason)

    def _prepare(self) -> None:
        """Makes the folder, sets an earlier video aside, and ends a line that was cut short."""
        path = self._folder / JOURNAL
        if self._new and path.exists() and path.read_bytes().count(b"\n") > 1:
            _set_aside(self._folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        written = path.read_bytes() if path.exists() and not self._new else b""
        with path.open("ab") as file:
            file.truncate(written.rfind(b"\n") + 1)
        newest = _snapshots(self._folder)[-1:]
        self._numbers = count(1 + max((int(file.stem) for file in newest), default=0))

    def _append(self, record: Record) -> None:
        """One line, whole or not at all."""
        with (self._folder / JOURNAL).open("ab", buffering=0) as file:
            size, line = file.tell(), memoryview(self._encoder.line(record))
            try:
                while line:
                    line = line[file.write(line) :]
            except OSError:
                file.truncate(size)
                raise

    def _write_snapshot(self, snapshot: dict[str, Any]) -> str:
        name = f"{next(self._numbers):06d}{SUFFIX}"
        write_snapshot(self._folder / name, snapshot)
        files = _snapshots(self._folder)
        while len(files) > 2 and (len(files) > MOST_SNAPSHOTS or _bytes(files) > MOST_BYTES):
            files.pop(surplus([int(file.stem) for file in files])).unlink()
        return name


def _snapshots(folder: Path) -> list[Path]:
    """Files of snapshots, oldest first."""
    return sorted(folder.glob(f"{'[0-9]' * 6}{SUFFIX}"))


def _bytes(files: list[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def surplus(numbers: list[int]) -> int:
    """Which of the ascending numbers is missed least: gaps may grow with age. Never the first or the last."""
    newest = numbers[-1]
    places = range(1, len(numbers) - 1)
    return min(places, key=lambda place: (numbers[place + 1] - numbers[place - 1]) / (newest - numbers[place]))


def _set_aside(folder: Path) -> None:
    """Renames the folder of an earlier video; of its snapshots only the first stays, which it may begin from."""
    for file in _snapshots(folder)[1:]:
        file.unlink()
    folder.rename(folder.with_name(f"{folder.name}.{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"))

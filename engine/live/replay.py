"""A journal back to frames: the same bits as were streamed, from any place on, without the planner."""

from __future__ import annotations

import dataclasses
import logging
from collections import abc
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, count

import torch

from engine.live.channel_state import RenderState
from engine.live.generator import Generator, Unit
from engine.live.journal import Beginning, ChunkRecord, Environment, Journal, Record, SnapshotRecord
from engine.live.kept_latents import KeptLatents
from engine.live.offline import finished
from engine.live.plan_writer import PlanPart
from engine.live.snapshot import read_snapshot, restore_rendering
from engine.runtime.threads import computing_with
from engine.wire.frames import FrameBatch

OTHER_PICTURES = ("preset", "width_px", "height_px", "fps", "weights")  # of an environment; else only the last bits

log = logging.getLogger(__name__)


def differences(journal: Environment, own: Environment) -> dict[str, str]:
    """What is not here as it was where a journal was written: the field and, in words, both values."""
    written, here = dataclasses.asdict(journal), dataclasses.asdict(own)
    return {name: f"{name} {here[name]!r}, not {was!r}" for name, was in written.items() if here[name] != was}


@dataclasses.dataclass(frozen=True, slots=True)
class ForkPoint:
    """A chunk of a journal, and what it began with."""

    state: RenderState
    parts: tuple[PlanPart, ...]  # of the plan up to there
    record: ChunkRecord


class Replay:
    """One journal, to be replayed from any place on."""

    def __init__(self, generator: Generator, journal: Journal, steps: int | None = None) -> None:
        """`steps` denoising steps of all chunks; those of each record if None."""
        self._generator, self._records, self._folder, self._steps = generator, journal.records, journal.folder, steps
        self._damage = journal.damage
        self._behind = _behind(self._records)
        pairs = list(zip(self._records, self._behind, strict=True))
        shown = [behind if isinstance(one, SnapshotRecord) else _begin(one) for one, behind in pairs]
        starts = [behind if isinstance(one, SnapshotRecord) else one.place.frame for one, behind in pairs]
        later = _least_behind(shown, self._behind[-1])
        # What comes later may begin before a chunk's end: its last frames were never shown then.
        self._ends = list(map(min, self._behind, later))
        self._begins = list(map(min, shown, later))  # for each record the first frame that it or a later one shows
        self._back = _least_behind(starts, self._behind[-1])  # for each record the first frame that a later one makes
        self._said: tuple[str, int] | None = None  # prompt and seed that the state's text is made of
        self._latents = KeptLatents(generator, self._records, self._folder)

    @property
    def begin(self) -> int:
        """Number of the first frame."""
        first = self._records[0]
        assert isinstance(first, Beginning), "a journal begins so"
        return first.place.frame

    @property
    def end(self) -> int:
        """Number of the frame behind the last one."""
        return self._behind[-1]

    def frames(self, start: int, end: int) -> Iterator[FrameBatch]:
        """Frames number `start` to `end` - 1, as far as the journal has them.

        Raises ValueError where no state is there to begin from.
        """
        first, state = self._nearest(start)
        place = start
        for number in range(first, len(self._records)):
            record = self._records[number]
            if self._begins[number] >= end:
                return
            if isinstance(record, ChunkRecord):
                begin, stop = max(start, record.shown), min(self._ends[number], end)
                for batch in finished(self._units(state, number)):
                    yield from _within(batch, begin, stop)
            elif isinstance(record, Beginning) and number != first:
                if place < record.place.frame < end:
                    log.warning("there is no record of frames %d to %d", max(place, start), record.place.frame - 1)
                state = self._goes_on(state, record)
            place = self._ends[number]

    def before(self, chunk: int, most_s: float) -> abc.Generator[Unit, None, ForkPoint]:
        """What a chunk began with, after some units of work.

        Raises ValueError for a chunk that the journal does not have, and where no state is there to begin from within
        `most_s` seconds of video before it.
        """
        last = self._number(chunk)
        record = self._chunk(last)
        first, state = self._nearest(record.place.frame)
        self._check_way(first, last, most_s)
        for number in range(first, last):
            before = self._records[number]
            if isinstance(before, ChunkRecord):
                yield from self._units(state, number)
            elif isinstance(before, Beginning) and number != first:
                state = self._goes_on(state, before)
        self._go_back(state, record)
        earlier = [one for one in self._records[:last] if not isinstance(one, SnapshotRecord)][-1]
        return ForkPoint(state, tuple(self._up_to(self._planned(earlier), record.place.latent)), record)

    def _chunk(self, number: int) -> ChunkRecord:
        record = self._records[number]
        assert isinstance(record, ChunkRecord), "it was looked for"
        return record

    def _number(self, chunk: int) -> int:
        """Of the last record of a chunk. Raises ValueError if there is none."""
        chunks = [(one.place.chunk, number) for number, one in enumerate(self._records) if isinstance(one, ChunkRecord)]
        made = dict(chunks)
        if chunk not in made:
            if not made:
                raise ValueError("no chunk is made yet: try again in a moment")
            reason = "is not made yet" if chunk > max(made) and not self._damage else "is not in the journal"
            there = f"those that are there are {min(made)} to {max(made)}"
            raise ValueError(f"chunk {chunk} {reason}: {'; '.join(filter(None, (there, self._damage)))}")
        return made[chunk]

    def _check_way(self, first: int, last: int, most_s: float) -> None:
        """Raises ValueError if there is too much to be made again from the record `first` to `last`."""
        config, begin = self._generator.model.config, self._behind[first]

        def way_s(number: int) -> float:
            return (self._chunk(number).place.frame - begin) / config.fps

        if way_s(last) > most_s:
            made = [number for number in range(first, last) if isinstance(self._records[number], ChunkRecord)]
            near = max((self._chunk(number).place.chunk for number in made if way_s(number) <= most_s), default=None)
            raise ValueError(
                f"to go on from there {way_s(last):.0f} s of video would have to be made again, and {most_s:.0f} s are "
                f"the most: the last chunk before it that can be gone on from is {near}"
            )

    def _planned(self, record: Beginning | ChunkRecord) -> Iterator[PlanPart]:
        """What was planned when a record was written."""
        if isinstance(record, ChunkRecord):
            yield from record.parts
        elif record.snapshot is not None:
            for gop in read_snapshot(self._folder / record.snapshot)["gops"]:
                yield PlanPart(gop["start"], gop["tokens"][:, : gop["count"]])

    def _up_to(self, parts: Iterable[PlanPart], latent: int) -> Iterator[PlanPart]:
        offsets = self._generator.model.config.tokenizer.offsets
        for part in parts:
            if part.start < latent:
                frames = min(latent - part.start, len(offsets) - 1)
                yield PlanPart(part.start, part.tokens[:, : offsets[frames]])

    def _nearest(self, frame: int) -> tuple[int, RenderState]:
        """The last record at or before a frame that a state is there for, and the state."""
        reason = ""
        for number in range(len(self._records) - 1, -1, -1):
            record = self._records[number]
            # What is not shown to its end is no place to go on from.
            if isinstance(record, ChunkRecord) or self._behind[number] > min(frame, self._ends[number]):
                continue
            try:
                if isinstance(record, Beginning):
                    return number, self._beginning(record)
                return number, self._restore(record.snapshot)
            except ValueError as error:
                log.warning("%s; an earlier one is taken", error)
                reason = str(error)
        raise ValueError(f"there is no state to begin from before frame {frame} ({reason})")

    def _beginning(self, record: Beginning) -> RenderState:
        if record.snapshot is not None:
            return self._restore(record.snapshot)
        model = self._generator.model
        with model.computing():
            state = self._generator.start(model.text.embed(record.prompt, record.seed), record.seed)
        state.next, self._said = record.place, (record.prompt, record.seed)
        return state

    def _goes_on(self, state: RenderState, record: Beginning) -> RenderState:
        """What a later beginning begins with. Where its snapshot is gone, as old ones are, that is the state at hand:
        another process went on with the same video. Where it did not, the next chunk does not fit, and says so."""
        try:
            return self._beginning(record)
        except ValueError as error:
            log.warning("%s; what was made until there is gone on from", error)
            return state

    def _restore(self, name: str) -> RenderState:
        snapshot = read_snapshot(self._folder / name)
        self._said = None  # the next chunk's may be another
        return restore_rendering(self._generator, snapshot)

    def _units(self, state: RenderState, number: int) -> Iterator[Unit]:
        """The chunk of a record."""
        record = self._chunk(number)
        self._go_back(state, record)
        self._check_end(state, record)
        if self._said != (record.prompt, record.seed):
            self._said = record.prompt, record.seed
            with self._generator.model.computing():
                state.text = self._generator.model.text.embed(*self._said)
        state.seed, state.steps = record.seed, self._steps or record.steps
        # Later records may go back to there.
        state.open_from = self._back[number]
        device = self._generator.model.device
        parts = [dataclasses.replace(part, tokens=part.tokens.to(device)) for part in record.parts]
        latents = None
        # Threads that changed are told by units, which would have other numbers without those that render.
        if state.steps == record.steps and len(record.threads) == 1:
            latents = self._latents.of(number, self._generator.after(state).latent - state.next.latent)
        return _with_threads(self._generator.render_plan(state, parts, state.steps, latents), record.threads)

    def _check_end(self, state: RenderState, record: ChunkRecord) -> None:
        """Raises ValueError unless the record is of as many frames as the state's next chunk has."""
        last, end = record.parts[-1], self._generator.after(state)
        offsets = self._generator.model.config.tokenizer.offsets
        written = record.place.frame + record.frames, last.start + offsets.index(last.tokens.shape[1])
        if written != (end.frame, end.latent):
            raise ValueError(
                f"a chunk from {record.place} on ends before {end}; its record says frame and latent {written}"
            )

    def _go_back(self, state: RenderState, record: ChunkRecord) -> None:
        """To where a chunk began, if that is before the end of the chunk before. Raises ValueError if it cannot be."""
        if state.next == record.place:
            return
        place, reason = None, ""
        try:
            place = self._generator.rewind(state, record.place.frame)
        except ValueError as error:
            reason = f" ({error})"
        if place != record.place:
            raise ValueError(f"a chunk begins at {record.place}, and its snapshot is of {state.next}{reason}")


def _behind(records: Sequence[Record]) -> list[int]:
    """For each record the frame that its state goes on from."""
    behind: list[int] = []
    for record in records:
        if isinstance(record, SnapshotRecord):
            behind.append(behind[-1])
        else:
            behind.append(record.place.frame + (record.frames if isinstance(record, ChunkRecord) else 0))
    return behind


def _least_behind(values: Sequence[int], last: int) -> list[int]:
    """For each place the least of the values behind it; `last` for the last one."""
    return list(accumulate(reversed([*values[1:], last]), min))[::-1]


def _begin(record: Beginning | ChunkRecord) -> int:
    return record.shown if isinstance(record, ChunkRecord) else record.place.frame


def _with_threads(units: Iterator[Unit], threads: Sequence[tuple[int, int]]) -> Iterator[Unit]:
    """The units, each computed with as many threads as it was then."""
    changes, now = dict(threads), torch.get_num_threads()
    for number in count():
        now = changes.get(number, now)
        with computing_with(now):
            unit = next(units, None)
        if unit is None:
            return
        yield unit


def _within(batch: FrameBatch, start: int, end: int) -> Iterator[FrameBatch]:
    """The part of a batch that is frames `start` to `end` - 1, if there is one."""
    first, stop = max(start - batch.index, 0), min(end - batch.index, batch.frames)
    if first < stop:
        yield dataclasses.replace(batch, index=batch.index + first, i420=batch.i420[first:stop])

"""Keeps each channel's state where this process's end does not reach it, for the engine process that comes next.

The state behind every chunk goes to memory that the server owns, and to the state folder, for a server that comes
next; what was answered since goes with it. Nothing is told to the outside before it is kept.
"""

from __future__ import annotations

import io
import logging
import mmap
from collections.abc import Callable
from dataclasses import replace

import torch

from engine.live.channel_state import ChannelState, Place
from engine.live.controller import Costs
from engine.live.generator import Generator
from engine.live.journal_writer import JournalWriter
from engine.live.snapshot import read_snapshot, restore, snapshot_bytes, take_snapshot
from engine.live.state_files import StateFiles
from engine.loading.weights import digest
from engine.wire.kept_state import KeptState, Promise
from engine.wire.messages import SetPrompt
from engine.wire.ring import memory_file
from engine.wire.settings import ChannelStart
from engine.wire.state_folder import STATE, channel_folder
from engine.wire.state_memory import StateMemory

MOST_BYTES = 1 << 28  # of a snapshot that is kept behind every chunk
MOST_TRIES = 2  # processes that may end in a chunk by themselves; the next begins another video under the same prompt
MOST_AHEAD = 256  # semantic frames from a state to a change that was answered behind it
_FOREIGN = 1 << 32  # requests of another server are numbered from here

log = logging.getLogger(__name__)


class StateKeeper:
    """The states of all channels."""

    def __init__(self, generator: Generator, memory: StateMemory | None, journals: JournalWriter | None) -> None:
        """`journals` writes to the state folder; without it, and without `memory`, nothing is kept."""
        self.generator, self.memory, self.journals = generator, memory, journals
        folder = generator.model.folder
        self.weights = "" if folder is None else digest(folder)
        self.failed = False  # memory refused, which was told

    def left(self, channel: str, area: int, start: ChannelStart) -> tuple[KeptState, ChannelState] | None:
        """The state that the process before left of a channel, taken back to where the channel goes on.

        None where it begins anew: nobody made it before, no state is there, or that ended too many processes.

        Raises:
            ValueError: a server went on with a channel of its state folder, and its snapshot there is damaged or of
                other weights.
        """
        if not start.goes_on:
            return None
        # Not before: until then the process before may write.
        found = None if self.memory is None else self.memory.read(area)
        if found is None or found[0].channel != channel:
            return self._on_disk(channel, start) if start.from_disk else None
        kept, snapshot = found
        kept = _counted(kept, start)
        if kept.tries > MOST_TRIES:
            log.error("channel %s begins anew: %d processes ended in chunk %d", channel, kept.tries, kept.chunk)
            return None
        try:
            state = restore(self.generator, read_snapshot(io.BytesIO(snapshot)))
            if self._is_old(state, channel, start):
                return None
            if start.frame < state.next.frame:
                # Frames that the server dropped, for a cut.
                self.generator.rewind(state, start.frame)
        except ValueError as error:
            log.error("channel %s begins anew: the state of the process before cannot be read (%s)", channel, error)
            return None
        return kept, state

    def refuse(self, reason: str) -> None:
        """States are not kept, which is told once."""
        if not self.failed:
            log.warning("a crash of the engine would begin other videos: no state can be kept (%s)", reason)
        self.failed = True

    def open(
        self, channel: str, area: int, state: ChannelState, steps: int | None, before: KeptState | None
    ) -> ChannelKeeper:
        """Keeps a channel from now on, which begins with `state`: that of `before`, or a new one."""
        return ChannelKeeper(self, channel, area, state, steps, before)

    def _is_old(self, state: ChannelState, channel: str, start: ChannelStart) -> bool:
        """Whether more than two chunks would have to be made before anything new comes."""
        if start.frame <= self.generator.after(state, self.generator.after(state)).frame:
            return False
        log.error("channel %s begins anew: its state is of frame %d, long past", channel, state.next.frame)
        return True

    def _on_disk(self, channel: str, start: ChannelStart) -> tuple[KeptState, ChannelState] | None:
        if self.journals is None:
            return None
        folder = channel_folder(self.journals.folder, channel)
        try:
            kept = KeptState.from_json((folder / STATE).read_bytes())
        except (OSError, ValueError):
            # The server has read it: it was there and is gone.
            return None
        if kept.weights != self.weights:
            raise ValueError(f"{folder / STATE} is of other weights: give these with --weights, or another --state")
        state = restore(self.generator, read_snapshot(folder / str(kept.snapshot)))
        most = state.next.latent + MOST_AHEAD
        fits = kept.chunk == state.next.chunk and state.next.frame <= kept.frame
        if not fits or any(one.latent > most for one in kept.promises):
            raise ValueError(f"{folder / STATE} is damaged: its snapshot is of another time; give another --state")
        if self._is_old(state, channel, start):
            return None
        # Numbers of the server before, which this one may give to others.
        promises = tuple(replace(one, request=_FOREIGN + number) for number, one in enumerate(kept.promises))
        return _counted(replace(kept, promises=promises), start), state


def _counted(kept: KeptState, start: ChannelStart) -> KeptState:
    """With the end of the process that had it, unless that was killed. A chunk that never began ended none."""
    return replace(kept, tries=kept.tries + (kept.running is not None and not start.killed))


class ChannelKeeper:
    """The state of one channel. All calls but that of the disk's thread return when the memory has it."""

    def __init__(
        self,
        keeper: StateKeeper,
        channel: str,
        area: int,
        state: ChannelState,
        steps: int | None,
        before: KeptState | None,
    ) -> None:
        self._keeper, self._area = keeper, area
        self._disk = None if keeper.journals is None else StateFiles(keeper.journals, channel)
        self._unkept = self._stale = False
        config = keeper.generator.model.config
        self._kept = KeptState(
            channel, config.name, keeper.weights, state.prompt, state.seed, steps, state.next.chunk, state.next.frame,
            picture=config.picture,
        )  # fmt: skip
        if before is not None:
            self._kept = replace(before, snapshot=None, chunk=state.next.chunk)
        elif keeper.memory is not None:
            # Of another video, which nobody goes on with even where this one cannot be kept.
            keeper.memory.forget(area)
        self._keep(state)

    @property
    def promises(self) -> tuple[Promise, ...]:
        """Changes that were answered and are not in the snapshot yet."""
        return self._kept.promises

    def advanced(self, state: ChannelState, new_from: int) -> None:
        """A chunk is done, or what was made is dropped: the next chunk's frames are new from `new_from` on."""
        place, frame = state.next, max(state.next.frame, new_from)
        later = tuple(one for one in self._kept.promises if one.mode == "flow" and one.latent > place.latent)
        self._kept = replace(
            self._kept, prompt=state.prompt, seed=state.plan.gops[-1].seed, chunk=place.chunk, frame=frame,
            running=None, tries=0, promises=later,
        )  # fmt: skip
        self._keep(state)

    def begun(self, steps: int, costs: Costs | None) -> None:
        """The next chunk is being made: if it has to be made again, then like that."""
        spent = None if costs is None else (costs.plan_s, costs.open_s, costs.step_s, costs.slice_s)
        self._kept = replace(self._kept, running=(steps, torch.get_num_threads()), costs=spent)
        self._write(None)

    def promised(self, request: SetPrompt, at: Place, frame: int) -> None:
        """A change is about to be answered: `frame` is the first one under it, of the chunk that begins at `at`."""
        promise = Promise(request.request, request.prompt, request.seed, request.mode, at.latent, frame)
        # What it takes the place of comes no more.
        earlier = tuple(one for one in self._kept.promises if one.latent < at.latent and one.frame < frame)
        self._kept = replace(self._kept, promises=(*earlier, promise))
        self._write(None)

    def replanned(self, promise: Promise) -> None:
        """A plan that was dropped is about to be answered; a prompt that is to come takes its seed."""
        kept = tuple(
            replace(one, seed=promise.seed) if one.mode == "flow" and one.latent > promise.latent else one
            for one in self._kept.promises
            if one.mode != promise.mode or one.latent < promise.latent
        )
        self._kept = replace(self._kept, promises=(*kept, promise))
        self._write(None)

    def close(self) -> None:
        """The channel is no more."""
        if self._keeper.memory is not None:
            self._keeper.memory.forget(self._area)
        if self._disk is not None:
            self._disk.remove()

    def release(self, done: Callable[[], None]) -> None:
        """Another process goes on; `done` is called, in whatever thread, when this one writes nothing any more."""
        if self._disk is None:
            done()
        else:
            self._disk.release(done)

    def _keep(self, state: ChannelState) -> None:
        """Writes the whole state."""
        if self._keeper.memory is None and self._disk is None:
            return
        # Asked before it is made: of the published model it is gigabytes.
        self._unkept = snapshot_bytes(state) > MOST_BYTES
        if self._unkept:
            self._keeper.refuse(f"behind each chunk it would take {snapshot_bytes(state) / 1e9:.1f} GB")
            self.close()
            return
        # Not on the heap: it lives until the disk has it, and the next chunk would be laid around it.
        try:
            with memory_file() as file:
                torch.save(take_snapshot(self._keeper.generator, state), file)
                snapshot = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            # What was kept before still is; records without this snapshot would not fit it.
            self._unkept = True
            self._keeper.refuse(str(error))
            return
        self._write(snapshot)

    def _write(self, snapshot: memoryview | None) -> None:
        keeper = self._keeper
        if self._unkept:
            return
        # Without its snapshot a record is of no use.
        if keeper.memory is not None and (snapshot is not None or not self._stale):
            try:
                keeper.memory.write(self._area, self._kept, snapshot)
                self._stale = keeper.failed = False
            except (OSError, ValueError) as error:
                self._stale = True
                keeper.refuse(str(error))
        if self._disk is not None:
            self._disk.write(self._kept, snapshot)

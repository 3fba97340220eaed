"""Memory that outlives engine processes: what counts in it is always whole."""

import multiprocessing
import os
from dataclasses import replace

import pytest

from engine.wire import state_memory
from engine.wire.kept_state import KeptState, Promise
from engine.wire.state_memory import AREAS, StateMemory, Written

KEPT = KeptState(
    "main", "mini", "", "a red ball", 3, None, 4, 97, promises=(Promise(7, "the sea", 1, "flow", 31, 121),)
)
AREA = 3


def write_and_end(memory: StateMemory) -> None:
    memory.write(AREA, replace(KEPT, chunk=5), b"later")
    os._exit(9)


def test_what_a_process_wrote_outlives_it() -> None:
    """A spawned process writes over what another left; whoever comes next reads that."""
    memory = StateMemory()
    memory.write(AREA, KEPT, b"snapshot")
    process = multiprocessing.get_context("spawn").Process(target=write_and_end, args=(memory,))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    assert memory.read(AREA) == (replace(KEPT, chunk=5), b"later")
    memory.close()


def test_a_write_that_is_cut_short_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of its writes to the file is the last, state and snapshot are the old ones or the new ones."""
    real, memory = os.pwrite, StateMemory()
    memory.write(AREA, KEPT, b"old")
    new = replace(KEPT, chunk=5)
    for whole in range(4):
        left = whole

        def pwrite(fd: int, data: bytes, offset: int) -> int:
            nonlocal left
            left -= 1
            return real(fd, data, offset) if left >= 0 else len(data)

        monkeypatch.setattr(state_memory.os, "pwrite", pwrite)
        memory.write(AREA, new, b"new!")
        monkeypatch.undo()
        assert memory.read(AREA) == ((new, b"new!") if whole == 3 else (KEPT, b"old"))


def test_a_record_goes_on_without_another_snapshot() -> None:
    """What was answered since is written alone; each write can be told from the one before."""
    memory = StateMemory()
    memory.write(AREA, KEPT, b"snapshot")
    seen = {memory.written(AREA)}
    for frame in range(5):
        memory.write(AREA, replace(KEPT, frame=frame), None)
        seen.add(memory.written(AREA))
    assert memory.read(AREA) == (replace(KEPT, frame=4), b"snapshot") and len(seen) == 6


def test_there_are_areas_for_all_channels() -> None:
    """None reaches into another, however large it is; one that was forgotten is empty."""
    memory = StateMemory()
    for area in range(AREAS):
        memory.write(area, replace(KEPT, channel=str(area)), bytes([area]) * 100_000)
    memory.forget(AREA)
    assert memory.read(AREA) is None and memory.written(AREA) == Written()
    for area in {*range(AREAS)} - {AREA}:
        assert memory.read(area) == (replace(KEPT, channel=str(area)), bytes([area]) * 100_000)


def test_what_is_damaged_is_left_out() -> None:
    """Bytes that are no record, and a record that is too large to be kept."""
    memory = StateMemory()
    memory.write(0, KEPT, b"snapshot")
    with pytest.raises(ValueError, match="too large"):
        memory.write(0, replace(KEPT, prompt="x" * (1 << 20)), None)
    assert memory.read(0) == (KEPT, b"snapshot")
    memory.write(1, replace(KEPT, channel="other"), b"snapshot")
    os.pwrite(memory._fd, b"x", (1 << 12) + (1 << 20))
    assert memory.read(0) is None and memory.read(1) is not None

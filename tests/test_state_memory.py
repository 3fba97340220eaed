"""Memory that outlives engine processes: what counts in it is always whole."""

import multiprocessing
import os
from dataclasses import replace

import pytest

from engine.wire import state_memory
from engine.wire.kept_state import KeptState, Promise
from engine.wire.ring import MOST_CHANNELS
from engine.wire.state_memory import StateMemory

KEPT = KeptState(
    "main", "mini", "", "a red ball", 3, None, 4, 97, promises=(Promise(7, "the sea", 1, "flow", 31, 121),)
)


def write_and_end(memory: StateMemory) -> None:
    memory.read()
    memory.write(replace(KEPT, chunk=5), b"later")
    os._exit(9)


def test_what_a_process_wrote_outlives_it() -> None:
    """A spawned process writes over what another left; whoever comes next reads that."""
    memory = StateMemory()
    memory.write(KEPT, b"snapshot")
    process = multiprocessing.get_context("spawn").Process(target=write_and_end, args=(memory,))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    assert memory.read() == {"main": (replace(KEPT, chunk=5), b"later")}
    memory.close()


def test_a_write_that_is_cut_short_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of its writes to the file is the last, state and snapshot are the old ones or the new ones."""
    real, memory = os.pwrite, StateMemory()
    memory.write(KEPT, b"old")
    new = replace(KEPT, chunk=5)
    for whole in range(4):
        left = whole

        def pwrite(fd: int, data: bytes, offset: int) -> int:
            nonlocal left
            left -= 1
            return real(fd, data, offset) if left >= 0 else len(data)

        monkeypatch.setattr(state_memory.os, "pwrite", pwrite)
        memory.write(new, b"new!")
        monkeypatch.undo()
        found = memory.read()["main"]
        assert found == ((new, b"new!") if whole == 3 else (KEPT, b"old"))


def test_a_record_goes_on_without_another_snapshot() -> None:
    """What was answered since is written alone."""
    memory = StateMemory()
    memory.write(KEPT, b"snapshot")
    for frame in range(5):
        memory.write(replace(KEPT, frame=frame), None)
    assert memory.read() == {"main": (replace(KEPT, frame=4), b"snapshot")}


def test_there_are_areas_for_all_channels() -> None:
    """Those of channels that ended are free again, also where they ended while no process ran."""
    memory = StateMemory()
    names = [str(number) for number in range(MOST_CHANNELS)]
    for name in names:
        memory.write(replace(KEPT, channel=name), name.encode())
    with pytest.raises(ValueError, match="16 channels"):
        memory.write(KEPT, b"")
    memory.forget("3")
    memory.write(KEPT, b"x")
    assert set(memory.read()) == {*names, "main"} - {"3"}
    # The next process has other channels.
    memory.write(replace(KEPT, channel="main"), b"y")
    memory.write(replace(KEPT, channel="new"), b"z")
    assert len(memory.read()) == MOST_CHANNELS and memory.read()["main"][1] == b"y"


def test_what_is_damaged_is_left_out() -> None:
    """Bytes that are no record, and a record that is too large to be kept."""
    memory = StateMemory()
    memory.write(KEPT, b"snapshot")
    with pytest.raises(ValueError, match="too large"):
        memory.write(replace(KEPT, prompt="x" * (1 << 20)), None)
    assert memory.read()["main"][0] == KEPT
    memory.write(replace(KEPT, channel="other"), b"snapshot")
    os.pwrite(memory._fd, b"x", 1 << 12)
    assert set(memory.read()) == {"other"}

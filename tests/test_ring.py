import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from engine.wire.ring import RingConfig, RingReader, RingWriter

SMALL = RingConfig(slots=3, slot_bytes=2 * 12 * 8)


def frames(count: int, value: int) -> np.ndarray:
    return np.full((count, 12, 8), value, np.uint8)


def write_one(writer: RingWriter, pipe: Connection) -> None:
    slot = writer.acquire()
    assert slot is not None
    writer.write(slot, frames(2, 77))
    pipe.send(slot)


def test_frames_cross_to_another_process() -> None:
    """What a spawned process writes is what the reader sees, without a copy."""
    reader = RingReader(SMALL)
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=write_one, args=(reader.writer(), theirs))
    process.start()
    assert ours.poll(20)
    view = reader.frames(ours.recv(), 2, 8, 8)
    process.join()
    process.close()
    ours.close()
    theirs.close()
    reader.close()
    np.testing.assert_array_equal(view, frames(2, 77))


def test_slots_are_credits() -> None:
    """A writer gets as many slots as there are, then None until one is released."""
    reader = RingReader(SMALL)
    writer = reader.writer()
    slots = [writer.acquire() for _ in range(4)]
    assert sorted(slot for slot in slots if slot is not None) == [0, 1, 2]
    assert slots[3] is None
    writer.release((1,))
    assert writer.acquire() == 1
    reader.close()


def test_wrong_use_of_slots_is_refused() -> None:
    """Releasing twice, writing to a free slot or beyond a slot's size raises ValueError."""
    reader = RingReader(SMALL)
    writer = reader.writer()
    slot = writer.acquire()
    assert slot is not None
    with pytest.raises(ValueError, match="a slot holds"):
        writer.write(slot, frames(3, 0))
    with pytest.raises(ValueError, match="uint8"):
        writer.write(slot, frames(1, 0).astype(np.float32))
    writer.release((slot,))
    with pytest.raises(ValueError, match="already free"):
        writer.release((slot,))
    with pytest.raises(ValueError, match="not acquired"):
        writer.write(slot, frames(1, 0))
    for bad in ((3, 1), (0, 3), (0, 0)):
        with pytest.raises(ValueError, match="slot"):
            reader.frames(bad[0], bad[1], 8, 8)
    reader.close()


def test_views_are_read_only_and_outlive_close() -> None:
    """The server cannot spoil frames, and frames of a closed ring stay readable until dropped."""
    reader = RingReader(SMALL)
    writer = reader.writer()
    slot = writer.acquire()
    assert slot is not None
    writer.write(slot, frames(1, 5))
    view = reader.frames(slot, 1, 8, 8)
    reader.close()
    del writer, reader
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0, 0] = 1
    assert view.max() == view.min() == 5


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no shared memory folder to look into")
def test_memory_has_no_name() -> None:
    """No file appears in the shared memory folder, so that none can be left behind, and none stays open."""
    before = set(os.listdir("/dev/shm"))
    descriptors = len(os.listdir("/proc/self/fd"))
    reader = RingReader(SMALL)
    assert set(os.listdir("/dev/shm")) - before == set()
    reader.close()
    del reader
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize(("slots", "slot_bytes"), [(1, 10), (0, 10), (2, 0)])
def test_bad_sizes_are_refused(slots: int, slot_bytes: int) -> None:
    """A ring needs two slots that hold something."""
    with pytest.raises(ValueError, match="slot"):
        RingConfig(slots, slot_bytes)

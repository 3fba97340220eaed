import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from engine.wire.frames import FrameChunk
from engine.wire.ring import ChunkQueue, RingConfig, RingReader, RingWriter

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


def chunk(index: int, count: int) -> FrameChunk:
    values = np.arange(index, index + count, dtype=np.uint8)
    return FrameChunk(index, 0, np.broadcast_to(values[:, None, None], (count, 12, 8)), 0.0)


def test_queue_frees_a_slot_with_its_last_frame() -> None:
    """Frames come in order; the slot is named with the chunk's last frame and never before."""
    queue = ChunkQueue(10)
    queue.put(chunk(10, 2), 4)
    queue.put(chunk(12, 1), 6)
    assert (len(queue), queue.start, queue.end) == (3, 10, 13)
    taken = [queue.take() for _ in range(3)]
    assert [index for index, _, _ in taken] == [10, 11, 12]
    assert [int(frame[0, 0]) for _, frame, _ in taken] == [10, 11, 12]
    assert [slots for _, _, slots in taken] == [(), (4,), (6,)]
    with pytest.raises(IndexError):
        queue.take()


def test_queue_refuses_a_gap() -> None:
    """A chunk that does not follow the last one raises ValueError naming both numbers."""
    queue = ChunkQueue(0)
    queue.put(chunk(0, 2), 0)
    with pytest.raises(ValueError, match=r"frame 3; frame 2"):
        queue.put(chunk(3, 1), 1)


def test_queue_forgets_slots_of_a_dead_writer() -> None:
    """After a crash the buffered frames remain, and their slots are not given to the next writer."""
    queue = ChunkQueue(0)
    queue.put(chunk(0, 1), 0)
    queue.forget_slots()
    queue.put(chunk(1, 1), 0)
    assert [queue.take()[2] for _ in range(2)] == [(), (0,)]

import numpy as np
import pytest

from engine.wire.frames import FrameBatch
from streaming.media.frame_queue import FrameQueue


def batch(index: int, count: int) -> FrameBatch:
    values = np.arange(index, index + count, dtype=np.uint8)
    return FrameBatch(index, 0, np.broadcast_to(values[:, None, None], (count, 12, 8)))


def test_queue_frees_a_slot_with_its_last_frame() -> None:
    """Frames come in order; the slot is named with the batch's last frame and never before."""
    queue = FrameQueue(10)
    queue.put(batch(10, 2), 4)
    queue.put(batch(12, 1), 6)
    assert (len(queue), queue.start, queue.end) == (3, 10, 13)
    taken = [queue.take() for _ in range(3)]
    assert [index for index, _, _ in taken] == [10, 11, 12]
    assert [int(frame[0, 0]) for _, frame, _ in taken] == [10, 11, 12]
    assert [slots for _, _, slots in taken] == [(), (4,), (6,)]
    with pytest.raises(IndexError):
        queue.take()


def test_queue_refuses_a_gap() -> None:
    """A batch that does not follow the last one raises ValueError naming both numbers."""
    queue = FrameQueue(0)
    queue.put(batch(0, 2), 0)
    with pytest.raises(ValueError, match=r"frame 3; frame 2"):
        queue.put(batch(3, 1), 1)


def test_queue_forgets_slots_of_a_dead_writer() -> None:
    """After a crash the buffered frames remain, and their slots are not given to the next writer."""
    queue = FrameQueue(0)
    queue.put(batch(0, 1), 0)
    queue.forget_slots()
    queue.put(batch(1, 1), 0)
    assert [queue.take()[2] for _ in range(2)] == [(), (0,)]

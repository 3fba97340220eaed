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


def test_queue_drops_frames_that_are_made_anew() -> None:
    """Frames from one on are gone, with the slots that nothing is left in; others of these numbers follow."""
    queue = FrameQueue(0)
    for number in range(3):
        queue.put(batch(4 * number, 4), number)
    queue.take()
    assert queue.drop(6) == (2,)
    assert (len(queue), queue.start, queue.end) == (5, 1, 6)
    with pytest.raises(ValueError, match="frame 12; frame 6"):
        queue.put(batch(12, 4), 2)
    assert queue.put(batch(6, 2), 2) == ()
    taken = [queue.take() for _ in range(7)]
    assert [index for index, _, _ in taken] == [int(frame[0, 0]) for _, frame, _ in taken] == list(range(1, 8))
    assert [slots for _, _, slots in taken] == [(), (), (0,), (), (1,), (), (2,)]


def test_queue_keeps_to_what_was_shown() -> None:
    """Frames that come anew for those that were taken already are passed over, and their slots are free."""
    queue = FrameQueue(0)
    queue.put(batch(0, 8), 5)
    for _ in range(6):
        queue.take()
    assert queue.drop(2) == (5,)
    assert (len(queue), queue.start, queue.end) == (0, 6, 6)
    assert queue.put(batch(2, 3), 6) == (6,)
    assert queue.put(batch(5, 3), 7) == ()
    assert [queue.take()[0] for _ in range(len(queue))] == [6, 7]

"""The queue between a hub and a reader or recording."""

import asyncio

import av

from streaming.media.packet_queue import PacketQueue


def packet(time_s: float, key: bool = False) -> av.Packet:
    made = av.Packet(b"x")
    made.pts, made.is_keyframe = round(time_s * 90_000), key
    return made


async def test_it_begins_with_a_key_frame() -> None:
    """What came before it could not be decoded, and is dropped."""
    queue = PacketQueue(3.0, lambda: None)
    packets = [packet(0), packet(1, True), packet(2)]
    for one in packets:
        queue.offer(one)
    assert await queue.get() == packets[1:]


async def test_who_falls_behind_is_cut_off_once() -> None:
    """At more than the given seconds of video the queue is emptied and ended, and takes nothing more."""
    calls: list[bool] = []
    queue = PacketQueue(3.0, lambda: calls.append(True))
    for step in range(100):
        queue.offer(packet(step / 8, True))
    assert calls == [True]
    assert await queue.get() == []


async def test_a_reader_that_keeps_up_is_never_cut_off() -> None:
    """Hours of video pass through."""
    queue = PacketQueue(3.0, lambda: None)
    for step in range(10_000):
        queue.offer(packet(step, step == 0))
        assert len(await queue.get()) == 1


async def test_end_wakes_the_reader() -> None:
    """Packets that wait are still read, then none; ending twice does no harm."""
    queue = PacketQueue(3.0, lambda: None)
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.end()
    queue.end()
    assert await waiting == []
    other = PacketQueue(3.0, lambda: None)
    other.offer(packet(0, True))
    other.end()
    assert len(await other.get()) == 1
    assert await other.get() == []

"""Garbage in cycles is freed in time."""

import asyncio
import gc
import weakref

import pytest

from streaming.media import garbage


class Cycle:
    """What nobody holds but itself."""

    def __init__(self) -> None:
        self.itself = self


async def test_a_cycle_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though Python would not look for it yet."""
    monkeypatch.setattr(garbage, "COLLECT_S", 0.01)
    freed = asyncio.Event()
    gc.disable()
    try:
        weakref.finalize(Cycle(), freed.set)
        assert not freed.is_set()
        collecting = asyncio.create_task(garbage.collect())
        async with asyncio.timeout(10):
            await freed.wait()
        collecting.cancel()
    finally:
        gc.enable()

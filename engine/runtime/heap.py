"""Memory that was freed goes back to the system."""

from __future__ import annotations

import asyncio
import ctypes
import time

EVERY_S = 30.0


def return_memory() -> None:
    """Gives back what glibc keeps of freed memory between blocks that are in use. Takes some milliseconds; does
    nothing with another C library."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class FreedMemory:
    """That of a process which goes on."""

    def __init__(self) -> None:
        self._last_s = time.monotonic()

    def give_back(self) -> None:
        """Returns memory, unless less than EVERY_S have passed since."""
        now_s = time.monotonic()
        if now_s - self._last_s >= EVERY_S:
            self._last_s = now_s
            return_memory()

    async def wait(self, event: asyncio.Event) -> None:
        """Waits for an event; where that takes as long, memory is returned meanwhile."""
        try:
            async with asyncio.timeout(EVERY_S):
                await event.wait()
        except TimeoutError:
            return_memory()
            await event.wait()

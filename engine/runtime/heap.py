"""Memory that a process keeps: what was freed goes back to the system, and what oneDNN prepares is bounded."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time

EVERY_S = 30.0
# That oneDNN keeps: each is a product or a convolution of a size, for a number of threads. `mini` uses 300 under one
# prompt, more under prompts of other lengths; with room for 256 a video of six took 6 to 10 % longer, with 384 no more.
PRIMITIVES = 512
_PRIMITIVES = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"  # oneDNN's environment variable, read with its first primitive


def bound_primitives() -> None:
    """Lets oneDNN keep PRIMITIVES of them and not 1024, unless the environment says how many; to be called before the
    first product. One of a product takes 258 kB (oneDNN 3.12, AVX-512): they would grow to 264 MB, for hours."""
    os.environ.setdefault(_PRIMITIVES, str(PRIMITIVES))


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

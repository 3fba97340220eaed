"""Memory that a process keeps: what was freed goes back to the system, and what oneDNN prepares is bounded."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time

EVERY_S = 30.0
# That oneDNN keeps: each is a product or a convolution of a size, for a number of threads. `mini` uses 300 under one
# prompt, more under prompts of other lengths; with room for 256 a video of six took 6 to 10 % longer, with 384 no more.
PRIMITIVES = 384
DESCRIPTIONS = 128  # that torch keeps of those, in front of oneDNN; fewer take no more time
# Environment variables that say so, of oneDNN 3.12 and torch 2.13; both are read with the first product.
_PRIMITIVES, _DESCRIPTIONS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"


def bound_primitives() -> None:
    """Bounds what is prepared for products and convolutions unless the environment does; called before the first one.

    oneDNN and torch keep 1024 each, and of a product either takes 258 kB (AVX-512): a video with prompts and plans of
    many lengths would grow for hours, up to half a gigabyte.
    """
    os.environ.setdefault(_PRIMITIVES, str(PRIMITIVES))
    os.environ.setdefault(_DESCRIPTIONS, str(DESCRIPTIONS))


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

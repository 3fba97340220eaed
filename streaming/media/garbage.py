"""Garbage in cycles is freed in time.

What a viewer, a reader or a channel leaves behind are cycles that hold up to a megabyte each. Python counts objects and
not what they hold: it would look through all of them after some tens of viewers, and take the longer for it.
"""

from __future__ import annotations

import asyncio
import gc

COLLECT_S = 30.0


async def collect() -> None:
    """Frees it every COLLECT_S, until cancelled."""
    while True:
        await asyncio.sleep(COLLECT_S)
        gc.collect()

"""Memory that was freed goes back to the system."""

from __future__ import annotations

import ctypes


def return_memory() -> None:
    """Gives back what glibc keeps of freed memory between blocks that are in use. Takes some milliseconds; does
    nothing with another C library."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

"""Freed memory goes back to the system."""

from __future__ import annotations

import ctypes
import os

import psutil
import pytest

from engine.runtime.heap import return_memory

BLOCK, BLOCKS = 100_000, 1000  # octets: too small for a mapping of its own


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_memory_between_blocks_in_use_is_given_back() -> None:
    """Of blocks in a row every eighth is kept: what the others took is no longer resident."""
    process = psutil.Process(os.getpid())
    blocks = [b"x" * BLOCK for _ in range(BLOCKS)]
    kept = blocks[::8]
    del blocks
    before = process.memory_info().rss
    return_memory()
    assert before - process.memory_info().rss > BLOCK * BLOCKS // 2
    assert all(block == b"x" * BLOCK for block in kept)

"""Freed memory goes back to the system."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import sys

import psutil
import pytest
import torch

from engine.runtime.heap import FreedMemory, return_memory

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


async def test_memory_is_given_back_while_nothing_is_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """When that takes long; the wait goes on."""
    given = asyncio.Event()
    monkeypatch.setattr("engine.runtime.heap.return_memory", given.set)
    freed, event = FreedMemory(), asyncio.Event()
    event.set()
    await freed.wait(event)
    assert not given.is_set()
    event.clear()
    monkeypatch.setattr("engine.runtime.heap.EVERY_S", 0.01)
    waiting = asyncio.create_task(freed.wait(event))
    async with asyncio.timeout(5):
        await given.wait()
    assert not waiting.done()
    event.set()
    await waiting


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN")
def test_few_primitives_are_kept() -> None:
    """With room for four, a convolution is prepared once more behind those of five other sizes. Torch, which does not
    tell, gets a bound too."""
    program = """
import os
import torch
from engine.config import preset
from engine.loading.options import place
from engine.runtime import heap
heap.PRIMITIVES = 4
place(preset("mini"), None, "cpu")
for size in (8, 9, 10, 11, 12, 13, 8):
    torch.nn.functional.conv2d(torch.zeros(1, 16, size, size), torch.zeros(16, 16, 5, 5))
print("descriptions", os.environ["LRU_CACHE_CAPACITY"])
"""
    environment = os.environ | {"ONEDNN_VERBOSE": "profile_create"}
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        environment.pop(name, None)
    told = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    made = [line for line in told.stdout.splitlines() if "cache_miss" in line and ",convolution," in line]
    assert len(made) == 7, told.stdout
    assert "descriptions 128" in told.stdout

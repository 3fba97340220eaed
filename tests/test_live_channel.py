"""Chunks of a slow engine, at a fixed number of steps and at one that is chosen."""

import asyncio
import dataclasses
import multiprocessing
import time
from typing import Any

import pytest
from test_interleave import SETTINGS, MemoryRing, Server
from tiny import tiny_model

from engine.live.control_pipe import ControlPipe
from engine.live.denoiser import Denoiser
from engine.live.generator import Generator
from engine.live.interleave import Interleaver
from engine.wire.messages import ChunkDone, OpenChannel, Paused, Stop

FPS = 64.0  # the seconds of the slow machine are short ones
CHUNK_S = 24 / FPS
STEP_S = 0.3 * CHUNK_S  # four take longer than the video that they make
CHUNKS = 14


async def _stalls(steps: int | None) -> tuple[int, list[int]]:
    """Frames that came too late for a clock that runs, and the steps of the chunks."""
    model = tiny_model()
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, fps=FPS, steps=4))
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        settings = dataclasses.replace(SETTINGS, steps=steps)
        server = Server(ours, MemoryRing(8), settings)
        interleaver = Interleaver(Generator(model), server.ring, ControlPipe(theirs))  # type: ignore[arg-type]
        ours.send(OpenChannel("main", settings))
        interleaver.read_inbox()
        asyncio.get_running_loop().add_reader(ours.fileno(), server.read)
        task = asyncio.create_task(interleaver.run())
        # Until its buffer is full.
        while server.end < 64:
            await server.receive(object)
        ours.send(Paused("main", False))
        began_s, late, chunks = time.monotonic(), 0, []
        while len(chunks) < CHUNKS:
            await asyncio.sleep(1 / FPS)
            while not server.inbox.empty():
                if isinstance(message := await server.receive(object), ChunkDone):
                    chunks.append(message.steps)
            due = int((time.monotonic() - began_s) * FPS) - server.shown
            if due > server.end - server.shown:
                late += due - (server.end - server.shown)
                # As a server's clock does: the video resumes where it stopped.
                began_s += (due - (server.end - server.shown)) / FPS
            server.show(max(due, 0))
        ours.send(Stop())
        await task
        asyncio.get_running_loop().remove_reader(ours.fileno())
    return late, chunks


async def test_a_slow_engine_takes_fewer_steps_and_does_not_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where four steps stall, a number that is chosen does not."""
    step = Denoiser.step

    def slow(*arguments: Any) -> Any:
        time.sleep(STEP_S)
        return step(*arguments)

    monkeypatch.setattr(Denoiser, "step", slow)
    late, fixed = await _stalls(4)
    assert late > 10 and set(fixed) == {4}
    late, chosen = await _stalls(None)
    assert late == 0 and chosen[0] == 4 and min(chosen) < 4 and max(chosen[-8:]) > 1

"""Waves of viewers beside one that decodes: what they cost the server, and what the one that decodes sees of them.

The crowd is a process of its own (`light.py`). A wave is: quiet, `--ramp` joins a second, all of them for a while,
quiet again.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from streaming.bench.measure import fresh, share_of_core
from streaming.bench.recording import BenchError, Recording
from streaming.bench.server_process import ROOT
from streaming.bench.timeline import STALL_PERIODS, Figures

QUIET_S = 8.0  # after a wave
START_LIMIT_S = 60.0


class WaveConfig(NamedTuple):
    """A crowd: so many viewers, of whom `ramp` join in a second, that stay for `seconds` once all are there."""

    viewers: int
    ramp: float = 10.0
    seconds: float = 30.0


@dataclass(slots=True)
class Wave:
    """What was noted of a wave; times since the watching began."""

    began_s: float = 0.0
    full_s: float = 0.0  # all were there
    left_s: float = 0.0
    crowd: Figures = field(default_factory=dict)


@asynccontextmanager
async def crowd(
    url: str, config: WaveConfig, codec: str | None, token: str | None, addresses: Sequence[str]
) -> AsyncIterator[Figures]:
    """Light viewers that are all there inside the block; what they saw is in the yielded dict after it.

    Raises BenchError when none of them joins.
    """
    argv = [
        sys.executable,
        "-m",
        "streaming.bench.light",
        url,
        "--viewers",
        str(config.viewers),
        "--ramp",
        str(config.ramp),
    ]
    argv += [*(("--codec", codec) if codec else ()), *(("--token", token) if token else ())]
    for address in addresses:
        argv += ["--address", address]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, cwd=ROOT)
    assert process.stdin is not None and process.stdout is not None
    found: Figures = {}
    try:
        async with asyncio.timeout(START_LIMIT_S + config.viewers / config.ramp):
            while "joined" not in (
                said := json.loads(await process.stdout.readline() or '{"joined": 0, "failed": ["it ended"]}')
            ):
                pass
        if not said["joined"]:
            raise BenchError(f"none of {config.viewers} viewers saw a frame: {said['failed'][0]}")
        yield found
        process.stdin.close()
        found |= json.loads(await process.stdout.readline())
    except TimeoutError as error:
        raise BenchError(f"{config.viewers} viewers did not join within {START_LIMIT_S:.0f} s") from error
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def ride(
    crowd: Callable[[], AbstractAsyncContextManager[Figures]], config: WaveConfig, begin_s: float, quiet_s: float
) -> Wave:
    """One wave beside a viewer that began to watch at `begin_s`, after `quiet_s` without one."""
    wave = Wave()
    await asyncio.sleep(begin_s + quiet_s - time.monotonic())
    wave.began_s = time.monotonic() - begin_s
    async with crowd() as found:
        wave.full_s = time.monotonic() - begin_s
        await asyncio.sleep(config.seconds)
        wave.left_s = time.monotonic() - begin_s
    wave.crowd = found
    await asyncio.sleep(QUIET_S)
    return wave


def figures(wave: Wave, recording: Recording, fps: float, settle_s: float) -> Figures:
    """What the wave cost, and what the viewer that decodes saw of it."""
    times_s = [one.at_s - recording.begin_s for one in fresh(recording.arrivals)]
    late_s = [high for low, high in zip(times_s, times_s[1:], strict=False) if high - low > STALL_PERIODS / fps]
    server = recording.computing.get("server", [])
    quiet, full = share_of_core(server, settle_s, wave.began_s), share_of_core(server, wave.full_s, wave.left_s)
    joined = wave.crowd["joined"]
    each = None if quiet is None or full is None or not joined else round((full - quiet) / joined, 4)
    # It is over when no frame was late for a while; the last late frame behind the wave tells when that began.
    behind = [at_s - wave.left_s for at_s in late_s if at_s > wave.left_s]
    return {
        "viewers": joined,
        "cpu_percent_quiet": quiet,
        "cpu_percent_full": full,
        "cpu_percent_a_viewer": each,
        "bytes_a_viewer_s": round(wave.crowd["bytes"] / joined / (wave.crowd["watched_s"] or 1)) if joined else None,
        "late_frames_joining": sum(wave.began_s <= at_s < wave.full_s for at_s in late_s),
        "late_frames_full": sum(wave.full_s <= at_s < wave.left_s for at_s in late_s),
        "recovery_s": round(max((one for one in behind if one < QUIET_S), default=0.0), 3),
        "crowd": wave.crowd,
    }

"""Pictures of a stranger's file, read in a process of its own, which may crash or be ended without harm."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np

from engine.config import EngineConfig
from engine.live.start import Pictures, most_pictures

PROGRAM = "engine.video.start_clip"  # run, not imported: rooms above know this one
ROOT = Path(__file__).parents[2]  # where it is found, wherever the server was started
LIMIT_S = 25.0  # of the clock: on a busy machine the program gets to compute less than it may
REFUSED = 2  # its status for a file that is not taken

log = logging.getLogger(__name__)


async def read_pictures(path: str, config: EngineConfig) -> Pictures:
    """The last pictures of a file, as many as a video goes on from: [F, H, W, 3]. Raises ValueError with one line."""
    size = config.height_px, config.width_px
    with tempfile.TemporaryFile() as out:
        words = [path, *map(str, size), str(config.fps), str(most_pictures(config))]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", PROGRAM, *words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=asyncio.subprocess.PIPE,
            # It has threads' memory for few cores only.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )
        try:
            async with asyncio.timeout(LIMIT_S):
                _, told = await process.communicate()
        except TimeoutError as error:
            raise ValueError(
                f"the file takes longer than {LIMIT_S:.0f} s to read: make it shorter or smaller"
            ) from error
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode:
            raise ValueError(_reason(process.returncode, told.decode("utf-8", "replace")))
        out.seek(0)
        return np.frombuffer(out.read(), np.uint8).reshape(-1, *size, 3)


def _reason(status: int, told: str) -> str:
    if status == REFUSED:
        return told
    if status == -signal.SIGXCPU:
        return "the file takes too long to read: make it shorter or smaller"
    log.warning("a file could not be read: status %d, %s", status, told.strip().rpartition("\n")[2])
    return "the file cannot be read: it is damaged"

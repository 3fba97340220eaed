"""The same video as if nothing had ended: a journal, replayed by the engine's own command."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

import av

from streaming.bench.client import Pixels
from streaming.bench.recording import BenchError
from streaming.bench.server_process import ROOT

LIMIT_S = 3600.0


def replayed(journal: Path, wanted: Collection[int]) -> dict[int, Pixels]:
    """Frames [3H/2, W] uint8 of those numbers, as far as the journal has them. Raises BenchError in its words."""
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "replay.mp4"
        argv = [sys.executable, "-m", "engine", "replay", str(journal), "--out", str(video)]
        try:
            done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"the replay took longer than {LIMIT_S:.0f} s") from error
        if done.returncode:
            said = done.stderr.strip().split("\n")[-1] or f"status {done.returncode}"
            raise BenchError(f"the replay failed: {said}")
        with av.open(str(video)) as file:
            return {
                number: frame.to_ndarray(format="yuv420p")
                for number, frame in enumerate(file.decode(video=0))
                if number in wanted
            }

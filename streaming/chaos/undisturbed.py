"""The same video as if nothing had ended: a journal, replayed by the engine's own command, as a viewer would see it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import cast

import av
from av.video.codeccontext import VideoCodecContext

from streaming.bench.client import Pixels
from streaming.bench.recording import BenchError
from streaming.bench.server_process import ROOT
from streaming.media.hub import Encoder, Geometry
from streaming.media.pacer import MEDIA_CLOCK_HZ

LIMIT_S = 3600.0


def replayed(journal: Path, wanted: Collection[int], codec: str) -> dict[int, Pixels]:
    """Frames [3H/2, W] uint8 of those numbers, as far as the journal has them, encoded and decoded as the server's are
    with that codec, so that they lose what those that were watched have lost.

    Raises BenchError in the command's words.
    """
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "replay.mp4"
        argv = [sys.executable, "-m", "engine", "replay", str(journal), "--out", str(video), "--lossless"]
        try:
            done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"the replay took longer than {LIMIT_S:.0f} s") from error
        if done.returncode:
            said = done.stderr.strip().split("\n")[-1] or f"status {done.returncode}"
            raise BenchError(f"the replay failed: {said}")
        with av.open(str(video)) as file:
            stream = file.streams.video[0]
            rate = stream.average_rate
            assert rate is not None, "the engine's files have one"
            geometry = Geometry(stream.width, stream.height, float(rate))
            frames = (frame.to_ndarray(format="yuv420p") for frame in file.decode(stream))
            return {number: seen for number, seen in enumerate(as_seen(frames, geometry, codec)) if number in wanted}


def as_seen(frames: Iterable[Pixels], geometry: Geometry, codec: str) -> Iterator[Pixels]:
    """Frames behind the server's encoder for good links and a decoder, which give one for one."""
    encoder = Encoder(codec, geometry)
    decoder = cast(VideoCodecContext, av.CodecContext.create(codec, "r"))
    for number, i420 in enumerate(frames):
        packet = encoder.encode(i420, round(number * MEDIA_CLOCK_HZ / geometry.fps), key=number == 0)
        for frame in decoder.decode(packet):
            yield cast(Pixels, frame.to_ndarray(format="yuv420p"))

"""From a prompt to pictures in which every word of it is right, as the judge of preset `mini` finds.

A marker would hide a part of the picture, so a viewer of its own watches without one, behind the other. The judge is a
command of the engine; it looks at what was watched when the server has ended.
Shapes: `F` frames, `H` x `W` picture size.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from streaming.bench.change import Seen, first_change
from streaming.bench.client import BenchViewer, Pixels
from streaming.bench.labels import LABELS
from streaming.bench.recording import Arrival, BenchError, Change, Recording
from streaming.bench.server_process import ROOT, MeasuredServer
from streaming.bench.timeline import Figures, spread
from streaming.bench.watch import at_middle, change_prompt, listen, open_news

PRESET = "mini"  # whose pictures the judge can read
BEFORE_S = 4.0  # of video, which tells how the old prompt moves
WATCH_S = 11.0  # behind a change: until it is seen, and a chunk more
JUDGE_LIMIT_S = 300.0


@dataclass(slots=True)
class WatchedChange:
    """A prompt change, and what was seen from its first changed pixel on."""

    prompt: str
    mode: str
    pixel_s: float | None  # from the request
    times_s: list[float] = field(default_factory=list)  # of the frames, from the request
    frames: list[Pixels] = field(default_factory=list)  # I420, [3H/2, W]


async def watch(
    server: MeasuredServer, codec: str | None, modes: Sequence[str], before: Recording
) -> list[WatchedChange]:
    """Changes the prompt once in each mode, behind those of a recording. Raises BenchError, in a group."""
    others = [prompt for prompt in LABELS if prompt not in [change.prompt for change in before.changes[-1:]]]
    frames: list[Pixels] = []
    begin_s = time.monotonic()
    recording = Recording(begin_s, begin_s, True, [])

    def note(arrival: Arrival, i420: Pixels) -> None:
        recording.arrivals.append(arrival)
        frames.append(i420)

    changes = []
    async with (
        open_news(server) as news,
        aclosing(BenchViewer(server.http, server.endpoint(codec, marked=False), codec, note)) as viewer,
        asyncio.TaskGroup() as group,
    ):
        await viewer.join()
        helpers = [group.create_task(viewer.watch()), group.create_task(listen(news, recording))]
        for prompt, mode in zip(others, modes, strict=False):
            await asyncio.sleep(BEFORE_S)
            await at_middle(recording)
            await change_prompt(server, recording, prompt, mode)
            await asyncio.sleep(WATCH_S)
            if recording.refused:
                raise BenchError(recording.refused[0])
            changes.append(_change(recording.changes[-1], recording.arrivals, frames))
            recording.arrivals.clear()
            frames.clear()
        for helper in helpers:
            helper.cancel()
    return changes


def _change(change: Change, arrivals: Sequence[Arrival], frames: Sequence[Pixels]) -> WatchedChange:
    pixel_s = first_change([Seen(one.at_s, one.sketch) for one in arrivals], change.sent_s)
    watched = WatchedChange(change.prompt, change.mode, None if pixel_s is None else pixel_s - change.sent_s)
    for arrival, i420 in zip(arrivals, frames, strict=True):
        if pixel_s is not None and arrival.at_s >= pixel_s:
            watched.times_s.append(arrival.at_s - change.sent_s)
            watched.frames.append(i420)
    return watched


def figures(changes: Sequence[WatchedChange]) -> Figures:
    """What the judge finds in them. Raises BenchError in its words."""
    seen = [change for change in changes if change.frames]
    found = iter(_judge(seen) if seen else [])
    rows = [_row(change, next(found) if change.frames else {"first": None, "right": {}}) for change in changes]
    return {
        "prompt_to_words_s": {
            mode: spread(row["words_s"] for row in rows if row["mode"] == mode and row["words_s"] is not None)
            for mode in sorted({row["mode"] for row in rows})
        },
        "words": rows,
    }


def _row(change: WatchedChange, found: dict[str, Any]) -> Figures:
    first = found["first"]
    return {
        "prompt": change.prompt,
        "mode": change.mode,
        "pixel_s": None if change.pixel_s is None else round(change.pixel_s, 3),
        "words_s": None if first is None else round(change.times_s[first], 3),
        "right": found["right"],
    }


def _judge(changes: Sequence[WatchedChange]) -> list[dict[str, Any]]:
    return judged([(change.prompt, change.frames) for change in changes])


def judged(clips: Sequence[tuple[str, Sequence[Pixels]]], *options: str) -> list[dict[str, Any]]:
    """Of clips under prompts of LABELS: `first`, the frame from which on a chunk has all words right, and which words
    were `right`; `options` are the judge's. Raises BenchError in its words."""
    with tempfile.TemporaryDirectory() as folder:
        frames, prompts, found = (Path(folder) / name for name in ("frames.npz", "prompts.jsonl", "found.json"))
        np.savez(frames, *(np.stack(seen) for _, seen in clips))
        lines = (json.dumps({"prompt": prompt, **LABELS[prompt]}) for prompt, _ in clips)
        prompts.write_text("\n".join(lines), encoding="utf-8")
        argv = [sys.executable, "-m", "engine", "evaluate", "--frames", str(frames), "--prompts", str(prompts)]
        try:
            done = subprocess.run(
                [*argv, "--json", str(found), *options], cwd=ROOT, capture_output=True, text=True, timeout=JUDGE_LIMIT_S
            )
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"the judge took longer than {JUDGE_LIMIT_S:.0f} s") from error
        if done.returncode:
            said = done.stderr.strip().split("\n")[-1] or f"status {done.returncode}"
            raise BenchError(f"the judge failed: {said}")
        rows: list[dict[str, Any]] = json.loads(found.read_text(encoding="utf-8"))["watched"]
        return rows

"""Ends an engine, or the server, many times at a random moment, and measures what a viewer sees of it.

`engine_killed` is kill -9 of the engine that serves, `engine_stopped` SIGSTOP for 10 s: how long until another process
makes new frames, how long the video stands, how much the pictures differ across it, and whether the judge of `mini`
sees the same words before and after, and in a replay of the journal, which nothing disturbed. `server_killed` is
kill -9 of the server, and another one at once on its state folder: how long until the page in Chromium shows pictures
again. Everything is on loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engine.wire.files import check_target, write_atomically
from streaming.bench.client import Pixels
from streaming.bench.labels import LABELS
from streaming.bench.recording import BenchError
from streaming.bench.server_process import SERVER, machine
from streaming.bench.timeline import Figures
from streaming.bench.words import judged
from streaming.chaos import page
from streaming.chaos.seams import CLIP, Death, figures
from streaming.chaos.stage import Stage, send
from streaming.chaos.two_viewers import CODEC, TwoViewers
from streaming.chaos.undisturbed import replayed

PER_PROMPT = 5  # ends under one prompt
SETTLED = 48  # frames that a change takes to be worked out
STOPPED_S = 10.0
KNOWN_S = 0.15  # after the fault: the server has read what the engine sent, and another one has made nothing
LIMIT_S = 60.0  # for new frames
WARM_LIMIT_S = 120.0  # for a spare engine to be loaded
JUDGED = 30  # clips that the judge gets at a time
CHUNK_S = 3.0  # of a chunk, in which the moment lies anywhere
EVERY_S = 0.05  # between two looks at the channel
MOST_TIMES = 1000


async def engine_ends(stage: Stage, times: int, rng: random.Random, stopped: bool) -> Figures:
    """Ends engines that many times; the figures of `seams`."""
    deaths: list[Death] = []
    async with TwoViewers(stage.http) as viewers:
        for number in tqdm(range(times), unit="death", desc="engines"):
            await stage.ready()
            prompt = list(LABELS)[number // PER_PROMPT % len(LABELS)]
            alone = deaths[-1].first + CLIP if deaths else 0  # from this frame on there is nothing but the prompt
            if number % PER_PROMPT == 0:
                alone = (await stage.http.json("PATCH", "/channels/main", {"prompt": prompt}))["frame"] + SETTLED
            await asyncio.gather(viewers.until(alone + 2 * CLIP, LIMIT_S), _spare_is_warm(stage))
            await asyncio.sleep(rng.uniform(0, CHUNK_S))
            deaths.append(await _end(stage, viewers, prompt, stopped))
    failed = None
    if (journal := stage.state / "main" / "journal.jsonl").exists():
        wanted = {number for death in deaths for number in death.pictures}
        frames: dict[int, Pixels] = {}
        try:
            frames = await asyncio.to_thread(replayed, journal, wanted, CODEC)
        except BenchError as error:
            failed = str(error)  # what was measured for half an hour is not lost with it
        deaths = [replace(one, undisturbed={n: frames[n] for n in one.pictures if n in frames}) for one in deaths]
    found = figures(deaths, await asyncio.to_thread(_judged, deaths))
    return found | {"not_replayed": failed} if failed else found


async def _end(stage: Stage, viewers: TwoViewers, prompt: str, stopped: bool) -> Death:
    """One engine, and what was watched of its end."""
    before, engine = await stage.report(), stage.engine()
    assert engine is not None, "one serves"
    began_s = time.monotonic()
    send(engine, signal.SIGSTOP if stopped else signal.SIGKILL)
    again = asyncio.create_task(_go_on(engine, STOPPED_S if stopped else 0.0))
    await asyncio.sleep(KNOWN_S)
    first = await _made(stage)
    while await _made(stage) <= first:
        if time.monotonic() - began_s > LIMIT_S:
            raise BenchError(f"no frame follows {first - 1} within {LIMIT_S:.0f} s")
        await asyncio.sleep(EVERY_S)
    made_s = time.monotonic() - began_s
    # One more, since the last one may be on its way to the other viewer.
    await viewers.until(first + CLIP + 1, LIMIT_S)
    await again
    repeats = (await stage.report())["repeats"] - before["repeats"]
    wanted = range(first - 2 * CLIP - 1, first + CLIP + 1)
    pictures = {number: i420 for number, i420 in viewers.pictures().items() if number in wanted}
    return Death(prompt, first, made_s, viewers.gap_s(began_s), repeats / before["fps"], pictures)


async def _go_on(engine: int, after_s: float) -> None:
    await asyncio.sleep(after_s)
    send(engine, signal.SIGCONT)


async def _made(stage: Stage) -> int:
    """Number of the first frame that is not there yet."""
    report = await stage.report()
    frame, buffered_s, fps = (float(report[name]) for name in ("frame", "buffered_s", "fps"))
    return round(frame + 1 + buffered_s * fps)


async def _spare_is_warm(stage: Stage) -> None:
    """Raises BenchError where it takes too long."""
    give_up_s = time.monotonic() + WARM_LIMIT_S
    while not stage.spare_is_warm():
        if time.monotonic() > give_up_s:
            raise BenchError(f"no spare engine was loaded within {WARM_LIMIT_S:.0f} s")
        await asyncio.sleep(EVERY_S)


def _judged(deaths: Sequence[Death]) -> list[dict[str, dict[str, bool]]]:
    """For each death the words that are right in each of its clips."""
    clips = [(death.prompt, clip) for death in deaths for clip in death.clips.values()]
    found = [
        row["right"]
        for begin in range(0, len(clips), JUDGED)
        for row in judged(clips[begin : begin + JUDGED], "--whole")
    ]
    rows = iter(found)
    return [{name: next(rows) for name in death.clips} for death in deaths]


Measure = Callable[[Stage, int, random.Random], Awaitable[Figures]]
FAULTS: dict[str, Measure] = {
    "engine_killed": lambda stage, times, rng: engine_ends(stage, times, rng, stopped=False),
    "engine_stopped": lambda stage, times, rng: engine_ends(stage, times, rng, stopped=True),
    "server_killed": page.server_ends,
}


async def measure(fault: str, times: int, seed: int, command: Sequence[str]) -> dict[str, Any]:
    """The report. Raises BenchError where the measurement cannot go on."""
    conditions = machine() | {"date": datetime.now(UTC).isoformat(timespec="seconds"), "seed": seed}
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        stage = Stage(command, Path(folder))
        try:
            await stage.start()
            found = await FAULTS[fault](stage, times, random.Random(seed))
        finally:
            await stage.stop()
    return {"conditions": conditions, "fault": fault, "times": times, **found}


def main(argv: Sequence[str] | None = None, command: Sequence[str] = SERVER) -> int:
    """Measures and writes; returns the exit status: 1 it failed, 2 bad arguments."""
    parser = argparse.ArgumentParser(prog="python -m streaming.chaos.kills", description=__doc__)
    parser.add_argument("--times", type=int, default=50, metavar="N", help="how often (default: 50)")
    parser.add_argument("--fault", choices=FAULTS, default="engine_killed", help="(default: engine_killed)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the moments (default: 0)")
    parser.add_argument("--json", type=Path, required=True, metavar="F", help="write the figures there")
    arguments = parser.parse_args(argv)
    if not 1 <= arguments.times <= MOST_TIMES:
        parser.error(f"--times {arguments.times}: from 1 to {MOST_TIMES}")
    try:
        check_target(arguments.json, ".json")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    try:
        report = asyncio.run(measure(arguments.fault, arguments.times, arguments.seed, command))
    except BenchError as error:
        sys.stderr.write(f"kills failed: {error}\n")
        return 1
    words = sys.argv[1:] if argv is None else list(argv)
    report = {"command": shlex.join(["python", "-m", "streaming.chaos.kills", *words])} | report
    text = json.dumps(report, indent=1) + "\n"
    write_atomically(arguments.json, lambda part: part.write_text(text, encoding="utf-8"))
    sys.stdout.write("".join(f"{name}: {value}\n" for name, value in report.items() if name != "deaths"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

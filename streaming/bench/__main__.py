"""Latency and smoothness as a viewer sees them: joins as a real decoding viewer, reads frame numbers and clocks back
from the pixels, changes prompts, and watches memory.

`python -m streaming.bench --seconds N --json F` starts a server and measures it; `--url` measures one that runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engine.wire.files import check_target, write_atomically
from streaming.bench import measure
from streaming.bench.client import BenchViewer, RequestError
from streaming.bench.measure import BenchError, Recording
from streaming.bench.server_process import SERVER, MeasuredServer, find_server, launch_server, machine, memory_mb
from streaming.media import rtp_hooks
from streaming.media.hub import CODECS

CHANNEL = "main"
MODES = ("flow", "cut")
PATH = f"/channels/{CHANNEL}"
PROMPTS = (
    "a blue sailboat drifts to the left on the sea",
    "a red car drives slowly to the right through the desert",
    "a white ball floats up under the stars at night",
    "a yellow fish moves quickly to the right over green hills by day",
)
SUMMARY = (
    "ready_s", "ttff_s", "fps", "realtime_factor", "interval_p99_ms", "stalls", "stall_ratio", "glass_to_glass_p95_ms",
    "prompt_to_pixel_s", "rss_mb",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """One measurement; times in seconds since the viewer's first picture."""

    seconds: float
    codec: str = "vp8"
    mode: str = "flow"  # of prompt changes
    settle_s: float = 5.0  # at the beginning, which intervals and stalls leave out
    warm_joins: int = 10  # before the long one
    prompt_every_s: float = 15.0
    sample_every_s: float = 1.0
    growth_from_s: float = 120.0  # growth of memory counts from here

    def __post_init__(self) -> None:
        least_s = self.settle_s + self.prompt_every_s
        if not least_s <= self.seconds < math.inf:
            raise ValueError(f"seconds is {self.seconds:g}; at least {least_s:g} are needed to settle and see a prompt")


async def bench(config: BenchConfig, url: str | None, command: Sequence[str]) -> dict[str, Any]:
    """Measures the server at `url`, or else the one that `command` starts.

    Raises:
        BenchError: the measurement cannot go on.
    """
    task = asyncio.current_task()
    assert task is not None, "it runs in a task"
    # The server that it started is stopped too.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with find_server(url) if url else launch_server(command) as server:
        if server.addresses:
            rtp_hooks.use_addresses(server.addresses)
        load = os.getloadavg()[0]
        before = await server.http.json("GET", PATH)
        with tqdm(total=round(config.seconds), unit="s", desc="joins") as bar:
            joins = []
            for _ in range(1 + config.warm_joins):
                async with aclosing(BenchViewer(server.http, CHANNEL, config.codec, lambda arrival: None)) as viewer:
                    joins.append(await viewer.join())
            bar.set_description("watching")
            try:
                join_s, recording = await _watch(server, config, bar)
            finally:
                if url:
                    # A server that others use gets its prompt back.
                    with suppress(RequestError):
                        await server.http.json("PATCH", PATH, {"prompt": before["prompt"], "mode": "flow"})
        # Only a server that was just started has never shown anything.
        cold_s = None if url else round(joins[0], 3)
        return {
            "ready_s": server.ready_s,
            "ttff_s": {"cold": cold_s, "warm": measure.spread([*joins[1:], join_s])},
            **measure.figures(recording, config.settle_s, config.growth_from_s),
            "conditions": _conditions(config, server, recording) | {"load_average": [load, os.getloadavg()[0]]},
        }


async def _watch(server: MeasuredServer, config: BenchConfig, bar: tqdm[Any]) -> tuple[float, Recording]:
    """Joins and watches for the whole time; returns seconds until the first picture, and what was seen."""
    arrivals: list[measure.Arrival] = []
    async with aclosing(BenchViewer(server.http, CHANNEL, config.codec, arrivals.append)) as viewer:
        join_s = await viewer.join()
        begin_s = arrivals[0].at_s
        recording = Recording(begin_s, begin_s + config.seconds, bool(server.addresses), arrivals)
        async with asyncio.TaskGroup() as group:
            sampling, changing = _sample(server, config, recording), _change_prompts(server, config, recording)
            helpers = [group.create_task(work) for work in (viewer.watch(), server.ended(), sampling, changing)]
            while (left_s := recording.end_s - time.monotonic()) > 0:
                await asyncio.sleep(min(1.0, left_s))
                bar.update(min(bar.total, round(time.monotonic() - begin_s)) - bar.n)
            for helper in helpers:
                helper.cancel()
    return join_s, recording


async def _sample(server: MeasuredServer, config: BenchConfig, recording: Recording) -> None:
    """Notes the channel's report and the processes' memory again and again."""
    for number in count():
        await asyncio.sleep(recording.begin_s + number * config.sample_every_s - time.monotonic())
        report = await server.http.json("GET", PATH)
        at_s = round(time.monotonic() - recording.begin_s, 3)
        recording.samples.append((at_s, report))
        if report["chunk"] is not None:
            recording.chunks[report["chunk"]["index"]] = report["chunk"]["ms"]
        if server.pid is not None:
            for name, size_mb in (await asyncio.to_thread(memory_mb, server.pid)).items():
                recording.memory.setdefault(name, []).append((at_s, round(size_mb, 1)))


async def _change_prompts(server: MeasuredServer, config: BenchConfig, recording: Recording) -> None:
    """Changes the prompt every so often, as long as there is time left to see it."""
    for number in count():
        due_s = recording.begin_s + config.settle_s + number * config.prompt_every_s
        if due_s + config.prompt_every_s > recording.end_s:
            return
        await asyncio.sleep(due_s - time.monotonic())
        sent_s = time.monotonic()
        try:
            body = {"prompt": PROMPTS[number % len(PROMPTS)], "mode": config.mode}
            answer = await server.http.json("PATCH", PATH, body)
        except RequestError as error:
            recording.refused.append(str(error))
        else:
            if answer["replaced_by"] is None:
                recording.changes.append(measure.Change(sent_s, answer["frame"]))
            else:
                recording.refused.append(f"{body['prompt']!r} was replaced by {answer['replaced_by']!r}")


def _conditions(config: BenchConfig, server: MeasuredServer, recording: Recording) -> dict[str, Any]:
    reports = [report for _, report in recording.samples]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "server": f"at {server.http.url}" if server.ready_s is None else "started for this measurement",
        # It decodes a frame when the first packet of the next one comes: one frame period later, in all delays.
        "viewer": "aiortc",
        **{name: reports[-1][name] for name in ("preset", "width", "height", "fps", "seed")},
        "steps": sorted({report["steps"] for report in reports if report["steps"] is not None}),
        **{name: getattr(config, name) for name in ("codec", "mode", "seconds", "settle_s", "prompt_every_s")},
        # A server elsewhere may run on anything.
        **(machine() if server.addresses else {"device": None}),
    }


def summary(report: dict[str, Any]) -> str:
    """The main figures for people, a line each."""
    lines = [f"{name:24}{json.dumps(report[name])}" for name in SUMMARY]
    return "\n".join(lines + [f"failed: {failure}" for failure in report["failed"]]) + "\n"


def parse(argv: Sequence[str] | None) -> tuple[BenchConfig, str | None, Path]:
    """The command line: what to measure, the server's URL without a slash at its end, and where to write."""
    parser = argparse.ArgumentParser(prog="python -m streaming.bench", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, metavar="N", help="how long to watch (default: 60)")
    parser.add_argument("--json", type=Path, required=True, metavar="F", help="write the figures there")
    parser.add_argument("--url", type=lambda url: url.rstrip("/"), help="measure the server there, start none")
    parser.add_argument("--codec", choices=CODECS, default="vp8", help="what to ask for (default: vp8)")
    parser.add_argument("--mode", choices=MODES, default="flow", help="how prompts change (default: flow)")
    arguments = parser.parse_args(argv)
    try:
        check_target(arguments.json)
        return BenchConfig(arguments.seconds, arguments.codec, arguments.mode), arguments.url, arguments.json
    except (ValueError, OSError) as error:
        parser.error(str(error))


def main(argv: Sequence[str] | None = None, command: Sequence[str] = SERVER) -> int:
    """Measures and writes; returns the exit status: 1 it failed or something was refused, 2 bad arguments."""
    config, url, target = parse(argv)
    status = 1
    try:
        report = asyncio.run(bench(config, url, command))
        sys.stdout.write(summary(report))
        text = json.dumps(report, indent=2) + "\n"
        try:
            write_atomically(target, lambda part: part.write_text(text, encoding="utf-8"))
        except OSError as error:
            raise BenchError(str(error)) from error
        status = 1 if report["failed"] else 0
    except* BenchError as group:
        sys.stderr.writelines(f"bench failed: {failure}\n" for failure in group.exceptions)
    except* (KeyboardInterrupt, asyncio.CancelledError):
        sys.stderr.write("bench stopped; nothing was written\n")
    return status


if __name__ == "__main__":
    sys.exit(main())

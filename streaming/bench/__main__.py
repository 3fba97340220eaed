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
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from streaming.bench import measure
from streaming.bench import server_process as subject
from streaming.bench.client import BenchError, RequestError, Spectator
from streaming.bench.measure import Recording
from streaming.bench.server_process import Subject
from streaming.media import rtp_hooks
from streaming.media.hub import CODECS

CHANNEL = "main"
PATH = f"/channels/{CHANNEL}"
PROMPTS = (
    "a blue sailboat drifts to the left on the sea",
    "a red car drives slowly to the right through the desert",
    "a white ball floats up under the stars at night",
    "a yellow fish moves quickly to the right over green hills by day",
)
VIEWER = (
    "aiortc on the measuring machine; it decodes a frame when the first packet of the next one comes, one frame period"
    " late, which ttff_s, glass_to_glass_*_ms and prompt_to_pixel_s include"
)


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """One measurement; times in seconds since the viewer's first picture."""

    seconds: float
    codec: str = "vp8"
    settle_s: float = 5.0  # at the beginning, which intervals and stalls leave out
    warm_joins: int = 10  # before the long one
    prompt_every_s: float = 15.0
    sample_every_s: float = 1.0
    growth_from_s: float = 120.0  # growth of memory counts from here

    def __post_init__(self) -> None:
        least_s = self.settle_s + self.prompt_every_s
        if not least_s <= self.seconds < math.inf:
            raise ValueError(f"seconds is {self.seconds:g}; at least {least_s:g} are needed to settle and see a prompt")
        if self.codec not in CODECS:
            raise ValueError(f"codec is {self.codec!r}; it must be one of {', '.join(CODECS)}")


async def bench(config: BenchConfig, url: str | None, command: Sequence[str]) -> dict[str, Any]:
    """Measures the server at `url`, or else the one that `command` starts. Raises BenchError."""
    async with subject.found(url) if url else subject.launched(command) as server:
        if server.here:
            rtp_hooks.use_addresses(server.addresses)
        load = os.getloadavg()[0]
        before = await server.http.json("GET", PATH)
        with tqdm(total=round(config.seconds), unit="s", desc="joins") as bar:
            joins = [await _join(server, config) for _ in range(1 + config.warm_joins)]
            bar.set_description("watching")
            try:
                join_s, recording = await _watch(server, config, bar)
            finally:
                if url:
                    # A server that others use gets its prompt back.
                    with suppress(RequestError):
                        await server.http.json("PATCH", PATH, {"prompt": before["prompt"], "mode": "flow"})
        # Only a server that was just started has never shown anything.
        cold = joins if url is None else []
        figures = _figures(config, recording)
        ttff = {"cold": measure.spread(cold[:1]).median, "warm": asdict(measure.spread([*joins[1:], join_s]))}
        ready_s = None if server.ready_s is None else round(server.ready_s, 3)
        conditions = _conditions(config, server, recording) | {"load_average": [load, os.getloadavg()[0]]}
        return {"ready_s": ready_s, "ttff_s": ttff} | figures | {"conditions": conditions}


async def _join(server: Subject, config: BenchConfig) -> float:
    """Joins for one picture; returns seconds until it was decoded."""
    spectator = Spectator(server.http, CHANNEL, config.codec, lambda arrival: None)
    try:
        return await spectator.join()
    finally:
        await spectator.close()


async def _watch(server: Subject, config: BenchConfig, bar: tqdm[Any]) -> tuple[float, Recording]:
    """Joins and watches for the whole time; returns seconds until the first picture, and what was seen."""
    arrivals: list[measure.Arrival] = []
    spectator = Spectator(server.http, CHANNEL, config.codec, arrivals.append)
    try:
        join_s = await spectator.join()
        begin_s = arrivals[0].at_s
        recording = Recording(begin_s, begin_s + config.seconds, server.here, arrivals)
        async with asyncio.TaskGroup() as group:
            helpers = [
                group.create_task(work)
                for work in (
                    spectator.ended(),
                    server.ended(),
                    _sample(server, config, recording),
                    _change_prompts(server, config, recording),
                )
            ]
            while (left_s := recording.end_s - time.monotonic()) > 0:
                await asyncio.sleep(min(1.0, left_s))
                bar.update(min(bar.total, round(time.monotonic() - begin_s)) - bar.n)
            for helper in helpers:
                helper.cancel()
    finally:
        await spectator.close()
    return join_s, recording


async def _sample(server: Subject, config: BenchConfig, recording: Recording) -> None:
    """Notes the channel's report and the processes' memory again and again."""
    for number in count():
        await asyncio.sleep(recording.begin_s + number * config.sample_every_s - time.monotonic())
        report = await server.http.json("GET", PATH)
        at_s = round(time.monotonic() - recording.begin_s, 3)
        recording.samples.append((at_s, report))
        if report["hop"] is not None:
            recording.hops[report["hop"]["index"]] = report["hop"]["ms"]
        if server.pid is not None:
            for name, size_mb in (await asyncio.to_thread(subject.memory_mb, server.pid)).items():
                recording.memory.setdefault(name, []).append((at_s, round(size_mb, 1)))


async def _change_prompts(server: Subject, config: BenchConfig, recording: Recording) -> None:
    """Changes the prompt every so often, as long as there is time left to see it."""
    for number in count():
        due_s = recording.begin_s + config.settle_s + number * config.prompt_every_s
        if due_s + config.prompt_every_s > recording.end_s:
            return
        await asyncio.sleep(due_s - time.monotonic())
        sent_s = time.monotonic()
        try:
            body = {"prompt": PROMPTS[number % len(PROMPTS)], "mode": "flow"}
            answer = await server.http.json("PATCH", PATH, body)
        except RequestError as error:
            recording.refused.append(str(error))
        else:
            recording.changes.append(measure.Change(sent_s, time.monotonic() - sent_s, answer["frame"]))


def _figures(config: BenchConfig, recording: Recording) -> dict[str, Any]:
    try:
        return measure.figures(recording, config.settle_s, config.growth_from_s)
    except ValueError as error:
        raise BenchError(str(error)) from error


def _conditions(config: BenchConfig, server: Subject, recording: Recording) -> dict[str, Any]:
    reports = [report for _, report in recording.samples]
    names = ("preset", "width", "height", "fps", "seed")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "server": f"at {server.http.url}" if server.ready_s is None else "started for this measurement",
        "viewer": VIEWER,
        **{name: reports[-1][name] for name in names},
        "steps": sorted({report["steps"] for report in reports if report["steps"] is not None}),
        **{name: getattr(config, name) for name in ("codec", "seconds", "settle_s", "prompt_every_s")},
        # A server elsewhere may run on anything.
        **(subject.machine() if server.here else {"device": None}),
    }


def summary(report: dict[str, Any]) -> str:
    """The main figures for people, a line each."""
    names = ("ready_s", "fps", "realtime_factor", "interval_p99_ms", "stalls", "stall_ratio", "glass_to_glass_p95_ms")
    lines = [f"{name:24}{report[name]}" for name in names]
    cold, warm, prompt = report["ttff_s"]["cold"], report["ttff_s"]["warm"], report["prompt_to_pixel_s"]
    lines.append(f"{'ttff_s':24}cold {cold}, warm {warm['median']} (p95 {warm['p95']}, of {warm['count']})")
    lines.append(f"{'prompt_to_pixel_s':24}{prompt['median']} (p95 {prompt['p95']}, of {prompt['count']})")
    for name, memory in report["rss_mb"].items():
        lines.append(f"{'rss_mb ' + name:24}{memory['end']} (growth {memory['growth']})")
    return "\n".join(lines + [f"failed: {failure}" for failure in report["failed"]]) + "\n"


def write(target: Path, report: dict[str, Any]) -> None:
    """Writes a report as JSON; readers see the old file or the whole new one."""
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(report, indent=2) + "\n")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(prog="python -m streaming.bench", description=__doc__)
    options.add_argument("--seconds", type=float, default=60.0, metavar="N", help="how long to watch (default: 60)")
    options.add_argument("--json", type=Path, required=True, metavar="F", help="write the figures there")
    options.add_argument("--url", help="measure the server there instead of starting one")
    options.add_argument("--codec", choices=CODECS, default="vp8", help="what to ask for (default: vp8)")
    return options


async def _cancellable(config: BenchConfig, url: str | None, command: Sequence[str]) -> dict[str, Any]:
    """As `bench`; SIGTERM stops the server too."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await bench(config, url, command)


def main(argv: Sequence[str] | None = None, command: Sequence[str] = subject.SERVER) -> int:
    """Measures and writes; returns the exit status: 1 it failed or something was refused, 2 bad arguments."""
    options = parser()
    arguments = options.parse_args(argv)
    url = arguments.url.rstrip("/") if arguments.url else None
    if url and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
        options.error(f"argument --url: {url!r} is not an address like http://127.0.0.1:8000")
    if not arguments.json.parent.is_dir() or arguments.json.is_dir():
        options.error(f"argument --json: {str(arguments.json)!r} must be a file in a folder that exists")
    try:
        config = BenchConfig(arguments.seconds, arguments.codec)
    except ValueError as error:
        options.error(str(error))
    status = 1
    try:
        report = asyncio.run(_cancellable(config, url, command))
        write(arguments.json, report)
        sys.stdout.write(summary(report))
        status = 1 if report["failed"] else 0
    except* BenchError as group:
        sys.stderr.writelines(f"bench failed: {failure}\n" for failure in group.exceptions)
    except* (KeyboardInterrupt, asyncio.CancelledError):
        sys.stderr.write("bench stopped; nothing was written\n")
    return status


if __name__ == "__main__":
    sys.exit(main())

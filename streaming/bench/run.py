"""A whole measurement from its plan: servers are started and stopped, runs repeated and put together."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from streaming.bench import chromium, compare, pace, peers, profiles, prompts, waves, words
from streaming.bench.client import BenchViewer, JoinTimes, RequestError
from streaming.bench.measure import content, figures, fresh
from streaming.bench.recording import BenchError, Recording
from streaming.bench.server_process import (
    MeasuredServer,
    at_rest,
    find_endpoint,
    find_server,
    launch_server,
    machine,
)
from streaming.bench.timeline import Figures, Frame, lateness_s, period_of, spread
from streaming.bench.watch import WatchConfig, watch
from streaming.bench.waves import Wave, WaveConfig
from streaming.media import rtp_hooks

WARM_JOINS = 10  # before the long one
BROWSER_S = 20.0
PROFILE_S = 40.0
SERIES_POINTS = 2000  # of a line in a report's pictures, at most


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """What is asked for on the command line."""

    watch: WatchConfig
    json: Path
    html: Path | None = None
    compare: Path | None = None
    url: str | None = None  # of a server of ours that runs, without a slash at its end
    whep: str | None = None  # of a WHEP endpoint of any make
    token: str | None = None
    repeat: int = 1
    wave: WaveConfig | None = None
    browser: bool = False
    profiles: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    warm_joins: int = WARM_JOINS


def measure(plan: BenchPlan, command: Sequence[str]) -> Figures:
    """The report of a plan, of servers that `command` starts where none runs already. Raises BenchError."""
    runs = [_run(plan, command) for _ in range(plan.repeat)]
    report: Figures = {"schema": compare.SCHEMA} | compare.merged(runs)
    for name in plan.profiles:
        with _optional(report, f"profile {name}"):
            report.setdefault("profiles", {})[name] = _behind_wire(plan, command, name)
    if plan.peers:
        report["peers"] = peers.measure(plan.peers, report["not_measured"])
    return report


def _run(plan: BenchPlan, command: Sequence[str]) -> Figures:
    """One run; what was watched for its words is judged when the server is gone."""
    watched: list[words.WatchedChange] = []
    report = asyncio.run(_bench(plan, lambda: _server(plan, command), watched=watched))
    if watched:
        with _optional(report, "prompt to words"):
            report |= words.figures(watched)
    return report


@contextmanager
def _optional(report: Figures, name: str) -> Iterator[None]:
    """What this machine cannot do is said in one line; the rest is measured."""
    try:
        yield
    except* BenchError as group:
        report["not_measured"] += [f"{name}: {error}" for error in group.exceptions]


def _server(plan: BenchPlan, command: Sequence[str]) -> AbstractAsyncContextManager[MeasuredServer]:
    if plan.whep is not None:
        return find_endpoint(plan.whep, plan.token)
    if plan.url is not None:
        return find_server(plan.url, plan.token)
    return launch_server(command)


def _behind_wire(plan: BenchPlan, command: Sequence[str], name: str) -> Figures:
    """The figures behind an impaired network, in a shorter run of its own."""
    profile = profiles.PROFILES[name]
    config = dataclasses.replace(plan.watch, seconds=min(plan.watch.seconds, PROFILE_S))
    shorter = BenchPlan(config, plan.json, warm_joins=2)
    with profiles.wire(profile) as wire, wire.at_viewer():
        server = lambda: launch_server(command, wire.prefix, profiles.SERVER_ADDRESS, profiles.VIEWER_ADDRESS)  # noqa: E731
        return asyncio.run(_bench(shorter, server, lambda recording: wire.play(profile)))


async def _bench(
    plan: BenchPlan,
    open_server: Callable[[], AbstractAsyncContextManager[MeasuredServer]],
    beside: Callable[[Recording], Coroutine[Any, Any, None]] | None = None,
    watched: list[words.WatchedChange] | None = None,
) -> Figures:
    """One run. `beside` goes on while it is watched; without one that is the plan's wave. Changes that a judge can
    read go to `watched`, where it is given."""
    task = asyncio.current_task()
    assert task is not None, "it runs in a task"
    if threading.current_thread() is threading.main_thread():
        # The server that it started is stopped too.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    config = plan.watch
    began_s = time.monotonic()
    async with pace.timed() as speed, open_server() as server:
        if server.addresses:
            rtp_hooks.use_addresses(server.addresses)
        load = os.getloadavg()[0]
        rides: list[Wave] = []
        async with _prompt_given_back(server, plan):
            with tqdm(total=round(config.seconds), unit="s", desc="joins") as bar:
                joins = [await _join(server, config)]
                first_s = time.monotonic() - began_s
                await at_rest(server)
                joins += [await _join(server, config) for _ in range(plan.warm_joins)]
                bar.set_description("watching")
                progress = lambda watched_s: bar.update(min(bar.total, round(watched_s)) - bar.n)  # noqa: E731
                ride = beside or functools.partial(_ride, server, plan, config, rides)
                times, recording = await watch(server, config, progress, ride)
            # A wave comes behind all that is measured without one.
            quiet = recording.until(recording.begin_s + config.seconds) if rides else recording
            report = _report(server, config, joins, times, quiet, first_s)
            if watched is not None and report["conditions"]["preset"] == words.PRESET:
                with _optional(report, "prompt to words"):
                    watched += await words.watch(server, config.codec, config.modes, recording)
        report["conditions"]["load_average"] = [load, os.getloadavg()[0]]
        for one in rides:
            report["wave"] = waves.figures(one, recording, _fps(recording), config.settle_s)
        if plan.browser:
            await _browse(server, plan, recording, report)
        if server.addresses:
            begin_s = recording.begin_s
            spans = {"starting": (began_s, began_s + first_s), "watched": (begin_s + config.settle_s, quiet.end_s)}
            for one in rides:
                spans["crowded"] = begin_s + one.full_s, begin_s + one.left_s
            report["full_speed"] = pace.at_full_speed(report, speed, spans)
    return report


async def _join(server: MeasuredServer, config: WatchConfig) -> JoinTimes:
    """One viewer that leaves with its first picture."""
    viewer = BenchViewer(server.http, server.endpoint(config.codec), config.codec, lambda *seen: None)
    async with aclosing(viewer):
        return await viewer.join()


async def _ride(
    server: MeasuredServer, plan: BenchPlan, config: WatchConfig, rides: list[Wave], recording: Recording
) -> None:
    """The plan's wave, beside the viewer of a recording."""
    if plan.wave is not None:
        url = server.http.url + server.endpoint(config.codec)
        crowd = functools.partial(waves.crowd, url, plan.wave, config.codec, plan.token, server.addresses)
        rides.append(await waves.ride(crowd, plan.wave, recording.begin_s, config.seconds))


@asynccontextmanager
async def _prompt_given_back(server: MeasuredServer, plan: BenchPlan) -> AsyncIterator[None]:
    """A server that others use has its prompt again after the block."""
    if server.channel is None or plan.url is None:
        yield
        return
    before = await server.http.json("GET", server.channel)
    try:
        yield
    finally:
        with suppress(RequestError):
            await server.http.json("PATCH", server.channel, {"prompt": before["prompt"], "mode": "flow"})


async def _browse(server: MeasuredServer, plan: BenchPlan, recording: Recording, report: Figures) -> None:
    """Adds what a browser sees of the same endpoint; it watches after the other, so that neither disturbs."""
    if reason := chromium.missing():
        report["not_measured"].append(f"browser: {reason}")
        return
    endpoint = server.http.url + server.endpoint(plan.watch.codec)
    origin = "{0.scheme}://{0.netloc}".format(urlsplit(endpoint))
    try:
        noted = await chromium.watch(origin, endpoint, plan.token, BROWSER_S)
    except BenchError as error:
        report["not_measured"].append(f"browser: {error}")
    else:
        report["browser"] = chromium.figures(noted, _fps(recording))


def _report(
    server: MeasuredServer,
    config: WatchConfig,
    joins: Sequence[JoinTimes],
    times: JoinTimes,
    recording: Recording,
    first_s: float,
) -> Figures:
    warm = [*joins[1:], times]
    found = prompts.figures(recording)
    # Only a server that was just started has never shown anything.
    started = server.ready_s is not None
    return {
        "ready_s": server.ready_s,
        "cold_start_s": round(first_s, 3) if started else None,
        "ttff_s": {
            "cold": round(joins[0].picture_s, 3) if started else None,
            "warm": spread(one.picture_s for one in warm),
        },
        "ttff_split_ms": _ttff_split(warm),
        **figures(recording, config.settle_s, config.growth_from_s),
        **found,
        "series": _series(recording),
        "not_measured": [] if found["prompts"] else ["prompt to pixel: no prompt was changed"],
        "conditions": _conditions(config, server, recording),
    }


def _ttff_split(joins: Sequence[JoinTimes]) -> Figures:
    """Milliseconds of each step of a join, one behind the other."""
    steps: dict[str, list[float]] = {name: [] for name in ("http", "ice", "dtls", "key_frame", "decode")}
    for join in joins:
        then_s = 0.0
        for name, at_s in zip(steps, join, strict=True):
            if at_s is not None:
                steps[name].append((at_s - then_s) * 1000)
                then_s = at_s
    return {name: spread(values) for name, values in steps.items()}


def _fps(recording: Recording) -> float:
    if recording.samples and recording.samples[-1][1]["fps"]:
        return float(recording.samples[-1][1]["fps"])
    return 1 / period_of([Frame(one.at_s, one.media_s) for one in recording.arrivals])


def _series(recording: Recording) -> Figures:
    """Points of the report's pictures: seconds of watching, and a value."""
    shown = fresh(recording.arrivals)
    late_ms = [
        (round(one.at_s - recording.begin_s, 3), round(late_s * 1000, 1))
        for one, late_s in zip(shown, lateness_s(content(shown, _fps(recording))), strict=True)
    ]
    computing = {
        name: [
            (later[0], round(100 * (later[1] - earlier[1]) / (later[0] - earlier[0]), 1))
            for earlier, later in pairwise(series)
            if later[0] > earlier[0]
        ]
        for name, series in recording.computing.items()
    }
    return {
        "late_ms": _thinned(late_ms),
        "cpu_percent": {name: _thinned(points) for name, points in computing.items()},
        "rss_mb": {name: _thinned(points) for name, points in recording.memory.items()},
    }


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return points[:: max(1, len(points) // SERIES_POINTS)]


def _conditions(config: WatchConfig, server: MeasuredServer, recording: Recording) -> Figures:
    reports = [report for _, report in recording.samples]
    last = reports[-1] if reports else {}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "server": f"at {server.http.url}" if server.ready_s is None else "started for this measurement",
        # It decodes a frame when the first packet of the next one comes: `hold_ms` says what that adds to all delays.
        "viewer": "aiortc",
        **{name: last.get(name) for name in ("preset", "width", "height", "fps", "seed")},
        "steps": sorted({report["steps"] for report in reports if report["steps"] is not None}),
        **{name: getattr(config, name) for name in ("codec", "seconds", "settle_s", "prompt_every_s")},
        "modes": list(config.modes),
        # A server elsewhere may run on anything.
        **(machine() if server.addresses else {"device": None}),
    }

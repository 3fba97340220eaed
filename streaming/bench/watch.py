"""One measurement: a viewer that watches for a while, what the server says meanwhile, and prompts that are changed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Any

from streaming.bench.client import BenchViewer, EventStream, JoinTimes, Pixels, RequestError
from streaming.bench.labels import LABELS
from streaming.bench.recording import Arrival, BenchError, Change, ChunkSeen, Recording, Rendered
from streaming.bench.server_process import MeasuredServer, computing_s, memory_mb

PROMPTS = tuple(LABELS)
COMMAND_LIMIT_S = 30.0
# Of video rendered and not shown, when a prompt is changed: `mini` has 2.5 s when a chunk begins, and about 5 s when it
# is done.
BUFFERED_S = 3.5
MIDDLE_LIMIT_S = 4.0
LOOK_EVERY_S = 0.005


@dataclass(frozen=True, slots=True)
class WatchConfig:
    """What one measurement does; times in seconds since the viewer's first picture."""

    seconds: float
    codec: str | None = "vp8"  # None takes what the server chooses
    modes: tuple[str, ...] = ("flow",)  # of prompt changes, in turn
    command: str | None = None  # of a shell, that changes the prompt to $PROMPT where there is no API of ours
    settle_s: float = 5.0  # at the beginning, which intervals and stalls leave out
    first_prompt_s: float = 10.0  # a stretch before it tells how the old prompt moves
    prompt_every_s: float = 15.0
    sample_every_s: float = 1.0
    growth_from_s: float = 120.0  # growth of memory counts from here

    def __post_init__(self) -> None:
        least_s = max(self.settle_s, self.first_prompt_s + self.prompt_every_s)
        if not least_s <= self.seconds < float("inf"):
            raise ValueError(f"seconds is {self.seconds:g}; at least {least_s:g} are needed to settle and see a prompt")


async def watch(
    server: MeasuredServer,
    config: WatchConfig,
    progress: Callable[[float], None],
    beside: Callable[[Recording], Coroutine[Any, Any, None]],
) -> tuple[JoinTimes, Recording]:
    """Joins and watches for the whole time; returns how the join went, and what was seen. Raises BenchError.

    It lasts longer where `beside`, which goes on meanwhile, does.
    """
    arrivals: list[Arrival] = []

    def note(arrival: Arrival, _: Pixels) -> None:
        arrivals.append(arrival)

    async with (
        open_news(server) as news,
        aclosing(BenchViewer(server.http, server.endpoint(config.codec), config.codec, note)) as viewer,
    ):
        times = await viewer.join()
        begin_s = arrivals[0].at_s
        recording = Recording(begin_s, begin_s + config.seconds, bool(server.addresses), arrivals)
        before = await _encoding(server)
        async with asyncio.TaskGroup() as group:
            works = [viewer.watch(), server.ended(), _change_prompts(server, config, recording)]
            if server.channel is not None:
                works.append(listen(news, recording))
            if server.pid is not None:
                works.append(_sample(server.pid, config, recording))
            helpers = [group.create_task(work) for work in works]
            waited_for = group.create_task(beside(recording))
            while (left_s := recording.end_s - time.monotonic()) > 0 or not waited_for.done():
                await asyncio.sleep(min(1.0, max(left_s, 0.1)))
                progress(time.monotonic() - begin_s)
            recording.end_s = max(recording.end_s, time.monotonic())
            for helper in helpers:
                helper.cancel()
        recording.encode_s = _mean_between(before, await _encoding(server))
        recording.rung_changes = await _rung_changes(server)
        recording.stats = viewer.stats()
    return times, recording


@asynccontextmanager
async def open_news(server: MeasuredServer) -> AsyncIterator[EventStream | None]:
    """The channel's reports; None where there is no channel of ours."""
    if server.channel is None:
        yield None
        return
    async with EventStream(server.http, f"{server.channel}/events") as events:
        yield events


async def listen(news: EventStream | None, recording: Recording) -> None:
    """Notes when frames were rendered and chunks done, as the channel tells it."""
    assert news is not None, "a channel has events"
    known = None
    while True:
        at_s, report = await news.get()
        if "buffered_s" not in report:
            continue
        recording.samples.append((round(at_s - recording.begin_s, 3), report))
        if report["fps"]:
            shown = report["frame"] + 1 if report["frame"] is not None else 0
            end = shown + round(report["buffered_s"] * report["fps"])
            # A cut drops frames; those in their place are rendered anew.
            while recording.rendered and recording.rendered[-1].end > end:
                recording.rendered.pop()
            if not recording.rendered or end > recording.rendered[-1].end:
                recording.rendered.append(Rendered(at_s, end))
        # What was done before the first report may have been so for long.
        if known is not None and report["chunk"] not in (None, known["chunk"]):
            recording.chunks.append(ChunkSeen(at_s, report["chunk"]["ms"]))
        known = report


async def _sample(pid: int, config: WatchConfig, recording: Recording) -> None:
    """Notes memory and computing of the server's processes and of this one, again and again."""
    for number in count():
        await asyncio.sleep(recording.begin_s + number * config.sample_every_s - time.monotonic())
        memory, computing = await asyncio.to_thread(lambda: (memory_mb(pid), computing_s(pid)))
        at_s = round(time.monotonic() - recording.begin_s, 3)
        own = os.times()
        for kept, values in (
            (recording.memory, memory),
            (recording.computing, computing | {"bench": own.user + own.system}),
        ):
            for name, value in values.items():
                kept.setdefault(name, []).append((at_s, round(value, 3)))


async def _change_prompts(server: MeasuredServer, config: WatchConfig, recording: Recording) -> None:
    """Changes the prompt every so often, as long as there is time left to see it."""
    if server.channel is None and config.command is None:
        return
    for number in count():
        due_s = recording.begin_s + config.first_prompt_s + number * config.prompt_every_s
        if due_s + config.prompt_every_s > recording.end_s + 0.001:
            return
        await asyncio.sleep(due_s - time.monotonic())
        if server.channel is not None:
            await at_middle(recording)
        prompt, mode = PROMPTS[number % len(PROMPTS)], config.modes[number % len(config.modes)]
        await change_prompt(server, recording, prompt, mode, config.command)


async def at_middle(recording: Recording) -> None:
    """Waits until the buffer has fallen to BUFFERED_S, about the middle between two chunks: what a change has to wait
    for depends on it, to the frame. Gives up after MIDDLE_LIMIT_S, where buffers are others."""
    before = None
    with suppress(TimeoutError):
        async with asyncio.timeout(MIDDLE_LIMIT_S):
            while (now := _buffered(recording)) is None or before is None or not now <= BUFFERED_S < before:
                before = now
                await asyncio.sleep(LOOK_EVERY_S)


def _buffered(recording: Recording) -> float | None:
    """Seconds of video that are rendered and not seen; None before the first report."""
    if not recording.samples or not recording.samples[-1][1]["fps"]:
        return None
    reported_s, report = recording.samples[-1]
    behind = reversed(recording.arrivals)
    seen = sum(1 for _ in takewhile(lambda one: one.at_s > recording.begin_s + reported_s, behind))
    return float(report["buffered_s"] - seen / report["fps"])


async def change_prompt(
    server: MeasuredServer, recording: Recording, prompt: str, mode: str, command: str | None = None
) -> None:
    """Asks for a change and notes it, or that it was refused. Raises BenchError for a command that fails."""
    change = Change(prompt, time.monotonic(), mode=mode)
    try:
        if command is not None:
            await _run(command, prompt)
        else:
            answer = await server.http.json("PATCH", str(server.channel), {"prompt": prompt, "mode": mode})
            if answer["replaced_by"] is not None:
                recording.refused.append(f"{prompt!r} was replaced by {answer['replaced_by']!r}")
                return
            change.frame = answer["frame"]
    except RequestError as error:
        recording.refused.append(str(error))
        return
    change.answered_s = time.monotonic()
    recording.changes.append(change)


async def _run(command: str, prompt: str) -> None:
    """Runs a shell command that changes the prompt to $PROMPT. Raises BenchError when it fails."""
    process = await asyncio.create_subprocess_shell(
        command,
        env={**os.environ, "PROMPT": prompt},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(COMMAND_LIMIT_S):
            _, error = await process.communicate()
    except TimeoutError as late:
        process.kill()
        await process.wait()
        raise BenchError(f"--command {shlex.quote(command)} took longer than {COMMAND_LIMIT_S:.0f} s") from late
    if process.returncode:
        said = error.decode(errors="replace").strip().split("\n")[-1]
        raise BenchError(f"--command {shlex.quote(command)} ended with status {process.returncode}: {said}")


async def _rung_changes(server: MeasuredServer) -> int | None:
    """Of the only viewer; None where nobody counts them, or others watch."""
    if server.channel is None:
        return None
    with suppress(RequestError, ValueError):
        _, body = await server.http.request("GET", f"{server.channel}/viewers")
        reports = json.loads(body)
        return int(reports[0]["rung_changes"]) if len(reports) == 1 else None
    return None


async def _encoding(server: MeasuredServer) -> tuple[float, float] | None:
    """Seconds of encoding and number of frames, of all channels together; None where nobody counts them."""
    if server.channel is None:
        return None
    with suppress(RequestError, ValueError):
        _, body = await server.http.request("GET", "/metrics")
        values: dict[str, float] = {"sum": 0.0, "count": 0.0}
        for name, value in re.findall(r"^landiff_encode_seconds_(sum|count)\{.*\} (\S+)$", body.decode(), re.MULTILINE):
            values[name] += float(value)
        return values["sum"], values["count"]
    return None


def _mean_between(before: tuple[float, float] | None, after: tuple[float, float] | None) -> float | None:
    if before is None or after is None or after[1] <= before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1])

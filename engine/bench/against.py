"""This tree against an older commit: both take turns, each in a process of its own, on one machine in one run.

The older one is checked out into a worktree that is removed at the end.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tqdm import tqdm

from engine.bench.contenders import WARM_UPS, summary

ROOT = Path(__file__).parents[2]
TURNS = Path(__file__).with_name("turns.py")
STARTS = 3  # of the server with each commit
START_S = 120.0  # longest that a server may take to be ready
POLL_S = 0.02

Times = dict[str, list[float]]


@contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """The files of a commit, in a folder that is removed afterwards.

    Raises:
        ValueError: there is no such commit, or this is no clone.
    """
    with tempfile.TemporaryDirectory(prefix="against-") as folder:
        place = Path(folder) / "tree"
        made = _git("worktree", "add", "--detach", "--quiet", str(place), commit)
        if made.returncode:
            raise ValueError(f"commit {commit!r} cannot be checked out: {made.stderr.strip()}")
        try:
            yield place
        finally:
            _git("worktree", "remove", "--force", str(place))


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)


@contextmanager
def turns_of(tree: Path, preset: str, steps: int) -> Iterator[Callable[[str], dict[str, Any]]]:
    """A process that does the turns of `turns.py` with a tree's engine; a word gives its answer."""
    command = [sys.executable, str(TURNS), preset, str(steps)]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=tree, env=environment) as process:
        assert process.stdin is not None and process.stdout is not None
        write, read = process.stdin, process.stdout

        def answer(word: str) -> dict[str, Any]:
            if word:
                write.write(word + "\n")
                write.flush()
            line = read.readline()
            if not line:
                raise ValueError(f"the engine of {tree} ended: its layout is not known, or it failed as said above")
            answered: dict[str, Any] = json.loads(line)
            return answered

        try:
            yield answer
        finally:
            process.kill()


def started(tree: Path) -> dict[str, float]:
    """Seconds from `python server.py` to ready, and megabytes (10^6) that its engine process holds then."""
    command = [sys.executable, "server.py", "--port", "0"]
    begin_s = time.perf_counter()
    with (
        tempfile.NamedTemporaryFile() as log,
        subprocess.Popen(
            command, cwd=tree, env=os.environ | {"PYTHONPATH": str(tree)}, stdout=log, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            while time.perf_counter() - begin_s < START_S and process.poll() is None:
                # By its name: to seek in `log` would move the place where the server writes on.
                found = re.search(r"(http://[\d.]+:\d+)/", Path(log.name).read_text())
                if found and _ready(found[1]):
                    return {"ready_s": time.perf_counter() - begin_s, "engine_mb": _engine_mb(process.pid)}
                time.sleep(POLL_S)
            raise ValueError(f"the server of {tree} did not get ready: {Path(log.name).read_text()[-1000:]}")
        finally:
            process.terminate()


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url + "/readyz", timeout=1.0) as response:
            return int(response.status) == 200
    except (urllib.error.URLError, OSError):
        return False


def _engine_mb(server: int) -> float:
    """Resident memory of the largest process that the server started."""
    children = psutil.Process(server).children(recursive=True)
    largest: int = max(child.memory_info().rss for child in children)
    return largest / 1e6


def against(commit: str, preset: str, steps: int, rounds: int) -> dict[str, Any]:
    """Figures of both, and how many times less this tree takes, turn by turn.

    Where ATEN_CPU_CAPABILITY is set, starts are not measured, and the report says so.

    Args:
        steps: denoising steps of a chunk; 0 for each commit's own.
        rounds: turns of planning and of whole chunks.

    Raises:
        ValueError: the commit is not known, or its engine cannot be driven.
    """
    with worktree(commit) as tree:
        trees = {"now": ROOT, "then": tree}
        report = {"against": commit, "steps": steps or "its own"} | _race(trees, preset, steps, rounds)
        if capability := os.environ.get("ATEN_CPU_CAPABILITY"):
            why = f"ATEN_CPU_CAPABILITY={capability} is set: an older server may emulate bfloat16 then"
            report |= {"not_measured": f"ready_s, engine_mb: {why}"}
        elif preset == "mini":
            report |= _starts(trees)
    return report


def _race(trees: dict[str, Path], preset: str, steps: int, rounds: int) -> dict[str, Any]:
    times: dict[str, Times] = {word: {name: [] for name in trees} for word in ("plan", "chunk")}
    with ExitStack() as stack:
        ask = {name: stack.enter_context(turns_of(tree, preset, steps)) for name, tree in trees.items()}
        tokens = [answer("")["tokens"] for answer in ask.values()]
        order = list(trees)
        for number in tqdm(range(WARM_UPS + rounds), unit="round"):
            for word in times:
                for name in order:
                    time_ms = ask[name](word)[word]
                    if number >= WARM_UPS:
                        times[word][name].append(time_ms)
            order.reverse()
    report = {f"{word}_ms": _compared(values) for word, values in times.items()}
    return report | {"tokens_of_a_plan": tokens[0]}


def _starts(trees: dict[str, Path]) -> dict[str, Any]:
    """Start and memory of the server with both, in turn."""
    found: dict[str, Times] = {figure: {name: [] for name in trees} for figure in ("ready_s", "engine_mb")}
    for _ in range(STARTS):
        for name, place in trees.items():
            for figure, value in started(place).items():
                found[figure][name].append(value)
    return {figure: _compared(values) for figure, values in found.items()}


def _compared(values: Times) -> dict[str, Any]:
    """Of both, and the ratio of each round's turns."""
    now, then = np.array(values["now"]), np.array(values["then"])
    return {"now": summary(now), "then": summary(then), "times_less": summary(then / now)}

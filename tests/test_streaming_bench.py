import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock

import psutil
import pytest
from fakes import FPS, serving

from streaming.bench import __main__ as command
from streaming.bench.__main__ import BenchConfig, bench, summary
from streaming.bench.measure import BenchError, Recording

COMMAND = (sys.executable, str(Path(__file__).parent / "fakes.py"))
SHORT = BenchConfig(4.0, settle_s=0.5, warm_joins=2, prompt_every_s=3.0, sample_every_s=0.2, growth_from_s=1.0)
CONDITIONS = {"device", "cores", "versions", "commit", "date", "preset", "steps", "codec", "seconds"}


def check(report: dict[str, Any]) -> None:
    """Holds for every good run, however busy the machine is."""
    assert report["conditions"].keys() >= CONDITIONS
    json.dumps(report, allow_nan=False)
    assert report["failed"] == []
    assert report["frames"] > SHORT.seconds * FPS / 2
    assert report["frames_unreadable"] == 0
    assert report["fps"] == pytest.approx(FPS, rel=0.5)
    assert report["interval_p50_ms"] == pytest.approx(1000 / FPS, rel=0.5)
    assert 0 < report["glass_to_glass_without_hold_p95_ms"] <= report["glass_to_glass_p95_ms"] < 5000
    assert report["ttff_s"]["warm"]["count"] == SHORT.warm_joins + 1
    assert report["prompt_to_pixel_s"]["count"] == 1
    assert 0 < report["prompt_to_pixel_s"]["median"] < SHORT.seconds
    assert {"plan", "render", "vae", "total"} == set(report["chunk_ms"])
    assert report["realtime_factor"] > 1
    assert f"fps                     {report['fps']}\n" in summary(report)


async def test_measures_a_server_that_it_starts(loopback: None) -> None:
    """Cold and warm joins, every figure and both processes' memory, from a server process of its own."""
    report = await bench(SHORT, None, COMMAND)
    check(report)
    assert report["ready_s"] > 0 and report["ttff_s"]["cold"] > 0
    assert report["rss_mb"]["server"]["end"] > 5 and report["rss_mb"]["engine"]["end"] > 5
    assert report["rss_mb"]["server"]["growth"] is not None
    assert "started" in report["conditions"]["server"]


async def test_measures_a_server_that_runs_and_gives_it_its_prompt_back(loopback: None) -> None:
    """With a URL there is no cold join; the channel's prompt is what it was, and nobody watches any more."""
    async with serving("--prompt", "a purple fish swims in the sea") as running:
        report = await bench(SHORT, running.url, ())
        after = await running.report()
    check(report)
    assert (report["ready_s"], report["ttff_s"]["cold"]) == (None, None)
    assert (after["prompt"], after["viewers"]) == ("a purple fish swims in the sea", 0)
    assert len(after["prompts"]) == 3


async def test_a_prompt_that_another_took_the_place_of_is_not_measured() -> None:
    """Other people may type meanwhile: a change without a frame of its own counts as refused."""
    server, config = Mock(), BenchConfig(1.0, settle_s=0.1, prompt_every_s=0.6)
    server.http.json = AsyncMock(return_value={"frame": None, "replaced_by": "a ball"})
    begin_s = time.monotonic()
    recording = Recording(begin_s, begin_s + 1.0, True, [])
    await command._change_prompts(server, config, recording)
    assert not recording.changes
    assert len(recording.refused) == 1 and "replaced by 'a ball'" in recording.refused[0]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "the server ended with status 1: it said nothing"),
        (["--url", "http://127.0.0.1:1"], "no reply"),
        (["--url", "localhost:8000"], "no reply: unknown url type: localhost"),
    ],
)
def test_failure_is_one_clear_line(
    argv: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that cannot start, or is not there: status 1, the reason, no file."""
    assert command.main([*argv, "--seconds", "20", "--json", str(tmp_path / "f.json")], ("false",)) == 1
    error = capsys.readouterr().err
    assert error.startswith("bench failed: ")
    assert words in error
    assert len(error.splitlines()) == 1
    assert os.listdir(tmp_path) == []


async def test_server_that_dies_ends_the_measurement(loopback: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is killed while it is watched is noticed at once, by whoever sees it first."""
    change = command._change_prompts

    async def change_and_kill(server: Any, *rest: Any) -> None:
        psutil.Process(server.pid).kill()
        await change(server, *rest)

    monkeypatch.setattr(command, "_change_prompts", change_and_kill)
    async with asyncio.timeout(60):
        with pytest.raises(ExceptionGroup) as caught:
            await bench(SHORT, None, COMMAND)
    assert caught.group_contains(BenchError, match="ended with status -9|no reply|video ended", depth=1)


def test_termination_stops_the_server_too(tmp_path: Path) -> None:
    """SIGTERM ends the bench with status 1 and leaves neither a process nor a file."""
    program = "import sys; from streaming.bench.__main__ import main; sys.exit(main(sys.argv[4:], sys.argv[1:3]))"
    argv = [sys.executable, "-c", program, *COMMAND, "--", "--seconds", "60", "--json", str(tmp_path / "f.json")]
    root = Path(__file__).parents[1]
    process = subprocess.Popen(argv, cwd=root, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    # The bar appears when the server is ready.
    first = process.stderr.read(len("joins"))
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 1
    assert "joins" in first + rest
    assert rest.endswith("bench stopped; nothing was written\n")
    assert len(children) >= 2
    assert not psutil.wait_procs(children, timeout=10)[1]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "argv",
    [
        ["--seconds", "5"],
        ["--seconds", "nan"],
        ["--seconds", "inf"],
        ["--codec", "av1"],
        ["--json", "/nowhere/at/all.json"],
        ["--json", "/"],
        ["--json", "x" * 256],
    ],
)
def test_bad_arguments_are_refused(argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each bad value is named on stderr and ends with status 2, before anything starts."""
    with pytest.raises(SystemExit) as caught:
        command.main(["--json", str(tmp_path / "f.json"), *argv], ("false",))
    assert caught.value.code == 2
    assert argv[0].strip("-") in capsys.readouterr().err

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock

import numpy as np
import psutil
import pytest
from fakes import FPS, serving

from streaming.bench import __main__ as command
from streaming.bench import server_process, watch, words
from streaming.bench.compare import SCHEMA, value
from streaming.bench.profiles import PROFILES
from streaming.bench.recording import Arrival, BenchError, Recording
from streaming.bench.run import BenchPlan, measure
from streaming.bench.server_process import MeasuredServer
from streaming.bench.watch import WatchConfig
from streaming.bench.waves import WaveConfig
from streaming.media.hub import Hub, Picture

COMMAND = (sys.executable, str(Path(__file__).parent / "fakes.py"))
CONFIG = WatchConfig(8.0, settle_s=0.5, first_prompt_s=4.0, prompt_every_s=4.0, sample_every_s=0.2, growth_from_s=1.0)
CONDITIONS = {"device", "cores", "versions", "commit", "date", "preset", "steps", "codec", "seconds"}
NIGHT = ("a white ball floats up under the stars at night",)


def plan(**changed: Any) -> BenchPlan:
    return BenchPlan(**{"watch": CONFIG, "json": Path("unused.json"), "warm_joins": 2} | changed)


@pytest.fixture(autouse=True)
def dark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts that the fake engine shows; nobody judges its pictures."""
    monkeypatch.setattr(watch, "PROMPTS", NIGHT)
    monkeypatch.setattr(words, "PRESET", "none")
    monkeypatch.setattr(watch, "MIDDLE_LIMIT_S", 0.5)
    monkeypatch.setattr(server_process, "REST_S", 1.0)


def check(report: dict[str, Any]) -> None:
    """Holds for every good run, however busy the machine is."""
    assert report["schema"] == SCHEMA
    assert report["conditions"].keys() >= CONDITIONS
    json.dumps(report, allow_nan=False)
    assert report["failed"] == report["not_measured"] == []
    assert report["frames"] > CONFIG.seconds * FPS / 2
    assert report["frames_unreadable"] == report["frames_misnumbered"] == 0
    assert report["fps"] == pytest.approx(FPS, rel=0.5)
    assert report["interval_p50_ms"] == pytest.approx(1000 / FPS, rel=0.5)
    assert 0 < report["transport_ms"]["median"] <= report["glass_to_glass_ms"]["median"] < 5000
    assert report["frame_age_ms"]["median"] > report["glass_to_glass_ms"]["median"]
    assert report["ttff_s"]["warm"]["count"] == 3
    assert all(report["ttff_split_ms"][step]["count"] == 3 for step in ("http", "ice", "dtls", "key_frame", "decode"))
    assert report["prompt_to_pixel_s"]["flow"]["count"] == 1
    (row,) = report["prompts"]
    assert 0 < row["pixel_s"] < CONFIG.seconds and row["appear_frames"] >= 0
    assert sum(row["split_ms"].values()) == pytest.approx(row["pixel_s"] * 1000, abs=3)
    assert {"plan", "render", "vae", "total"} == set(report["chunk_ms"])
    assert report["realtime_factor"] > 1
    assert report["encode_ms"] > 0 and report["packet_loss"] == 0
    assert 0 < report["full_speed"]["share"]["watched"] <= 1
    assert report["full_speed"]["encode_ms"] <= report["encode_ms"]
    assert len(report["playback"]) == 8 and report["series"]["late_ms"]


def test_measures_a_server_that_it_starts(loopback: None) -> None:
    """Cold and warm joins, every figure, both processes' memory and computing, from a server process of its own."""
    report = measure(plan(), COMMAND)
    check(report)
    assert report["cold_start_s"] > report["ready_s"] > 0 and report["ttff_s"]["cold"] > 0
    assert report["rss_mb"]["server"]["end"] > 5 and report["rss_mb"]["engine"]["end"] > 5
    assert report["rss_mb"]["server"]["growth"] is not None
    assert min(report["cpu_percent"][name] for name in ("server", "engine", "bench")) >= 0
    assert "started" in report["conditions"]["server"]


async def test_measures_a_server_that_runs_and_gives_it_its_prompt_back(loopback: None) -> None:
    """With a URL there is no cold join; the channel's prompt is what it was, and nobody watches any more."""
    async with serving("--prompt", "a purple fish swims in the sea") as running:
        report = await asyncio.to_thread(measure, plan(url=running.url), ())
        after = await running.report()
    check(report)
    assert (report["ready_s"], report["cold_start_s"], report["ttff_s"]["cold"]) == (None, None, None)
    assert (after["prompt"], after["viewers"]) == ("a purple fish swims in the sea", 0)
    assert len(after["prompts"]) == 3


async def test_measures_an_endpoint_of_any_make(loopback: None, tmp_path: Path) -> None:
    """By WHEP alone: no marker, no API; a command changes the prompt, and the viewer sees when."""
    script = tmp_path / "change.py"
    script.write_text(CHANGE)
    async with serving("--control-token", "secret", "--view-token", "sight") as running:
        changing = f"{sys.executable} {script} {running.url}"
        config = dataclasses.replace(CONFIG, codec=None, command=changing)
        asked = BenchPlan(config, Path("unused.json"), whep=f"{running.url}/whep/main", token="sight", warm_joins=1)
        report = await asyncio.to_thread(measure, asked, ())
        metrics = (await running.http.get("/metrics", headers={"authorization": "Bearer secret"})).text
    assert report["failed"] == []
    assert report["prompt_to_pixel_s"]["flow"]["count"] == 1
    assert report["prompts"][0]["split_ms"].keys() == {"answer"}
    assert report["fps"] == pytest.approx(FPS, rel=0.5)
    # Without a marker a frame is known by its time, which a server leaves out that came too late.
    assert report["frames_missing"] == 0 or 'clock_slips_total{channel="main"} 0.0' not in metrics
    for path in ("frame_age_ms.median", "chunk_ms.total.median", "cpu_percent.server", "frames_unreadable", "ready_s"):
        assert value(report, path) is None


async def test_planted_faults_are_found_by_their_figures(loopback: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every 32 frames one is dropped, one is sent twice, one has a wrong number, and one comes 300 ms late."""
    encode = Hub.encode

    async def faulty(hub: Hub, picture: Picture, pts: int) -> None:
        place = picture.index % 32
        if place == 28:
            await asyncio.sleep(0.3)
        if place == 20:
            picture = dataclasses.replace(picture, index=picture.index + 5)
        if place != 4:
            await encode(hub, picture, pts)
        if place == 12:
            await encode(hub, picture, pts + 1000)

    monkeypatch.setattr(Hub, "encode", faulty)
    async with serving() as running:
        config = dataclasses.replace(CONFIG, seconds=10.0)
        report = await asyncio.to_thread(measure, plan(url=running.url, watch=config, warm_joins=0), ())
    assert min(report[name] for name in ("frames_missing", "frames_doubled", "frames_misnumbered", "stalls")) >= 1
    assert report["frames_misnumbered"] <= 10.0 * FPS / 32 + 1
    assert report["longest_gap_ms"] > 300


CHANGE = """
import json, os, sys, urllib.request
body = json.dumps({"prompt": os.environ["PROMPT"], "mode": "flow"}).encode()
headers = {"Content-Type": "application/json", "Authorization": "Bearer secret"}
urllib.request.urlopen(urllib.request.Request(sys.argv[1] + "/channels/main", body, headers, method="PATCH"))
"""


async def test_a_command_that_fails_is_named(loopback: None) -> None:
    """With its status and its last line."""
    config = dataclasses.replace(CONFIG, codec=None, command="echo first >&2; echo no such prompt >&2; exit 3")
    async with serving() as running:
        asked = BenchPlan(config, Path("unused.json"), whep=f"{running.url}/whep/main", warm_joins=0)
        with pytest.raises(ExceptionGroup) as caught:
            await asyncio.to_thread(measure, asked, ())
    assert caught.group_contains(BenchError, match="ended with status 3: no such prompt", depth=1)


def test_a_wave_of_viewers_is_measured(loopback: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Viewers in a process of their own: all join, and their cost, their bytes and what they disturb is told."""
    monkeypatch.setattr("streaming.bench.waves.QUIET_S", 2.0)
    report = measure(plan(warm_joins=0, wave=WaveConfig(3, 10.0, 3.0)), COMMAND)
    wave = report["wave"]
    assert (wave["viewers"], wave["crowd"]["failed"]) == (3, [])
    assert wave["cpu_percent_full"] is not None and wave["bytes_a_viewer_s"] > 1000
    assert wave["crowd"]["ttff_s"]["count"] == 3 and wave["crowd"]["frames"] > 3 * FPS
    assert wave["crowd"]["packets_missing"] == 0
    assert wave["recovery_s"] >= 0


def test_what_a_machine_lacks_is_said_and_the_rest_measured(monkeypatch: pytest.MonkeyPatch, loopback: None) -> None:
    """No browser, no right to make namespaces: a line each."""
    monkeypatch.setattr("streaming.bench.chromium.CHROMIUM", "/nowhere/chromium")
    monkeypatch.setenv("PATH", "/nowhere")
    report = measure(plan(browser=True, profiles=("loss1",), warm_joins=0), COMMAND)
    assert report["not_measured"] == [
        "browser: /nowhere/chromium is missing: apt-get install chromium",
        "profile loss1: ip is missing: apt-get install iproute2",
    ]
    assert report["failed"] == [] and report["frames"] > 0
    assert set(PROFILES) == {"clean", "loss1", "loss5", "cap300k", "blackhole3s", "lan", "mobile"}


def told(at_s: float, buffered_s: float) -> tuple[float, dict[str, Any]]:
    return at_s, {"fps": 8.0, "buffered_s": buffered_s}


async def test_a_change_waits_for_a_certain_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports say what was buffered, frames that came since then are no longer; it must fall there, not begin there."""
    monkeypatch.setattr(watch, "MIDDLE_LIMIT_S", 30.0)
    recording = Recording(100.0, 200.0, True, [])
    waiting = asyncio.create_task(watch.at_middle(recording))
    await asyncio.sleep(0.05)
    recording.samples.append(told(1.0, 3.0))
    await asyncio.sleep(0.05)
    recording.samples.append(told(2.0, 3.75))
    recording.arrivals.append(seen_at(101.5))
    await asyncio.sleep(0.05)
    recording.arrivals.append(seen_at(102.1))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    recording.arrivals.append(seen_at(102.2))
    await asyncio.wait_for(waiting, 10)


async def test_a_buffer_that_never_is_so_large_is_not_waited_for() -> None:
    """Other presets have other buffers."""
    recording = Recording(100.0, 200.0, True, [], samples=[told(1.0, 1.0)])
    await asyncio.wait_for(watch.at_middle(recording), 10)


def seen_at(at_s: float) -> Arrival:
    return Arrival(at_s, 0.0, None, np.zeros(144, np.float32), None, (192, 128))


async def test_a_prompt_that_another_took_the_place_of_is_not_measured() -> None:
    """Other people may type meanwhile: a change without a frame of its own counts as refused."""
    http = Mock()
    http.json = AsyncMock(return_value={"frame": None, "replaced_by": "a ball"})
    server = MeasuredServer(http, "/channels/main", None, (), None, Mock())
    begin_s = time.monotonic()
    recording = Recording(begin_s, begin_s + 1.0, True, [])
    await watch._change_prompts(
        server, WatchConfig(1.0, settle_s=0.1, first_prompt_s=0.1, prompt_every_s=0.6), recording
    )
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
    assert command.main([*argv, "--seconds", "30", "--json", str(tmp_path / "f.json")], ("false",)) == 1
    error = capsys.readouterr().err
    assert error.startswith("bench failed: ")
    assert words in error
    assert len(error.splitlines()) == 1
    assert os.listdir(tmp_path) == []


async def test_server_that_dies_ends_the_measurement(loopback: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is killed while it is watched is noticed at once, by whoever sees it first."""
    change = watch._change_prompts

    async def change_and_kill(server: Any, *rest: Any) -> None:
        psutil.Process(server.pid).kill()
        await change(server, *rest)

    monkeypatch.setattr(watch, "_change_prompts", change_and_kill)
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.to_thread(measure, plan(warm_joins=0), COMMAND)
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
        ["--html", "/nowhere/at/all.html"],
        ["--command", "true"],
        ["--url", "http://a", "--profile", "loss1"],
        ["--whep", "http://a", "--peers", "pion"],
        ["--url", "http://a", "--whep", "http://b"],
        ["--repeat", "0"],
        ["--viewers", "0"],
        ["--ramp", "0", "--viewers", "2"],
        ["--mode", "jump"],
    ],
)
def test_bad_arguments_are_refused(argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each bad value is named on stderr and ends with status 2, before anything starts."""
    with pytest.raises(SystemExit) as caught:
        command.main(["--json", str(tmp_path / "f.json"), *argv], ("false",))
    assert caught.value.code == 2
    assert argv[0].strip("-") in capsys.readouterr().err

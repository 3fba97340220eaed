"""The chaos test: what its viewer calls wrong, that its faults do what they say, and a short run of all of it."""

import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from streaming.bench.client import Http
from streaming.bench.recording import Arrival, BenchError
from streaming.chaos import __main__ as command
from streaming.chaos import faults
from streaming.chaos.faults import Fault, Scene
from streaming.chaos.memory import SETTLED_S, Growth, Sample
from streaming.chaos.report import Flaw, Report
from streaming.chaos.stage import Stage
from streaming.chaos.witness import AGAIN, MOST_GAP_S, MOST_IN_A_ROW, SETTLED_FRAMES, Witness
from streaming.media.marker import Mark

FAKE = (sys.executable, str(Path(__file__).parent / "fakes.py"))


def watched(*numbers: int, level: float = 0.0, witness: Witness | None = None) -> Witness:
    """A witness that saw frames of these numbers, a little lighter each."""
    witness = witness or Witness(Http("http://nowhere"))
    for number in numbers:
        sketch = np.full(144, level + 0.5 * number, np.float32)
        witness.see(Arrival(number / 8, number / 8, Mark(number, 0), sketch, None, (192, 128)))
    return witness


def test_frames_in_order_are_right() -> None:
    """Each once or again; a few that were lost on the way are counted."""
    witness = watched(0, 1, 1, 1, 2, 3, 5, 6)
    assert witness.findings == []
    assert (witness.frames, witness.repeats, witness.lost, witness.last) == (6, 2, 1, 6)


def test_frames_out_of_order_are_wrong() -> None:
    """One that went back, and many that are not there."""
    assert [finding.kind for finding in watched(5, 6, 4).findings] == ["wrong"]
    assert watched(1, 2, 3 + MOST_IN_A_ROW).findings == []
    (finding,) = watched(1, 2, 4 + MOST_IN_A_ROW).findings
    assert finding == Flaw("missing", f"frames 3 to {3 + MOST_IN_A_ROW}")


def test_a_video_that_stands_is_wrong() -> None:
    """Whatever happened, new frames come again before long."""
    witness = watched(0, 1)
    later = 1.0 + MOST_GAP_S
    witness.see(Arrival(later, later, Mark(2, 0), np.zeros(144, np.float32), None, (192, 128)))
    (finding,) = witness.findings
    assert finding == Flaw("missing", "no new frame for 91 s before frame 2")


def test_another_server_may_leave_out_a_little() -> None:
    """What it had made and not shown; no more, and it does not begin anew."""
    for number, findings in ((112, 0), (108, 0), (111 + AGAIN, 0), (112 + AGAIN, 1), (0, 1)):
        witness = watched(109, 110)
        witness.another_server = True
        assert len(watched(number, witness=witness).findings) == findings
        assert not witness.another_server


def test_another_video_is_wrong() -> None:
    """A step far beyond the usual one, but for a change that was asked for."""
    witness = watched(*range(20))
    assert watched(20, level=80.3, witness=witness).flaws == [Flaw("wrong", "frame 20 is of another video: 81 levels")]
    watched(*range(21, 100), level=80.3, witness=witness)
    watched(100, level=160.0, witness=witness)
    assert len(witness.flaws) == 2
    # A prompt began there, and the next two chunks work it out.
    witness.changes.add(20)
    assert [flaw.words for flaw in witness.flaws] == ["frame 100 is of another video: 80 levels"]
    witness.changes.add(100 - SETTLED_FRAMES)
    assert len(witness.flaws) == 1
    witness.changes.add(101 - SETTLED_FRAMES)
    assert witness.flaws == witness.findings == []


def grown(minutes: int, mb_a_minute: float = 0.0, more_files: float = 0.0, lives: int = 1) -> Growth:
    """A server that is looked at every second behind its first minutes, with peaks as of viewers that come and go."""
    growth = Growth("engine")
    for second in range(60 * minutes):
        at_s, peak = SETTLED_S - 60 + second, second % 7
        pid, files = 1 + second * lives // (60 * minutes), 30 + 3 * peak + more_files * (second > 30 * minutes)
        growth.samples.append(Sample(at_s, pid, 150 + peak + second / 60 * mb_a_minute, files))
    return growth


def test_memory_that_stays_is_right() -> None:
    """What viewers take comes back; a slope within its noise is none, and a short run has none."""
    found = grown(20).figures()
    assert (found["minutes"], found["memory_mb_a_minute"], found["files_before"]) == (18, 0.0, 30)
    assert grown(20).findings() == [] and grown(5).figures() == {} and Growth("engine").figures() == {}
    # No server lived long enough.
    assert grown(20, mb_a_minute=1.0, lives=5).figures() == {}


def test_memory_that_grows_is_wrong() -> None:
    """Above its noise, and files that stay open."""
    (finding,) = grown(20, mb_a_minute=0.5).findings()
    assert finding.kind == "leak" and finding.words.startswith("engine: memory rises by 0.500 MB a minute")
    # So do steps that come again.
    steps = grown(30)
    steps.samples = [replace(one, memory_mb=one.memory_mb + at // 480) for at, one in enumerate(steps.samples)]
    assert len(steps.findings()) == 1
    (finding,) = grown(20, more_files=1).findings()
    assert finding.words == "engine: 31 files are open at rest, where 30 were"


def test_the_server_that_is_followed_is_not_killed() -> None:
    """In a long run, between its first and last minutes; where nothing else is asked for it is, all the same."""
    everything, kills = faults.FAULTS, dict[Fault, int]({faults.server_killed: 1})
    for minutes, at_s, killed in ((2, 60, True), (30, 60, True), (30, 600, False), (30, 1700, True)):
        assert (faults.server_killed in command._allowed(everything, at_s, 60 * minutes)) == killed
    assert command._allowed(kills, 600, 1800) == kills


def test_reports_are_for_people_and_programs() -> None:
    """Each fault, figure and finding is in both."""
    flaw = Flaw("wrong", "frame 4 follows frame 6")
    report = Report(
        7,
        61.0,
        {"engine_killed": 2},
        {"frames": 480},
        {"server": {"files_after": 13, "memory_mb": [131.5]}},
        findings=[flaw],
    )
    text = report.text()
    assert "seed 7, 61 s, 2 faults" in text and "WRONG" in text and "frame 4 follows frame 6" in text
    (finding,) = json.loads(json.dumps(report.as_json()))["findings"]
    assert finding == {"kind": "wrong", "words": "frame 4 follows frame 6"}
    assert "13  files after" in text and "at rest" not in Report(7).text()
    assert "nothing was wrong" in Report(7).text()


@pytest.fixture
async def scene(tmp_path: Path, loopback: None) -> AsyncIterator[Scene]:
    """A server with engines that draw test frames, and a viewer."""
    stage = Stage((*FAKE, "--spare-engine"), tmp_path)
    await stage.start()
    try:
        yield Scene(stage, Witness(stage.http), random.Random(1))
    finally:
        assert await stage.stop() == []


async def test_faults_do_what_they_say(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines and servers end and come back, disks and viewers suffer; a sound server makes none of it a finding."""
    monkeypatch.setattr(Scene, "wait", lambda self, least_s, most_s: asyncio.sleep(0.2))
    stage = scene.stage
    watching = asyncio.create_task(scene.witness.run())
    try:
        for fault in (faults.bad_offers, faults.prompts_storm, faults.events_unread, faults.channels_come_and_go):
            assert await fault(scene) == []
        for fault in (faults.viewers_die, faults.server_stopped, faults.engine_stopped, faults.spare_killed):
            assert await fault(scene) == []
        (stage.state / "main").mkdir(exist_ok=True)
        (stage.state / "main" / "journal.jsonl").write_text("{}\n")
        for fault in (faults.disk_gone, faults.disk_hangs):
            assert await fault(scene) == []
        assert (stage.state / "main" / "journal.jsonl").read_text() == "{}\n"
        engine = stage.engine()
        assert await faults.engine_killed(scene) == []
        async with asyncio.timeout(20):
            while stage.engine() in (None, engine):  # noqa: ASYNC110 - the log is all that there is
                await asyncio.sleep(0.05)
        await stage.ready()
        server = stage.pid
        assert await faults.server_killed(scene) == []
        assert scene.stage.pid != server and not psutil.pid_exists(server)
        assert scene.witness.another_server or scene.witness.frames
        for pid in (stage.pid, stage.engine()):
            look = stage.look(pid, 0.0)
            assert look is not None and look.pid == pid and look.memory_mb > 10 and look.files > 3
        assert stage.look(server, 0.0) is stage.look(None, 0.0) is None
        assert (await stage.report())["id"] == "main"
    finally:
        watching.cancel()
        await asyncio.wait([watching])


async def test_a_server_that_does_not_start_is_told(tmp_path: Path, loopback: None) -> None:
    """The error has the last words of its log; what was answered wrongly is a finding."""
    stage = Stage((*FAKE, "--weights", "missing"), tmp_path)
    with pytest.raises(BenchError, match="the server ended with status 1: .*no weights in 'missing'"):
        await stage.start()
    await stage.stop()
    assert faults._answers("an offer", [400, None, 500], {400}) == [Flaw("answer", "an offer was answered with 500")]


def test_bad_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A length that is none ends with status 2; a server that does not start with 1 and a line."""
    for minutes in ("0", "-1", "nan", "inf"):
        with pytest.raises(SystemExit) as caught:
            command.main(["--minutes", minutes])
        assert caught.value.code == 2
    for place in ("r.log", "missing/r.json"):
        with pytest.raises(SystemExit):
            command.main(["--minutes", "0.1", "--json", place])
    assert command.main(["--minutes", "0.1"], (sys.executable, "-c", "raise SystemExit('no')")) == 1
    assert "chaos failed: the server ended with status 1" in capsys.readouterr().err


def test_a_run_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str], loopback: None) -> None:
    """An engine that is killed costs no frame; `.ci/run` has two minutes of all faults, with the real engine."""
    argv = ["--minutes", "0.2", "--seed", "7", "--only", "engine_killed", "--json", str(tmp_path / "r.json")]
    assert command.main(argv, FAKE) == 0, capsys.readouterr().out
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["seen"]["frames"] > 0 and report["faults"]["engine_killed"] > 0 and not report["findings"]
    assert "is ready" in (tmp_path / "r.log").read_text()
    assert [name for _, name, _ in report["timeline"]] == ["engine_killed"] * report["faults"]["engine_killed"]
    assert report["conditions"]["cores"] > 0 and report["growth"] == {"server": {}, "engine": {}}
    assert report["command"].startswith("python -m streaming.chaos --minutes 0.2 --seed 7")


def test_a_calm_run_has_no_faults(capsys: pytest.CaptureFixture[str], loopback: None) -> None:
    """It is watched all the same."""
    assert command.main(["--minutes", "0.1", "--calm"], FAKE) == 0
    said = capsys.readouterr().out
    assert ", 0 faults\n" in said and "1  joins" in said and "nothing was wrong" in said


def test_a_run_with_a_flaw_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], loopback: None
) -> None:
    """These engines forget the video with their server: the exit status is 1, and the words say which frame came."""
    monkeypatch.setattr("streaming.chaos.witness.AGAIN", 0)
    assert command.main(["--minutes", "0.1", "--seed", "7", "--only", "server_killed"], FAKE) == 1
    said = capsys.readouterr().out
    assert "WRONG" in said and "of another server follows frame" in said

"""`generate` and the engine process by several processes: the same video, clear errors, and nothing left behind."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
from rank_workers import LIMIT_S, forked, run, serve_ranks, take_part, use_tiny
from test_engine_main import _begun
from test_interleave import MemoryRing
from tiny import write_weights

import server
from engine.__main__ import main
from engine.config import PRESETS
from engine.live.process import serve
from engine.loading import options
from engine.wire.messages import Failed, FramesReady, OpenChannel, Ready
from engine.wire.settings import ChannelSettings, EngineSettings
from streaming.engines.options import supervisor_config

ROOT = Path(__file__).parents[1]
SECONDS = "7.5"  # three chunks


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tiny preset's weights; `--preset tiny` works, in float32."""
    monkeypatch.setitem(PRESETS, "tiny", None)
    monkeypatch.setattr(options, "pick_dtype", None)
    use_tiny()
    folder = tmp_path / "weights"
    write_weights(folder)
    return folder


def _words(out: Path, weights: Path, *more: str) -> list[str]:
    given = ["--prompt", "a red ball", "--out", str(out), "--preset", "tiny", "--weights", str(weights)]
    return [*given, "--device", "cpu", *more]


def _read(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray() for frame in container.decode(video=0)]).astype(int)


@pytest.mark.parametrize(("ranks", "pipeline"), [(2, False), (3, True), (4, True)])
def test_ranks_write_the_video_of_one(ranks: int, pipeline: bool, tmp_path: Path, weights: Path) -> None:
    """Frames, their number and a change of prompt are those of one process, however the work is divided."""
    more = ["--seconds", SECONDS, "--seed", "5", "--change", "4:the blue sea"]
    assert main(["generate", *_words(tmp_path / "one.mp4", weights, *more)]) == 0
    more = [*more, "--ranks", str(ranks), *["--pipeline"] * pipeline]
    assert run(ranks, take_part, _words(tmp_path / "many.mp4", weights, *more)) == [None] * ranks
    one, many = _read(tmp_path / "one.mp4"), _read(tmp_path / "many.mp4")
    # A pixel may round to its neighbour, and the coder make a little more of it.
    assert one.shape == many.shape == (60, 48, 48) and abs(one - many).mean() < 0.02


def test_a_rank_that_is_lost_ends_the_command(tmp_path: Path) -> None:
    """One line says which rank and how, the old file stays; when rank 0 is killed the others end. None is left."""
    outs = [tmp_path / name / "v.mp4" for name in ("follower", "leader")]
    for out in outs:
        out.parent.mkdir()
        out.write_text("old")
    processes = [_begin(["--seconds", "9999", "--ranks", "2", "--out", str(out)]) for out in outs]
    others = [_other(process, out.parent) for process, out in zip(processes, outs, strict=True)]
    others[0].kill()
    processes[1].kill()
    lines, _ = [process.communicate(timeout=LIMIT_S)[1].splitlines() for process in processes]
    assert processes[0].returncode == 1 and lines[-1] == "generate: rank 1 was ended by SIGKILL", lines
    assert "Traceback" not in "".join(lines)
    assert [path.name for path in outs[0].parent.iterdir()] == ["v.mp4"] and outs[0].read_text() == "old"
    psutil.wait_procs(others, LIMIT_S)
    assert not any(other.is_running() for other in others)


def test_the_command_begins_the_other_ranks_itself(tmp_path: Path) -> None:
    """With the shipped weights; they are gone with it."""
    words = ["--prompt", "a red ball", "--device", "cpu", "--seconds", "1", "--steps", "1", "--ranks", "2"]
    assert main(["generate", *words, "--out", str(tmp_path / "v.mp4")]) == 0
    assert len(_read(tmp_path / "v.mp4")) == 8 and not _ranks_of(psutil.Process())


def test_ranks_that_differ_are_refused_in_one_line(tmp_path: Path) -> None:
    """Started as torchrun does, with other steps on rank 1: rank 0 names the field and both values."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    words = ["--seconds", "1", "--out", str(tmp_path / "v.mp4"), "--steps"]
    processes = [
        _begin([*words, str(rank + 1)], **torchrun, RANK=str(rank), LOCAL_RANK=str(rank), GLOO_SOCKET_IFNAME="lo")
        for rank in range(2)
    ]
    said = [process.communicate(timeout=LIMIT_S)[1].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert said == [["generate: ranks differ in --steps: 1 on rank 0, 2 on rank 1; start all alike"], []]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--ranks", "3"], "3 ranks cannot share the 2 attention heads of preset 'tiny': give fewer"),
        (["--ranks", "2", "--pipeline"], "a pipeline needs at least 3 ranks, not 2"),
        (["--pipeline"], "--pipeline is for several processes: give --ranks"),
        (["--ranks", "4", "--pipeline", "--start", "x.png"], "--start is not for a pipeline"),
    ],
)
def test_ranks_without_work_are_refused(
    more: list[str], words: str, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2, one line, no process and no file."""
    assert main(["generate", *_words(tmp_path / "v.mp4", weights, "--seconds", "1", *more)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and words in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_an_engine_of_ranks_streams_and_its_crash_is_told() -> None:
    """Channels are rendered by two processes; when the second is killed the engine ends as by any other error."""
    messages: list[Any] = []
    ours, theirs = multiprocessing.Pipe()
    ours.send(OpenChannel("main", ChannelSettings("a red ball moves slowly to the right", 3, steps=1)))
    process = forked(serve_ranks, theirs, 2)
    theirs.close()
    with ours:
        try:
            while not messages or not isinstance(messages[-1], FramesReady | Failed):
                messages.append(ours.recv())
            assert process.pid is not None
            [other] = _ranks_of(psutil.Process(process.pid))
            other.kill()
            ours.send(OpenChannel("another", ChannelSettings("a blue boat on the sea", 4, steps=1)))
            while True:
                messages.append(ours.recv())
        except (EOFError, ConnectionResetError):
            process.join(LIMIT_S)
    told = [message for message in messages if isinstance(message, Failed | Ready)]
    assert [type(message) for message in told] == [Ready, Failed]
    assert isinstance(told[-1], Failed) and told[-1].error == "RankError: rank 1 was ended by SIGKILL"
    assert process.exitcode == 1 and not other.is_running()


def test_an_engine_of_too_many_ranks_is_told() -> None:
    """What the preset has no work for ends the process with one line, and no exception."""
    ours, theirs = multiprocessing.Pipe()
    with ours:
        serve(EngineSettings("mini", device="cpu", ranks=4), MemoryRing(8), theirs)  # type: ignore[arg-type]
        message = ours.recv()
    assert isinstance(message, Failed) and message.error.startswith("4 ranks cannot share the 3 attention heads")


def test_options_of_the_server_say_how_many_ranks_an_engine_has() -> None:
    """One by default, and then with a spare; more have none, and are not for engines of a Ray cluster."""
    alone, several = server.parser().parse_args([]), server.parser().parse_args(["--ranks", "2"])
    assert [server.engine_settings(one).ranks for one in (alone, several)] == [1, 2]
    assert [supervisor_config(one).spare_s is None for one in (alone, several)] == [False, True]
    with pytest.raises(ValueError, match="--ranks is for engines of this machine"):
        supervisor_config(server.parser().parse_args(["--ranks", "2", "--ray", "127.0.0.1:6379"]))


def _begin(words: list[str], **environment: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "engine", "generate", "--prompt", "a red ball", "--device", "cpu", *words]
    return subprocess.Popen(argv, cwd=ROOT, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True)


def _other(process: subprocess.Popen[str], folder: Path) -> psutil.Process:
    """Rank 1 of a command that has written some of its file."""
    until = time.monotonic() + LIMIT_S
    while not _begun(folder):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.01)
    [other] = _ranks_of(psutil.Process(process.pid))
    return other


def _ranks_of(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children() if any("spawn_main" in word for word in child.cmdline())]

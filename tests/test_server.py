import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

FAKES = str(Path(__file__).parent / "fakes.py")


@contextmanager
def started(*argv: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The server as a process of its own, ready, and its URL."""
    command = [sys.executable, FAKES, "--port", "0", "--ice-address", "127.0.0.1", *argv]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        url = ""
        for line in process.stderr:
            if "http://" in line or "https://" in line:
                url = line.split()[-1].rstrip("/")
            if "is ready" in line:
                break
        assert url
        yield process, url
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def family(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def gone(processes: list[psutil.Process], limit_s: float) -> bool:
    return not psutil.wait_procs(processes, timeout=limit_s)[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_everything(number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end server and engine within 3 s, with status 0 and without a traceback."""
    with started() as (process, url):
        children = family(process.pid)
        assert len(children) >= 1
        shared = set(os.listdir("/dev/shm"))
        # An open event stream must not hold the server.
        with httpx.stream("GET", f"{url}/channels/main/events") as stream:
            next(stream.iter_lines())
            began_s = time.monotonic()
            process.send_signal(number)
            assert process.wait(5) == 0
        assert time.monotonic() - began_s < 3
        assert gone(children, 3)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
        assert set(os.listdir("/dev/shm")) <= shared


def test_ctrl_c_of_a_terminal_reaches_all_processes() -> None:
    """A terminal signals the whole process group; the engine leaves the decision to the server."""
    with started() as (process, _):
        children = family(process.pid)
        for child in [psutil.Process(process.pid), *children]:
            child.send_signal(signal.SIGINT)
        assert process.wait(5) == 0
        assert gone(children, 3)
        assert process.stderr is not None
        text = process.stderr.read()
        assert "Traceback" not in text
        assert "restarting" not in text


def test_engine_ends_with_a_killed_server() -> None:
    """kill -9 of the server takes the engine and every helper process with it."""
    with started() as (process, _):
        children = family(process.pid)
        shared = set(os.listdir("/dev/shm"))
        process.kill()
        process.wait()
        assert gone(children, 5)
        assert set(os.listdir("/dev/shm")) <= shared


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, FAKES, *argv], capture_output=True, text=True, timeout=30)


def test_port_in_use_is_one_clear_line() -> None:
    """A taken port ends with status 2 and one line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("--port", str(port))
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert f"cannot listen on 127.0.0.1 port {port}" in result.stderr


def test_missing_weights_are_one_clear_line() -> None:
    """An engine that cannot start ends the server with status 1, its own words and no traceback."""
    result = run("--port", "0", "--weights", "missing")
    assert result.returncode == 1
    assert "no weights in 'missing': give --weights a folder with checkpoint files" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "argv",
    [
        ["--port", "70000"],
        ["--port", "x"],
        ["--seed", "-1"],
        ["--steps", "0"],
        ["--log-level", "loud"],
        ["--recordings", "/proc/nothing"],
        ["--recordings", "/dev/null"],
        ["--recordings-gb", "0"],
        ["--memory", "0"],
        ["--max-viewers", "0"],
        ["--seed", str(1 << 32)],
        ["--prompt", "  "],
        ["--prompt", "x" * 3000],
        ["--ice-address", "localhost"],
        ["--public-address", "example.org"],
        ["--media-ports", "40010-40000"],
        ["--ice-server", "stun://example.org"],
        ["--turn-secret", ""],
        ["--token", ""],
        ["--token", "snöwman"],
        ["--token", "two words"],
        ["--control-token", ""],
        ["--view-token", " "],
        ["--allow-origin", "example.org"],
        ["--root-path", "live"],
        ["--root-path", "/whep"],
        ["--preset", "huge"],
        ["--device", "tpu"],
    ],
)
def test_bad_arguments_are_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Each bad value is named on stderr and ends with status 2, before anything starts."""
    import server

    with pytest.raises(SystemExit) as caught:
        server.main(argv)
    assert caught.value.code == 2
    assert f"argument {argv[0]}" in capsys.readouterr().err


async def test_readiness_follows_the_engine(loopback: None) -> None:
    """Before the engine is warm /readyz is 503 and an offer 409, while /healthz is fine."""
    from fakes import Watcher

    import server
    from streaming.http.listening import listen

    arguments = server.parser().parse_args(["--port", "0", "--ice-address", "127.0.0.1"])
    stop = asyncio.Event()
    with listen("127.0.0.1", 0) as listener:
        task = asyncio.create_task(server.run(arguments, listener, slow_engine, stop))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with httpx.AsyncClient(base_url=url) as http:
            assert (await http.get("/healthz")).status_code == 200
            assert (await http.get("/readyz")).status_code == 503
            watcher = Watcher(http)
            reply = await http.post(
                "/whep/main", content=await watcher.offer(), headers={"content-type": "application/sdp"}
            )
            await watcher.close()
            assert reply.status_code == 409
            assert reply.headers["retry-after"]
            assert (await http.patch("/channels/main", json={"prompt": "x"})).status_code == 503
        stop.set()
        assert await task == 0


def slow_engine(*_: object) -> None:
    time.sleep(60)

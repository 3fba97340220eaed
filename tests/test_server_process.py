import os
import sys
from pathlib import Path

import psutil
import pytest
from fakes import serving

from streaming.bench import server_process
from streaming.bench.recording import BenchError
from streaming.bench.server_process import computing_s, find_endpoint, find_server, launch_server, machine, memory_mb

COMMAND = (sys.executable, str(Path(__file__).parent / "fakes.py"))


async def test_launched_server_is_ready_and_stopped_afterwards() -> None:
    """Inside the block it answers and has memory for server and engine; afterwards no process is left."""
    async with launch_server(COMMAND) as server:
        assert (await server.http.json("GET", "/readyz")) == {"status": "ready"}
        assert server.ready_s is not None and server.ready_s > 0
        assert server.addresses == ("127.0.0.1",)
        assert server.pid is not None
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        sizes = memory_mb(server.pid)
        assert set(sizes) == {"server", "engine"}
        assert min(sizes.values()) > 5
        assert min(computing_s(server.pid).values()) > 0
        assert server.endpoint("h264") == "/whep/main?marker=1&codec=h264"
    assert not psutil.wait_procs(family, timeout=10)[1]
    assert memory_mb(server.pid) == {}


async def test_end_of_the_server_is_noticed() -> None:
    """A server that is killed while it is measured is named with its status."""
    async with launch_server(COMMAND) as server:
        psutil.Process(server.pid).kill()
        with pytest.raises(BenchError, match="the server ended with status -9"):
            await server.ended()


async def test_server_that_cannot_start_says_why() -> None:
    """Its last line reaches whoever measures."""
    with pytest.raises(BenchError, match="status 1: .*no weights in 'missing'"):
        async with launch_server((*COMMAND, "--weights", "missing")):
            pytest.fail("it must not get here")


async def test_found_server_is_on_this_machine(loopback: None) -> None:
    """A server at a loopback address is found, and is left running."""
    async with serving() as running:
        async with find_server(running.url) as server:
            assert "127.0.0.1" in server.addresses
            assert (server.ready_s, server.pid) == (None, None)
        assert (await running.http.get("/healthz")).status_code == 200


async def test_any_endpoint_is_taken_as_it_is() -> None:
    """Nothing is asked before a viewer joins; one on another machine has no address here."""
    async with find_endpoint("http://127.0.0.1:1/whep/film", "secret") as server:
        assert (server.channel, server.endpoint("vp8"), server.http.token) == (None, "", "secret")
        assert server.addresses
    async with find_endpoint("https://elsewhere.example/whep") as server:
        assert server.addresses == ()


def test_machine_is_described(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Device, processor and versions are stated; a package or a repository that is not there is left out."""
    monkeypatch.setattr(server_process, "ROOT", tmp_path)
    monkeypatch.setattr(server_process, "PACKAGES", ("aiortc", "no_such_package"))
    found = machine()
    assert found["device"]
    assert 1 <= found["cores"] <= (os.cpu_count() or 1)
    assert found["versions"].keys() == {"python", "aiortc"}
    assert found["commit"] is None

import os
import sys
from pathlib import Path

import psutil
import pytest
from fakes import serving

from streaming.bench import server_process as subject
from streaming.bench.client import BenchError

COMMAND = (sys.executable, str(Path(__file__).parent / "fakes.py"))


async def test_launched_server_is_ready_and_stopped_afterwards() -> None:
    """Inside the block it answers and has memory for server and engine; afterwards no process is left."""
    async with subject.launched(COMMAND) as server:
        assert (await server.http.json("GET", "/readyz")) == {"status": "ready"}
        assert server.ready_s is not None
        assert server.ready_s > 0
        assert server.addresses == ("127.0.0.1",)
        assert server.pid is not None
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        sizes = subject.memory_mb(server.pid)
        assert set(sizes) == {"server", "engine"}
        assert min(sizes.values()) > 5
    assert not psutil.wait_procs(family, timeout=10)[1]
    assert subject.memory_mb(server.pid) == {}


async def test_end_of_the_server_is_noticed() -> None:
    """A server that is killed while it is measured is named with its status."""
    async with subject.launched(COMMAND) as server:
        assert server.pid is not None
        psutil.Process(server.pid).kill()
        with pytest.raises(BenchError, match="the server ended with status -9"):
            await server.ended()


async def test_server_that_cannot_start_says_why() -> None:
    """Its last line reaches whoever measures."""
    with pytest.raises(BenchError, match="status 1: .*no weights in 'missing'"):
        async with subject.launched((*COMMAND, "--weights", "missing")):
            pytest.fail("it must not get here")


async def test_found_server_is_on_this_machine(loopback: None) -> None:
    """A server at a loopback address is found with its process, and is left running."""
    async with serving() as running:
        async with subject.found(running.url) as server:
            assert server.here
            assert "127.0.0.1" in server.addresses
            assert server.ready_s is None
            assert server.pid == os.getpid()
        assert (await running.http.get("/healthz")).status_code == 200


def test_machine_is_described() -> None:
    """Device, processor, cores, versions and commit are stated."""
    found = subject.machine()
    assert found["cpu"]
    assert found["device"]
    assert 1 <= found["cores"] <= (os.cpu_count() or 1)
    assert found["versions"]["python"] == sys.version.split()[0]
    assert found["versions"]["aiortc"].startswith("1.16.")


def test_unknown_packages_and_missing_repositories_are_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An installation without some package, and a source tree that is no repository, are told as such."""
    monkeypatch.setattr(subject, "ROOT", tmp_path)
    monkeypatch.setattr(subject, "PACKAGES", ("landiff-live-no-such-package",))
    found = subject.machine()
    assert found["versions"]["landiff-live-no-such-package"] == "none"
    assert found["commit"] is None

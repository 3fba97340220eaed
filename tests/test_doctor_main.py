import asyncio
import socket

import pytest
from fakes import serving

from streaming.doctor import __main__ as doctor

pytestmark = pytest.mark.usefixtures("loopback")


def test_command_examines_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """The weights are loaded in a process of their own; a problem makes status 1 and has its cure on the next line."""
    assert doctor.main(["--ice-address", "127.0.0.1", "--device", "cpu", "--weights", "missing"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-2].startswith("problem engine: ") and "missing" in said[-2]
    assert said[-1].strip().startswith("-> ")


def test_shipped_weights_load() -> None:
    """The engine's own loading is what is tried."""
    found = doctor.examine_engine("mini", None, "cpu")
    assert found.state == "ok" and "preset mini loads in" in found.words


async def test_command_asks_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    """With --url the report is the server's; nobody there is a problem."""
    async with serving() as running:
        assert await asyncio.to_thread(doctor.main, ["--url", running.url]) == 0
        assert "ok      channel main: " in capsys.readouterr().out
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert await asyncio.to_thread(doctor.main, ["--url", url]) == 1
    assert f"http: {url} does not answer" in capsys.readouterr().out


def test_command_refuses_bad_options() -> None:
    """As the server does."""
    with pytest.raises(SystemExit) as caught:
        doctor.main(["--turn-secret", "x"])
    assert caught.value.code == 2

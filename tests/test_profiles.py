import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streaming.bench import profiles, run
from streaming.bench.link import Impairments
from streaming.bench.profiles import SERVER_ADDRESS, VIEWER_ADDRESS, Profile, Wire, wire
from streaming.bench.recording import BenchError
from streaming.bench.run import BenchPlan
from streaming.bench.watch import WatchConfig

PACKETS = 2000
COMMAND = (sys.executable, str(Path(__file__).parent / "fakes.py"))


def why_not() -> str | None:
    try:
        with wire(Profile()):
            return None
    except BenchError as error:
        return str(error)


needs_namespaces = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture
def made(request: pytest.FixtureRequest) -> Iterator[Wire]:
    with wire(request.param) as one:
        yield one


def arrived(made: Wire, packets: int = PACKETS, pause_s: float = 0.0, patience_s: float = 10.0) -> int:
    """How many packets of 1,000 bytes come from the server's end to the viewer's."""
    program = (
        "import socket, time\n"
        "out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        f"for _ in range({packets}):\n"
        f"    out.sendto(bytes(1000), ('{VIEWER_ADDRESS}', 5000)); time.sleep({pause_s})\n"
    )
    with made.at_viewer(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        receiver.bind((VIEWER_ADDRESS, 5000))
        receiver.settimeout(patience_s)
        sending = subprocess.Popen([*made.prefix, "python3", "-c", program])
        count = 0
        try:
            while True:
                receiver.recv(2000)
                receiver.settimeout(0.5)
                count += 1
        except TimeoutError:
            if sending.poll() is None:
                sending.wait()
        return count


@needs_namespaces
@pytest.mark.parametrize("made", [Profile()], indirect=True)
def test_a_clean_wire_loses_nothing_and_is_taken_away(made: Wire) -> None:
    """Every packet comes; behind the block there is no namespace, and this thread is where it was."""
    home = os.readlink("/proc/thread-self/ns/net")
    assert arrived(made, 200, 0.0005) == 200
    assert os.readlink("/proc/thread-self/ns/net") == home
    made.close()
    made.close()
    assert "bench" not in subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout


@needs_namespaces
@pytest.mark.parametrize("made", [Profile(Impairments(loss=0.05))], indirect=True)
def test_a_share_is_lost(made: Wire) -> None:
    """Five percent, as far as 2,000 packets tell."""
    assert 0.90 * PACKETS < arrived(made, PACKETS, 0.0005) < 0.99 * PACKETS


@needs_namespaces
@pytest.mark.parametrize("made", [Profile(Impairments(rate_bps=300_000, queue_s=0.1))], indirect=True)
def test_a_rate_is_kept(made: Wire) -> None:
    """In about a second 300 kbit and what may wait come, of several times as much."""
    began_s = time.monotonic()
    count = arrived(made, 400, 0.002)
    assert 16 < count <= ((time.monotonic() - began_s + 0.1) * 300_000 / 8) / 1000


@needs_namespaces
@pytest.mark.parametrize("made", [Profile(blackhole_s=0.5)], indirect=True)
async def test_a_network_is_gone_for_a_while(made: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing comes meanwhile, everything before and after."""
    monkeypatch.setattr(profiles, "BLACKHOLE_AFTER_S", 0.0)
    gone = asyncio.create_task(made.play(Profile(blackhole_s=0.5)))
    await asyncio.sleep(0.1)
    assert arrived(made, 1, patience_s=0.5) == 0
    assert not gone.done()
    await gone
    assert arrived(made, 50, 0.001) == 50
    await made.play(Profile())


@needs_namespaces
def test_a_link_that_ended_is_named() -> None:
    """Whoever changes it hears so."""
    with wire(Profile()) as made:
        assert made._link is not None
        made._link.kill()
        made._link.wait()
        with pytest.raises(BenchError, match="there is no link"):
            made.impair(Impairments(loss=0.1))


@needs_namespaces
def test_a_server_is_measured_behind_a_wire(loopback: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Media, requests and the server's own processes are in the namespaces; the wire's delay is in the figures.

    With losses a decoder that has made no sense of what was left may see no change of the picture.
    """
    delay_ms = 150.0
    monkeypatch.setattr("streaming.bench.watch.PROMPTS", ("a white ball at night",))
    monkeypatch.setattr(profiles, "PROFILES", {"far": Profile(Impairments(delay_s=delay_ms / 1000))})
    config = WatchConfig(14.0, settle_s=0.5, first_prompt_s=3.0, prompt_every_s=11.0)
    report = run._behind_wire(BenchPlan(config, Path("unused.json")), COMMAND, "far")
    assert report["failed"] == []
    assert report["prompt_to_pixel_s"]["flow"]["count"] == 1
    assert report["transport_ms"]["median"] >= delay_ms and report["ttff_s"]["warm"]["median"] >= 4 * delay_ms / 1000


def test_what_cannot_be_made_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the tool, and with one that fails."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BenchError, match="ip is missing: apt-get install iproute2"), wire(Profile()):
        pytest.fail("it must not get here")
    with pytest.raises(BenchError, match=r"^/bin/sh -c .*: first$"):
        profiles._run("/bin/sh", "-c", "echo first >&2; echo no >&2; exit 1")
    assert SERVER_ADDRESS != VIEWER_ADDRESS

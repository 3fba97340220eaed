"""Each server with the same film and the same crowds of viewers that do not decode, one after the other.

The cost of a viewer is the difference between a large and a small crowd, so that what a server does once is not in it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from streaming.bench.peers import film
from streaming.bench.recording import BenchError
from streaming.bench.server_process import ROOT, answers, own_addresses
from streaming.bench.timeline import Figures
from streaming.bench.waves import WaveConfig, crowd

HERE = Path(__file__).parent
OURS = (
    "import sys, server; from streaming.bench.peers.film import film_engine; "
    "sys.exit(server.main(sys.argv[1:], film_engine))"
)
GSTREAMER = "python3-gi gir1.2-gst-plugins-bad-1.0 gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-nice"
GOCODE = Path("/usr/share/gocode")
FEW, MANY = 2, 30  # viewers
MANY_ENCODERS = 8  # of one that encodes for each: more would fill two cores
WATCH_S = 6.0
ROUNDS = 30  # of the film, for a server that is fed
FILE_ROUNDS = 12  # of it in the file that others play: longer than both crowds are there
SETTLE_S = 2.0
JANUS = {
    "janus.jcfg": (
        'general: {{ debug_level = 2; interface = "127.0.0.1"; session_timeout = 0; }}\n'
        'nat: {{ ignore_mdns = true; }}\n'
        'plugins: {{ disable = "{other_plugins}"; }}\ntransports: {{ disable = "{other_transports}"; }}\n'
    ),
    "janus.transport.http.jcfg": 'general: {{ json = "compact"; http = true; port = {port}; ip = "127.0.0.1"; }}\n',
    "janus.plugin.streaming.jcfg": (
        'film: {{ type = "rtp"; id = 1; media = ( {{ type = "video"; mid = "0"; port = {rtp_port}; pt = 96; '
        'codec = "h264"; fmtp = "profile-level-id=42e01f;packetization-mode=1;level-asymmetry-allowed=1"; }} ); }}\n'
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Films:
    """The film as files."""

    mp4: Path
    h264: Path  # a byte stream
    folder: Path  # for what servers need


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers."""

    url: str  # of its WHEP endpoint
    pid: int  # of the process whose computing counts, with its children
    addresses: tuple[str, ...] = ("127.0.0.1",)  # from which viewers take part


Serve = Callable[[Films, AsyncExitStack], Any]  # coroutine function that gives a Running; the stack ends it


def measure(names: Sequence[str], not_measured: list[str]) -> Figures:
    """Figures of ours and of the named servers. What this machine lacks is said in `not_measured`, a line each."""
    found: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        films = Films(Path(folder) / "film.mp4", Path(folder) / "film.h264", Path(folder))
        film.make(films.h264, films.mp4, FILE_ROUNDS)
        for name in ("ours", *names):
            try:
                viewers = min(MANY, MANY_ENCODERS) if name == "aiortc" else MANY
                found[name] = asyncio.run(_one(PEERS.get(name, ours), films, viewers))
            except BenchError as error:
                not_measured.append(f"peer {name}: {error}")
    for name, figures in found.items():
        if name != "ours" and "ours" in found and found["ours"]["cpu_percent_a_viewer"]:
            ratio = figures["cpu_percent_a_viewer"] / found["ours"]["cpu_percent_a_viewer"]
            figures["times_ours"] = round(ratio, 3)
    return found


async def _one(serve: Serve, films: Films, viewers: int) -> Figures:
    async with AsyncExitStack() as stack:
        running = await serve(films, stack)
        few, _ = await _computing(running, FEW)
        many, seen = await _computing(running, viewers)
        watched = seen["joined"]
        return {
            "cpu_percent_few": round(few, 2),
            "cpu_percent_many": round(many, 2),
            "cpu_percent_a_viewer": round((many - few) / (watched - FEW), 4),
            "viewers": [FEW, watched],
            **{name: seen[name] for name in ("ttff_s", "interval_ms", "packets_missing", "failed")},
            "kbps_a_viewer": round(seen["bytes"] * 8 / 1000 / watched / (seen["watched_s"] or 1), 1),
            "crowd_cpu_percent": seen["cpu_percent"],
        }


async def _computing(running: Running, viewers: int) -> tuple[float, Figures]:
    """Percent of a core that the server takes for a crowd, and what the crowd saw."""
    config = WaveConfig(viewers, ramp=10.0)
    async with crowd(running.url, config, "h264", None, running.addresses) as seen:
        await asyncio.sleep(SETTLE_S)
        loop = asyncio.get_running_loop()
        before_s, began_s = _taken_s(running.pid), loop.time()
        await asyncio.sleep(WATCH_S)
        share = 100 * (_taken_s(running.pid) - before_s) / (loop.time() - began_s)
    return share, seen


def _taken_s(pid: int) -> float:
    try:
        server = psutil.Process(pid)
        return float(sum(sum(one.cpu_times()[:2]) for one in (server, *server.children(recursive=True))))
    except psutil.NoSuchProcess as error:
        raise BenchError("the server ended while it was measured") from error


async def ours(films: Films, stack: AsyncExitStack) -> Running:
    """This server, with an engine process that plays the film."""
    port = _port()
    address = ("--host", "127.0.0.1", "--port", str(port), "--ice-address", "127.0.0.1")
    # A spare engine would be started while the small crowd is there.
    program = (sys.executable, "-c", OURS, *address, "--weights", str(films.mp4), "--no-spare-engine")
    process = await _start(stack, *program)
    await answers(f"http://127.0.0.1:{port}/readyz", process)
    return Running(f"http://127.0.0.1:{port}/whep/main?codec=h264", process.pid)


async def _aiortc(films: Films, stack: AsyncExitStack) -> Running:
    port = _port()
    module = "streaming.bench.peers.aiortc_server"
    process = await _start(stack, sys.executable, "-m", module, str(films.mp4), str(port))
    await answers(f"http://127.0.0.1:{port}/", process)
    return Running(f"http://127.0.0.1:{port}/whep", process.pid)


async def _gstreamer(films: Films, stack: AsyncExitStack) -> Running:
    port = _port()
    program = ("/usr/bin/python3", str(HERE / "gstreamer_server.py"), str(films.h264), str(port), str(film.FPS))
    process = await _start(stack, *program)
    try:
        await answers(f"http://127.0.0.1:{port}/", process)
    except BenchError as error:
        raise BenchError(f"GStreamer does not start ({error}): apt-get install {GSTREAMER}") from error
    # libnice never takes loopback.
    return Running(f"http://127.0.0.1:{port}/whep", process.pid, own_addresses())


async def _pion(films: Films, stack: AsyncExitStack) -> Running:
    if shutil.which("go") is None or not (GOCODE / "src/github.com/pion/webrtc").is_dir():
        raise BenchError("Pion is missing: apt-get install golang-go golang-github-pion-webrtc.v3-dev")
    built = films.folder / "pion_server"
    # Debian has the third version's files in a folder without a number; its own imports want one.
    path = films.folder / "gopath"
    vendored = path / "src/github.com/pion/webrtc"
    vendored.mkdir(parents=True)
    (vendored / "v3").symlink_to(GOCODE / "src/github.com/pion/webrtc")
    environment = os.environ | {"GO111MODULE": "off", "GOPATH": f"{path}:{GOCODE}", "GOCACHE": str(films.folder / "go")}
    command = ["go", "build", "-o", str(built), str(HERE / "pion_server.go")]
    done = await asyncio.to_thread(subprocess.run, command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"Pion does not build: {done.stderr.strip().splitlines()[-1]}")
    port = _port()
    process = await _start(stack, str(built), str(films.h264), str(port), str(film.FPS))
    await answers(f"http://127.0.0.1:{port}/", process)
    return Running(f"http://127.0.0.1:{port}/whep", process.pid)


async def _janus(films: Films, stack: AsyncExitStack) -> Running:
    """Janus, fed by ffmpeg, whose cost does not count, with a gateway for WHEP, through which no media passes."""
    if shutil.which("janus") is None or shutil.which("ffmpeg") is None:
        raise BenchError("Janus or ffmpeg is missing: apt-get install janus ffmpeg")
    port, janus_port, rtp_port = _port(), _port(), _port(socket.SOCK_DGRAM)
    folder = films.folder / "janus"
    folder.mkdir()
    others = {
        "other_plugins": _others("plugins", "streaming"),
        "other_transports": _others("transports", "http"),
    }
    for name, text in JANUS.items():
        (folder / name).write_text(text.format(port=janus_port, rtp_port=rtp_port, **others))
    process = await _start(stack, "janus", "-F", str(folder))
    await answers(f"http://127.0.0.1:{janus_port}/janus/info", process)
    # Often enough in a row: ffmpeg's own repetition ends with the first round of a copied stream.
    again = "concat:" + "|".join([str(films.h264)] * ROUNDS)
    source = ("-re", "-f", "h264", "-framerate", str(film.FPS), "-i", again, "-c", "copy", "-an")
    sink = ("-f", "rtp", "-payload_type", "96", f"rtp://127.0.0.1:{rtp_port}?pkt_size=1300")
    await _start(stack, "ffmpeg", "-loglevel", "error", *source, *sink)
    module = "streaming.bench.peers.janus_gateway"
    gateway = await _start(stack, sys.executable, "-m", module, str(port), str(janus_port))
    await answers(f"http://127.0.0.1:{port}/", gateway)
    return Running(f"http://127.0.0.1:{port}/whep", process.pid, own_addresses())


def _others(kind: str, wanted: str) -> str:
    """Names of Janus' plugins or transports except one."""
    folder = Path("/usr/lib") / os.uname().machine / "janus"
    places = [*Path("/usr/lib").glob(f"*/janus/{kind}/*.so"), *folder.glob(f"{kind}/*.so")]
    return ",".join(sorted({place.name for place in places if wanted not in place.name}))


PEERS: dict[str, Serve] = {"aiortc": _aiortc, "gstreamer": _gstreamer, "pion": _pion, "janus": _janus}


def _port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _start(stack: AsyncExitStack, *argv: str) -> asyncio.subprocess.Process:
    return await stack.enter_async_context(_process(*argv))


@asynccontextmanager
async def _process(*argv: str) -> AsyncIterator[asyncio.subprocess.Process]:
    try:
        quiet = asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(*argv, stdin=quiet, stdout=quiet, stderr=quiet, cwd=ROOT)
    except FileNotFoundError as error:
        raise BenchError(f"{argv[0]} is missing") from error
    try:
        yield process
    finally:
        # None of them has anything to lose, and some take their time to say goodbye.
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()

"""What can go wrong, each as a function of the stage and a source of chance; it returns what must not be and was."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from streaming.bench.client import RequestError
from streaming.chaos.report import Flaw
from streaming.chaos.stage import Stage, send
from streaming.chaos.witness import Witness

PROMPTS = (
    "a blue sailboat drifts to the left on the sea",
    "a red car drives slowly to the right through the desert",
    "a white ball floats up under the stars at night",
    "a yellow fish moves quickly to the right",
)
OFFERS = 20  # bad ones
STORM = 30  # prompts at once
TRIES = 100  # to be quicker than the engine
DEAF = 20  # readers of events that never read
FINE = {200, 201, 204, 409, 503, 504}  # answers to a good request, whatever happens to the engine meanwhile

Fault = Callable[["Scene"], Awaitable[list[Flaw]]]


class Scene:
    """All that a fault may touch."""

    def __init__(self, stage: Stage, witness: Witness, rng: random.Random) -> None:
        self.stage, self.witness, self.rng = stage, witness, rng

    async def wait(self, least_s: float, most_s: float) -> None:
        await asyncio.sleep(self.rng.uniform(least_s, most_s))


async def engine_killed(scene: Scene) -> list[Flaw]:
    """kill -9 of the engine that serves."""
    # However slow the machine: one that never gets ready makes no video that could go on.
    await scene.stage.ready()
    if (pid := scene.stage.engine()) is not None:
        send(pid, signal.SIGKILL)
    return []


async def engine_stopped(scene: Scene) -> list[Flaw]:
    """SIGSTOP of the engine that serves, for some seconds."""
    await scene.stage.ready()
    if (pid := scene.stage.engine()) is not None and send(pid, signal.SIGSTOP):
        await scene.wait(0.5, 10)
        send(pid, signal.SIGCONT)
    return []


async def spare_killed(scene: Scene) -> list[Flaw]:
    """kill -9 of the engine that waits."""
    if (pid := scene.stage.spare()) is not None:
        send(pid, signal.SIGKILL)
    return []


async def server_killed(scene: Scene) -> list[Flaw]:
    """kill -9 of the server, and another one on its folder."""
    found = await scene.stage.account()
    left = await scene.stage.kill()
    scene.witness.another_server = True
    await scene.stage.start()
    return found + [Flaw("leak", words) for words in left]


async def server_stopped(scene: Scene) -> list[Flaw]:
    """SIGSTOP of the server, for a moment."""
    send(scene.stage.pid, signal.SIGSTOP)
    await scene.wait(0.3, 2)
    send(scene.stage.pid, signal.SIGCONT)
    return []


async def disk_gone(scene: Scene) -> list[Flaw]:
    """The channel's folder cannot be written."""
    folder = scene.stage.state / "main"
    with moved(folder):
        _put(folder, lambda: folder.write_bytes(b""))
        await scene.wait(1, 8)
    return []


async def disk_hangs(scene: Scene) -> list[Flaw]:
    """A write to the journal takes seconds, and fails then."""
    journal = scene.stage.state / "main" / "journal.jsonl"
    with moved(journal):
        _put(journal, lambda: os.mkfifo(journal))
        await scene.wait(2, 8)
        # Whoever waits to write may.
        descriptor = os.open(journal, os.O_RDONLY | os.O_NONBLOCK)
        await asyncio.sleep(0.1)
        os.close(descriptor)
    return []


@contextmanager
def moved(path: Path) -> Iterator[None]:
    """Within the block something else may be in a file's or folder's place."""
    aside = path.with_name(f"{path.name}.chaos")
    with suppress(FileNotFoundError):
        path.rename(aside)
    try:
        yield
    finally:
        _put(path, lambda: aside.rename(path) if aside.exists() else None)


def _put(path: Path, put: Callable[[], object]) -> None:
    """Removes what is there and puts something in its place; the engine, which writes all the time, may be quicker."""
    for left in reversed(range(TRIES)):
        try:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            put()
            return
        except OSError:
            if not left:
                raise


async def viewers_die(scene: Scene) -> list[Flaw]:
    """Some viewers stop to receive, and are gone without a word."""
    argv = (sys.executable, "-m", "streaming.bench.light", f"{scene.stage.http.url}/whep/main", "--viewers", "3")
    pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=null, stderr=null)
    try:
        await scene.wait(2, 5)
        process.send_signal(signal.SIGSTOP)
        await scene.wait(0.5, 3)
    finally:
        process.kill()
        await process.wait()
    return []


async def bad_offers(scene: Scene) -> list[Flaw]:
    """Offers that are none: of chance, cut short, or with a line that is damaged."""
    lines = [f"{kind}={value}" for kind, value in (("v", "0"), ("o", "- 1 1 IN IP4 0.0.0.0"), ("s", "-"), ("t", "0 0"))]
    lines += ["m=video 9 UDP/TLS/RTP/SAVPF 96", "c=IN IP4 0.0.0.0", "a=mid:0", "a=recvonly", "a=rtpmap:96 VP8/90000"]
    statuses = []
    for _ in range(OFFERS):
        damaged = [line for line in lines if scene.rng.random() < 0.8]
        scene.rng.shuffle(damaged)
        body = "\r\n".join(damaged).encode() + scene.rng.randbytes(scene.rng.choice((0, 0, 40)))
        statuses.append(await _status(scene, "POST", "/whep/main", body, "application/sdp"))
    return _answers("an offer", statuses, {400, 406, 409, 415, 422, 503})


async def prompts_storm(scene: Scene) -> list[Flaw]:
    """Many changes at once, some of them of no sense."""

    async def ask(number: int) -> int | None:
        change: dict[str, object] = {"prompt": PROMPTS[number % len(PROMPTS)], "mode": ("flow", "cut")[number % 2]}
        if number % 7 == 0:
            change = {"prompt": "x" * 5000, "mode": "never"}
        try:
            await scene.stage.http.json("PATCH", "/channels/main", change)
        except RequestError as error:
            return error.status
        return 200

    statuses = await asyncio.gather(*(ask(scene.rng.randrange(1000)) for _ in range(STORM)))
    return _answers("a change", statuses, FINE | {422})


async def events_unread(scene: Scene) -> list[Flaw]:
    """Readers of events that never read."""
    address = urlsplit(scene.stage.http.url)
    open_ = []
    try:
        for _ in range(DEAF):
            with suppress(OSError):
                one = socket.create_connection((address.hostname, address.port), 1)
                open_.append(one)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
                one.sendall(b"GET /channels/main/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await scene.wait(2, 6)
    finally:
        for one in open_:
            one.close()
    return []


async def channels_come_and_go(scene: Scene) -> list[Flaw]:
    """A channel is made and ended."""
    new = json.dumps({"id": "other", "prompt": scene.rng.choice(PROMPTS)}).encode()
    statuses = [await _status(scene, "POST", "/channels", new, "application/json")]
    await scene.wait(0, 3)
    statuses.append(await _status(scene, "DELETE", "/channels/other", None, "application/json"))
    return _answers("a channel", statuses, FINE | {404})


async def _status(scene: Scene, method: str, path: str, body: bytes | None, kind: str) -> int | None:
    """Of the answer; None where there is none, as by a server that is killed."""
    try:
        await scene.stage.http.request(method, path, body, kind)
    except RequestError as error:
        return error.status
    return 200


def _answers(what: str, statuses: list[int | None], fine: set[int]) -> list[Flaw]:
    wrong = {status for status in statuses if status is not None and status not in fine}
    return [Flaw("answer", f"{what} was answered with {status}") for status in sorted(wrong)]


# And how often each comes, against the others.
FAULTS: dict[Fault, int] = {
    engine_killed: 4,
    engine_stopped: 2,
    spare_killed: 1,
    server_killed: 1,
    server_stopped: 1,
    disk_gone: 1,
    disk_hangs: 1,
    viewers_die: 2,
    bad_offers: 2,
    prompts_storm: 1,
    events_unread: 2,
    channels_come_and_go: 2,
}

"""`frame.jpg` and `live.mp4` as a client of the real server sees them."""

import asyncio
import io
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import av
import httpx
import numpy as np
import pytest
from fakes import FPS, HEIGHT, WIDTH, Serving, serving, watching
from PIL import Image
from test_app import refused

pytestmark = pytest.mark.usefixtures("loopback")
LIVE, FRAME = "/channels/main/live.mp4", "/channels/main/frame.jpg"


@pytest.fixture
async def running() -> AsyncIterator[Serving]:
    async with serving() as server:
        yield server


def played(data: bytes) -> list[av.VideoFrame]:
    """The frames that a player gets out of an mp4, also out of one that ends in the middle of a fragment."""
    frames: list[av.VideoFrame] = []
    with av.open(io.BytesIO(data)) as file:
        try:
            frames.extend(file.decode(video=0))
        except av.FFmpegError:
            return frames
    return frames


class Tap:
    """A reader of live.mp4 that keeps what it got."""

    def __init__(self, running: Serving, path: str = LIVE) -> None:
        self.data = b""
        self.ended = False
        self._task = asyncio.create_task(self._read(running.http, path))

    async def _read(self, http: httpx.AsyncClient, path: str) -> None:
        async with http.stream("GET", path) as reply:
            assert reply.status_code == 200, await reply.aread()
            self.headers = reply.headers
            async for part in reply.aiter_raw():
                self.data += part
        self.ended = True

    async def until(self, frames: int, limit_s: float = 10.0) -> list[av.VideoFrame]:
        """Waits until that many frames can be decoded; returns all there are."""
        async with asyncio.timeout(limit_s):
            while self.data.count(b"mdat") < frames:  # noqa: ASYNC110 - httpx has no event
                await asyncio.sleep(0.01)
        return played(self.data)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


@asynccontextmanager
async def tapping(running: Serving, path: str = LIVE) -> AsyncIterator[Tap]:
    tap = Tap(running, path)
    try:
        yield tap
    finally:
        await tap.close()


async def test_a_frame_is_the_one_on_air(running: Serving) -> None:
    """Before the first viewer it is 503; then the JPEG of the frame on air, with an ETag that tells it from others."""
    reply = await running.http.get(FRAME)
    assert refused(reply, 503) and reply.headers["retry-after"]
    async with watching(running):
        pass
    await running.until(lambda report: report["viewers"] == 0)
    reply = await running.http.get(FRAME)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "image/jpeg")
    with Image.open(io.BytesIO(reply.content)) as image:
        assert image.size == (WIDTH, HEIGHT)
    etag = reply.headers["etag"]
    for value in (etag, f'"x", W/{etag}', "*"):
        same = await running.http.get(FRAME, headers={"if-none-match": value})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
    assert (await running.http.head(FRAME)).status_code == 200
    async with watching(running) as watcher:
        await watcher.received(3)
        assert (await running.http.get(FRAME, headers={"if-none-match": etag})).status_code == 200
    assert refused(await running.http.get("/channels/none/frame.jpg"), 404)


@pytest.mark.parametrize("query", ["", "?mse=true"])
async def test_a_reader_alone_sees_the_video(running: Serving, query: str) -> None:
    """It counts as a viewer, its first picture is there within 1 s, frames follow in order, and it leaves nothing."""
    began_s = time.monotonic()
    async with tapping(running, LIVE + query) as tap:
        await tap.until(1)
        assert time.monotonic() - began_s < 1
        assert tap.headers["content-type"] == "video/mp4" and tap.headers["cache-control"] == "no-store"
        frames = await tap.until(20)
        assert (await running.report())["viewers"] == 1
    assert [frame.pts for frame in frames] == sorted({frame.pts for frame in frames}) and frames[0].pts == 0
    assert frames[0].key_frame
    assert np.median(np.diff([frame.pts for frame in frames])) == pytest.approx(90_000 / FPS, rel=0.05)
    report = await running.until(lambda report: report["viewers"] == 0)
    assert (report["state"], report["repeats"]) == ("idle", 0)


async def test_readers_come_and_go_beside_viewers(running: Serving) -> None:
    """Five readers and two viewers: each reader begins with a key frame at time 0, and nobody sees a stall."""
    async with watching(running) as one, watching(running, "?codec=h264") as other:
        taps = [Tap(running) for _ in range(5)]
        for tap in taps:
            frames = await tap.until(10)
            assert frames[0].key_frame and frames[0].pts == 0
        assert (await running.report())["viewers"] == 7
        for tap in taps:
            await tap.close()
        await running.until(lambda report: report["viewers"] == 2)
        for watcher in (one, other):
            await watcher.received(3)
        assert (await running.report())["repeats"] == 0


async def test_readers_that_come_together_share_a_key_frame(running: Serving) -> None:
    """Coming and leaving at once, however often, does not make a key frame each time."""

    async def keyframes() -> float:
        text = (await running.http.get("/metrics")).text
        return float(next(line for line in text.splitlines() if line.startswith("landiff_keyframes_total")).split()[1])

    async with tapping(running) as tap:
        await tap.until(2)
        before, began_s = await keyframes(), time.monotonic()
        for _ in range(30):
            await running.http.head(LIVE)
        took_s = time.monotonic() - began_s
        assert await keyframes() - before <= took_s / 0.5 + 2


async def test_a_reader_that_stops_reading_is_cut_off(running: Serving) -> None:
    """Within 10 s it is gone, connection and all; another reader and a viewer see no stall."""
    address = urlsplit(running.url)
    assert address.hostname and address.port
    async with watching(running) as watcher, tapping(running) as tap:
        with socket.create_connection((address.hostname, address.port)) as lazy:
            lazy.sendall(f"GET {LIVE} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await running.until(lambda report: report["viewers"] == 3)
            began_s = time.monotonic()
            await running.until(lambda report: report["viewers"] == 2, 15.0)
            assert time.monotonic() - began_s < 10
            lazy.settimeout(1.0)
            with suppress(ConnectionResetError):
                # What the kernel had taken is still there, then nothing follows.
                while lazy.recv(1 << 16):
                    pass
        await watcher.received(3)
        count = tap.data.count(b"mdat")
        await tap.until(count + 5)
        assert (await running.report())["repeats"] == 0
    assert "landiff_readers_cut_off_total 1.0" in (await running.http.get("/metrics")).text


async def test_readers_have_a_limit_of_their_own(running: Serving) -> None:
    """The 65th reader is 503 with Retry-After; a viewer still finds a place."""
    taps = [Tap(running) for _ in range(64)]
    try:
        await running.until(lambda report: report["viewers"] == 64)
        reply = await running.http.get(LIVE)
        assert refused(reply, 503) and reply.headers["retry-after"]
        assert "limit" in reply.json()["detail"]
        async with watching(running):
            pass
    finally:
        for tap in taps:
            await tap.close()
    await running.until(lambda report: report["viewers"] == 0)


async def test_live_answers_of_a_server_that_stops_end_well() -> None:
    """The last fragment is whole, and the answer complete."""
    async with serving() as running:
        tap = Tap(running)
        await tap.until(5)
        running.stop.set()
        await running.done
        await asyncio.sleep(0.1)
        assert tap.ended
        assert len(played(tap.data)) == tap.data.count(b"mdat")

"""Recordings as a client of the real server sees them, and their files."""

import asyncio
import gc
import os
import resource
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import fakes
import httpx
import numpy as np
import pytest
from fakes import FPS, Serving, serving, watching
from test_app import refused
from test_output_routes import played
from test_server import started

from engine.video.video_file import to_rgb
from streaming.channels.channel import Channel

pytestmark = pytest.mark.usefixtures("loopback")
RECORDINGS = "/channels/main/recordings"


@pytest.fixture
async def running() -> AsyncIterator[Serving]:
    async with serving() as server:
        yield server


def files(folder: Path) -> list[Path]:
    return list(folder.rglob("*.mp4"))


async def test_without_a_folder_nothing_is_recorded(running: Serving) -> None:
    """Each route of recordings says which flag is missing."""
    for method, path in (
        ("POST", RECORDINGS),
        ("GET", RECORDINGS),
        ("GET", f"{RECORDINGS}/x"),
        ("GET", f"{RECORDINGS}/x.mp4"),
        ("DELETE", f"{RECORDINGS}/x"),
        ("DELETE", f"{RECORDINGS}/x.mp4"),
    ):
        reply = await running.http.request(method, path)
        assert refused(reply, 409) and "--recordings DIR" in reply.json()["detail"]
    assert refused(await running.http.post("/channels/none/recordings"), 404)


async def recorded(running: Serving, size: int = 20_000) -> dict[str, Any]:
    """Starts a recording and waits until it has some bytes; returns its report."""
    reply = await running.http.post(RECORDINGS)
    assert reply.status_code == 201, reply.text
    async with asyncio.timeout(15):
        while (report := (await running.http.get(reply.headers["location"])).json())["bytes"] < size:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return dict(report)


async def test_the_life_of_a_recording(tmp_path: Path) -> None:
    """Started, listed, fetched while it runs, stopped, fetched whole, removed; the channel runs for it, unwatched."""
    async with serving("--recordings", str(tmp_path / "new" / "folder")) as running:
        assert (await running.http.get(RECORDINGS)).json() == []
        report = await recorded(running)
        place = f"{RECORDINGS}/{report['id']}"
        assert (report["state"], report["error"]) == ("recording", None)
        channel = await running.report()
        assert (channel["state"], channel["viewers"]) == ("live", 0)
        assert refused(await running.http.post(RECORDINGS), 409)
        part = await running.http.get(f"{place}.mp4")
        assert len(played(part.content)) == part.content.count(b"moof") > 0
        done = (await running.http.delete(place)).json()
        assert (done["state"], done["error"]) == ("finished", None)
        assert (await running.http.delete(place)).json() == done
        await running.until(lambda report: report["state"] == "idle")
        whole = await running.http.get(f"{place}.mp4")
        assert (whole.status_code, whole.headers["content-type"]) == (200, "video/mp4")
        assert len(whole.content) == done["bytes"]
        frames = played(whole.content)
        assert done["seconds"] == pytest.approx(len(frames) / FPS, abs=0.2)
        assert whole.content.startswith(part.content)
        some = await running.http.get(f"{place}.mp4", headers={"range": "bytes=0-99"})
        assert (some.status_code, some.content) == (206, whole.content[:100])
        behind = await running.http.get(f"{place}.mp4", headers={"range": f"bytes={done['bytes']}-"})
        assert refused(behind, 416) and behind.headers["content-range"] == f"bytes */{done['bytes']}"
        for other in ("items=0-5", "bytes=9-2", "bytes=x", "bytes="):
            passed_over = await running.http.get(f"{place}.mp4", headers={"range": other})
            assert (passed_over.status_code, passed_over.content) == (200, whole.content)
        assert (await running.http.get(RECORDINGS)).json() == [done]
        assert (await running.http.delete(f"{place}.mp4")).status_code == 204
        for method, path in (("GET", place), ("GET", f"{place}.mp4"), ("DELETE", place), ("DELETE", f"{place}.mp4")):
            assert refused(await running.http.request(method, path), 404)
        assert not files(tmp_path)


async def test_a_recording_keeps_no_channel_that_is_gone(tmp_path: Path) -> None:
    """Whoever makes, records and deletes channels for ever fills the disk at most."""
    async with serving("--recordings", str(tmp_path)) as running:
        assert (await running.http.post("/channels", json={"id": "second", "prompt": "x"})).status_code == 201
        assert (await running.http.post("/channels/second/recordings")).status_code == 201
        assert (await running.http.delete("/channels/second")).status_code == 204
        gc.collect()
        assert not [one for one in gc.get_objects() if isinstance(one, Channel) and one.id == "second"]


async def test_only_recordings_can_be_fetched(tmp_path: Path) -> None:
    """No id leads out of the folder, or to a file that is no recording."""
    folder = tmp_path / "recordings"
    (folder / "main").mkdir(parents=True)
    (tmp_path / "secret.mp4").write_text("secret")
    (folder / "main" / "notes.mp4").write_text("notes")
    async with serving("--recordings", str(folder)) as running:
        assert (await running.http.get(RECORDINGS)).json() == []
        for name in ("notes", "..%2F..%2Fsecret", "../secret", "%00", "x" * 5000, "20260101-000000-000"):
            for suffix in ("", ".mp4"):
                assert refused(await running.http.get(f"{RECORDINGS}/{name}{suffix}"), 404)
                assert refused(await running.http.delete(f"{RECORDINGS}/{name}{suffix}"), 404)
    assert (tmp_path / "secret.mp4").exists() and (folder / "main" / "notes.mp4").exists()


async def test_the_quota_ends_a_recording_and_refuses_the_next(tmp_path: Path) -> None:
    """The file stays below it and plays; the report and the refusal say what helps; room made by hand counts."""
    async with serving("--recordings", str(tmp_path), "--recordings-gb", "0.00003") as running:
        report = await recorded(running, 1)
        async with asyncio.timeout(20):
            while report["state"] == "recording":
                await asyncio.sleep(0.1)
                report = (await running.http.get(f"{RECORDINGS}/{report['id']}")).json()
        assert "--recordings-gb" in report["error"] and 0 < report["bytes"] < 30_000
        data = (await running.http.get(f"{RECORDINGS}/{report['id']}.mp4")).content
        assert len(data) == report["bytes"]
        assert len(played(data)) == data.count(b"moof")
        reply = await running.http.post(RECORDINGS)
        if reply.status_code == 201:  # a little room was left
            await running.http.delete(reply.headers["location"])
        (tmp_path / "main" / "20260101-000000-000.mp4").write_bytes(b"x" * 40_000)
        reply = await running.http.post(RECORDINGS)
        assert refused(reply, 507) and "delete some" in reply.json()["detail"]
        (tmp_path / "main" / "20260101-000000-000.mp4").unlink()
        assert (await running.http.delete(f"{RECORDINGS}/{report['id']}.mp4")).status_code == 204
        await running.until(lambda report: report["state"] == "idle")
        await recorded(running, 1)


async def test_a_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    """Before it begins: 507 and no file. While it runs: it ends, says so, and what was written plays."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with serving("--recordings", str(tmp_path)) as running:
        async with watching(running) as watcher:
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
                reply = await running.http.post(RECORDINGS)
                assert refused(reply, 507) and "too large" in reply.json()["detail"]
                assert not files(tmp_path)
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
                report = await recorded(running, 1)
                resource.setrlimit(resource.RLIMIT_FSIZE, (25_000, before[1]))
                async with asyncio.timeout(20):
                    while report["state"] == "recording":
                        await asyncio.sleep(0.1)
                        report = (await running.http.get(f"{RECORDINGS}/{report['id']}")).json()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            assert "too large" in report["error"] and 0 < report["bytes"] <= 25_000
            data = (await running.http.get(f"{RECORDINGS}/{report['id']}.mp4")).content
            assert len(data) == report["bytes"] and len(played(data)) == data.count(b"moof") > 0
            await watcher.received(3)
            assert (await running.report())["repeats"] == 0


async def test_a_recording_without_a_picture_leaves_no_file(tmp_path: Path) -> None:
    """Stopped at once it has no bytes, and nothing half-made stays."""
    async with serving("--recordings", str(tmp_path)) as running:
        place = (await running.http.post(RECORDINGS)).headers["location"]
        report = (await running.http.delete(place)).json()
        assert bool(report["bytes"]) == bool(files(tmp_path))


def test_a_killed_server_leaves_a_file_that_plays(tmp_path: Path) -> None:
    """After kill -9 the file has all but the last moments, and the next server lists it."""
    with started("--recordings", str(tmp_path)) as (process, url):
        report = httpx.post(f"{url}{RECORDINGS}").json()
        shown = 0
        deadline_s = time.monotonic() + 15
        while shown < 40:
            assert time.monotonic() < deadline_s
            shown = httpx.get(f"{url}/channels/main").json()["frame"] or 0
        process.send_signal(signal.SIGKILL)
        process.wait()
    (path,) = tmp_path.rglob("*.mp4")
    frames = played(path.read_bytes())
    assert len(frames) >= shown - 2
    assert path.stem == report["id"]
    (tmp_path / "main" / "20260101-000000-000.mp4").touch()
    with started("--recordings", str(tmp_path)) as (_, url):
        (listed,) = httpx.get(f"{url}{RECORDINGS}").json()
        assert listed == report | {"state": "finished", "bytes": os.path.getsize(path), "seconds": None}
        assert httpx.get(f"{url}{RECORDINGS}/{report['id']}.mp4").content == path.read_bytes()


def test_colors_of_a_recording(tmp_path: Path) -> None:
    """The four squares of the test picture come back as RGB from the file alone."""

    async def one() -> bytes:
        async with serving("--recordings", str(tmp_path)) as running:
            report = await recorded(running)
            await running.http.delete(f"{RECORDINGS}/{report['id']}")
            return (await running.http.get(f"{RECORDINGS}/{report['id']}.mp4")).content

    pixels = played(asyncio.run(one()))[-1].to_ndarray(format="rgb24").astype(int)
    wanted = to_rgb(fakes.test_frame(0)).astype(int)
    for place in range(4):
        assert np.abs(pixels[24, 24 + 32 * place] - wanted[24, 24 + 32 * place]).max() <= 8


def mount(*words: str) -> bool:
    return not subprocess.run(["mount", *words], capture_output=True).returncode


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB of its own."""
    if os.geteuid() or not mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)):
        pytest.skip("mounting needs rights")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


async def test_a_disk_that_turns_read_only_keeps_what_it_has(disk: Path) -> None:
    """Neither a new recording nor a removal does harm: both are 507, and the report of the last one stays."""
    async with serving("--recordings", str(disk)) as running:
        report = await recorded(running)
        place = f"{RECORDINGS}/{report['id']}"
        done = (await running.http.delete(place)).json()
        assert mount("-o", "remount,ro", str(disk))
        for reply in (await running.http.post(RECORDINGS), await running.http.delete(f"{place}.mp4")):
            assert refused(reply, 507) and "Read-only file system" in reply.json()["detail"]
        assert (await running.http.get(RECORDINGS)).json() == [done]
        assert len((await running.http.get(f"{place}.mp4")).content) == done["bytes"]

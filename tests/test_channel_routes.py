import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fakes import CRASH, FORKED, FORKED_CHUNKS, FORKED_SEED, PNG, REFUSE, Serving, Watcher, serving, watching
from test_app import refused

from engine.wire.ring import MOST_CHANNELS
from engine.wire.state_folder import JOURNAL
from streaming.http.channel_bodies import MOST_BASE64

pytestmark = pytest.mark.usefixtures("loopback")


@pytest.fixture
async def running() -> AsyncIterator[Serving]:
    async with serving() as server:
        yield server


async def create(running: Serving, **body: object) -> httpx.Response:
    return await running.http.post("/channels", json={"prompt": "a red ball"} | body)


async def fork(running: Serving, source: object, **body: object) -> httpx.Response:
    return await running.http.post("/channels", json={"from": source} | body)


async def test_channels_are_made_watched_and_deleted(running: Serving) -> None:
    """A new channel is listed and can be watched like the first; deleted, it is gone with its viewers."""
    reply = await create(running, id="second", seed=5)
    assert reply.status_code == 201 and reply.headers["location"] == "/channels/second"
    assert (reply.json()["id"], reply.json()["seed"], reply.json()["prompt"]) == ("second", 5, "a red ball")
    assert [one["id"] for one in (await running.http.get("/channels")).json()] == ["main", "second"]
    async with watching(running) as first:
        second = Watcher(running.http)
        await second.join(endpoint="/whep/second")
        await second.received(3)
        elsewhere = second.location.replace("/second/", "/main/")
        for method in ("GET", "DELETE"):
            assert refused(await running.http.request(method, elsewhere), 404), "it is a session of another channel"
        async with running.http.stream("GET", "/channels/second/events") as events:
            assert (await running.http.delete("/channels/second")).status_code == 204
            # The stream ends by itself.
            async with asyncio.timeout(5):
                async for _ in events.aiter_bytes():
                    pass
        # Of a session that ended lately.
        assert (await running.http.delete(second.location)).status_code == 200
        for path in ("/channels/second", "/channels/second/events", "/channels/second/live.mp4"):
            assert refused(await running.http.get(path), 404)
        assert refused(await running.http.delete("/channels/second"), 404)
        assert 'channel="second"' not in (await running.http.get("/metrics")).text
        await first.received(5)
        await second.close()
    assert (await create(running, id="second")).status_code == 201


async def test_a_reader_and_a_recording_of_a_deleted_channel_end_well(running: Serving) -> None:
    """The mp4 ends with a whole fragment."""
    await create(running, id="second")
    async with running.http.stream("GET", "/channels/second/live.mp4") as live:
        parts = live.aiter_bytes()
        data = await anext(parts)
        assert (await running.http.delete("/channels/second")).status_code == 204
        async with asyncio.timeout(5):
            async for part in parts:
                data += part
    assert data[4:8] == b"ftyp" and b"moof" in data


async def test_a_channel_is_purged(tmp_path: Path) -> None:
    """With its recordings and journals, those of earlier ones of its id too; nothing of another. Else all stay."""
    state, recordings = tmp_path / "state", tmp_path / "recordings"
    async with serving("--state", str(state), "--recordings", str(recordings)) as running:
        for folder in ("sea", "sea.20261129-201530-123456", "seal"):
            (state / folder).mkdir()
            (state / folder / JOURNAL).write_bytes(b"")
        (recordings / "sea").mkdir(parents=True)
        (recordings / "sea" / "20261129-201530-123.mp4").write_bytes(b"")
        await create(running, id="sea")
        assert (await running.http.delete("/channels/sea")).status_code == 204
        assert len(list(recordings.rglob("*.mp4"))) == 1 and len(list(state.rglob(JOURNAL))) == 3
        await create(running, id="sea")
        assert refused(await running.http.delete("/channels/sea?purge=maybe"), 422)
        assert (await running.http.post("/channels/sea/recordings")).status_code == 201
        assert (await running.http.delete("/channels/sea?purge=true")).status_code == 204
        assert not list(recordings.rglob("*.mp4")) and [path.parent.name for path in state.rglob(JOURNAL)] == ["seal"]
        # What cannot be removed is named, and the channel has ended all the same.
        await create(running, id="sea")
        (state / "sea").write_bytes(b"no folder")
        assert refused(await running.http.delete("/channels/sea?purge=1"), 507)
        assert refused(await running.http.get("/channels/sea"), 404)
        assert (await create(running, id="sea")).status_code == 201


async def test_an_id_of_its_own(running: Serving) -> None:
    """Without one the server chooses."""
    ids = [(await create(running)).json()["id"] for _ in range(2)]
    assert len(set(ids)) == 2
    assert {one["id"] for one in (await running.http.get("/channels")).json()} == {"main", *ids}


async def test_a_channel_forks_another(running: Serving) -> None:
    """From a chunk of one that runs, with prompt and seed that were there, or with others; it can be watched."""
    reply = await fork(running, {"channel": "main", "chunk": 2}, id="second")
    assert reply.status_code == 201
    assert (reply.json()["prompt"], reply.json()["seed"]) == (FORKED, FORKED_SEED)
    assert reply.json()["prompts"][0]["frame"] == 49
    second = Watcher(running.http)
    await second.join(endpoint="/whep/second")
    await second.received(3)
    assert (await running.http.get("/channels/second")).json()["frame"] >= 49
    assert (await running.http.patch("/channels/second", json={"prompt": "a ball"})).json()["frame"] > 49
    await second.close()
    reply = await fork(running, {"channel": "main", "chunk": 2}, prompt="the sea", seed=4)
    assert (reply.json()["prompt"], reply.json()["seed"]) == ("the sea", 4)


async def test_a_journal_that_is_kept_can_be_forked(tmp_path: Path) -> None:
    """By the name of its folder, whether its channel has ended or has begun anew."""
    async with serving("--state", str(tmp_path)) as running:
        for name in ("ended", "main.20261129-201530-123456"):
            assert refused(await fork(running, {"journal": name, "chunk": 1}), 404)
            (tmp_path / name).mkdir()
            (tmp_path / name / JOURNAL).write_bytes(b"")
            assert (await fork(running, {"journal": name, "chunk": 1})).status_code == 201


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ({"channel": "main", "chunk": FORKED_CHUNKS}, 409),
        ({"channel": "nobody", "chunk": 1}, 404),
        ({"channel": "main", "chunk": -1}, 422),
        ({"channel": "main", "chunk": 2**64}, 422),
        ({"channel": "main", "chunk": "1"}, 422),
        ({"channel": "main"}, 422),
        ({"channel": "main", "journal": "main", "chunk": 1}, 422),
        ({"journal": "../main", "chunk": 1}, 422),
        ({"journal": "main/..", "chunk": 1}, 422),
        ({"chunk": 1}, 422),
        ({}, 422),
        (None, 422),
        ("main", 422),
    ],
    ids=str,
)
async def test_what_cannot_be_forked_is_refused(running: Serving, source: object, status: int) -> None:
    """With one problem that says why; nothing of it stays."""
    assert refused(await fork(running, source), status)
    assert [one["id"] for one in (await running.http.get("/channels")).json()] == ["main"]


async def test_a_channel_goes_on_from_a_file(running: Serving) -> None:
    """Sent as base64; nothing of it is left when it was read, or was no picture."""
    before = set(os.listdir("/proc/self/fd"))
    picture = PNG + bytes(3_000_000)
    reply = await create(running, id="second", start=base64.b64encode(picture).decode())
    assert reply.status_code == 201 and reply.json()["prompt"] == "a red ball"
    assert refused(await create(running, start=base64.b64encode(b"no picture").decode()), 400)
    open_files = (Path("/proc/self/fd") / one for one in set(os.listdir("/proc/self/fd")) - before)
    assert not [one for one in open_files if one.exists() and "upload" in str(one.readlink())]
    assert [one["id"] for one in (await running.http.get("/channels")).json()] == ["main", "second"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"start": ""}, 400),
        ({"start": "%%%%"}, 400),
        ({"start": "aGk"}, 400),
        ({"start": "aGk=\naGk="}, 400),
        ({"start": "A" * (MOST_BASE64 + 4)}, 422),
        ({"start": "A" * 28_000_000}, 413),
        ({"start": None}, 422),
        ({"start": 7}, 422),
        ({"start": "aGk=", "from": {"channel": "main", "chunk": 1}}, 422),
    ],
    ids=lambda one: str(one)[:20],
)
async def test_bad_files_are_refused(running: Serving, body: dict[str, object], status: int) -> None:
    """With one problem that says why; nothing of them stays."""
    assert refused(await create(running, **body), status)
    assert [one["id"] for one in (await running.http.get("/channels")).json()] == ["main"]


async def test_a_channel_begins_with_something(running: Serving) -> None:
    """A prompt, or what it goes on from; null is neither."""
    for body in ({}, {"prompt": None}, {"id": "a"}, {"prompt": None, "from": {"channel": "main", "chunk": 1}}):
        assert refused(await running.http.post("/channels", json=body), 422)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"id": "main"}, 409),
        ({"id": ""}, 422),
        ({"id": "a/b"}, 422),
        ({"id": "-a"}, 422),
        ({"id": "a\n"}, 422),
        ({"id": "é"}, 422),
        ({"id": "x" * 10_000}, 422),
        ({"id": 7}, 422),
        ({"prompt": ""}, 422),
        ({"prompt": REFUSE}, 422),
        ({"seed": -1}, 422),
        ({"seed": 2**32}, 422),
        ({"seed": True}, 422),
        ({"steps": 0}, 422),
        ({"steps": 1001}, 422),
        ({"colour": "red"}, 422),
    ],
    ids=str,
)
async def test_bad_channels_are_refused(running: Serving, body: dict[str, object], status: int) -> None:
    """With one problem that says why; nothing of them stays."""
    assert refused(await create(running, **body), status)
    assert [one["id"] for one in (await running.http.get("/channels")).json()] == ["main"]


async def test_there_is_a_most_of_channels(running: Serving) -> None:
    """Of many at once as many are made as there is room for; the others are told so, and a viewer goes on."""
    async with watching(running) as watcher:
        limits = httpx.Limits(max_connections=8)
        async with httpx.AsyncClient(base_url=running.url, timeout=60, limits=limits) as http:
            replies = await asyncio.gather(
                *(http.post("/channels", json={"id": f"c{number}", "prompt": "x"}) for number in range(50))
            )
        await watcher.received(3)
    made = [reply for reply in replies if reply.status_code == 201]
    full = [reply for reply in replies if reply.status_code != 201]
    assert len(made) == MOST_CHANNELS - 1 and len(full) == 51 - MOST_CHANNELS
    assert all(refused(reply, 503) and reply.headers["retry-after"] for reply in full)


async def test_channels_outlive_a_crash_of_the_engine(running: Serving) -> None:
    """All of them go on, each where it stopped."""
    await create(running, id="second")
    async with watching(running) as watcher:
        assert (await running.http.patch("/channels/second", json={"prompt": CRASH})).status_code == 503
        await running.until(lambda report: report["state"] == "live")
        await watcher.received(30)
        report = (await running.http.get("/channels/second")).json()
        assert report["state"] == "idle"
    assert json.loads((await running.http.get("/channels")).text)[1]["prompt"] == "a red ball"


async def test_a_cut_is_answered_and_told(running: Serving) -> None:
    """Its frame is near, and its event comes when that is on air."""
    async with watching(running), running.http.stream("GET", "/channels/main/events") as stream:
        reply = await running.http.patch("/channels/main", json={"prompt": "a blue boat", "mode": "cut", "seed": 8})
        answer = reply.json()
        assert (answer["prompt"], answer["seed"], answer["replaced_by"]) == ("a blue boat", 8, None)
        assert 0 <= answer["eta_s"] <= 0.5
        async with asyncio.timeout(5):
            async for line in stream.aiter_lines():
                if line == f'data: {{"prompt": "a blue boat", "frame": {answer["frame"]}}}':
                    break
        report = await running.report()
        assert report["frame"] >= answer["frame"] and report["seed"] == 8


async def test_two_cuts_at_once_are_ordered_and_both_answered(running: Serving) -> None:
    """Each names its frame, or the one that took its place."""
    async with watching(running):
        changes = ({"prompt": prompt, "mode": "cut"} for prompt in ("a", "b", "c"))
        replies = await asyncio.gather(*(running.http.patch("/channels/main", json=body) for body in changes))
        answers = [reply.json() for reply in replies]
        assert all(reply.status_code == 200 for reply in replies)
        assert all((answer["frame"] is None) == (answer["replaced_by"] is not None) for answer in answers)
        # They may arrive in any order, and one that was answered already may lose its frame to the next.
        last = max(answer["frame"] or 0 for answer in answers)
        newest = {answer["prompt"] for answer in answers if answer["frame"] == last}
        assert (await running.report())["prompt"] in newest


async def test_a_video_is_paused_for_all(running: Serving) -> None:
    """It stands, also for who joins, and goes on."""
    async with watching(running) as watcher:
        reply = await running.http.patch("/channels/main", json={"paused": True})
        answer = reply.json()
        assert reply.status_code == 200 and answer["frame"] is not None
        async with watching(running):
            report = await running.report()
        assert (report["state"], report["frame"]) == ("paused", answer["frame"])
        assert (await running.http.patch("/channels/main", json={"paused": False})).status_code == 200
        await watcher.received(3)
        assert (await running.report())["frame"] > answer["frame"]

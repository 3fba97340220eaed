"""What comes, over HTTP."""

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fakes import HANG, Serving, serving, watching
from PIL import Image
from test_app import refused

pytestmark = pytest.mark.usefixtures("loopback")


@pytest.fixture
async def running() -> AsyncIterator[Serving]:
    async with serving() as server:
        await server.until(lambda report: report["buffered_s"] > 1)
        yield server


async def parts(running: Serving, whole: bool = False, path: str = "/channels/main/plan") -> list[dict[str, Any]]:
    """What comes; `whole` waits for all pictures."""
    async with asyncio.timeout(10):
        while True:
            reply = await running.http.get(path)
            assert reply.status_code == 200
            found: list[dict[str, Any]] = reply.json()["parts"]
            if not whole or all(part["picture"] for part in found):
                return found
            await asyncio.sleep(0.05)


async def test_what_comes_has_pictures(running: Serving) -> None:
    """Parts follow each other, rendered ones first; their pictures can be fetched under addresses of their own."""
    found = await parts(running, whole=True)
    assert all(one["frame"] + one["frames"] == two["frame"] for one, two in zip(found, found[1:], strict=False))
    assert found[0]["rendered"] and not found[-1]["rendered"] and found[0]["words"]["subject"] == "fish"
    assert {one["prompt"] for one in found} == {(await running.report())["prompt"]}
    reply = await running.http.get(found[0]["picture"])
    assert reply.headers["content-type"] == "image/jpeg" and "immutable" in reply.headers["cache-control"]
    with Image.open(io.BytesIO(reply.content)) as image:
        assert image.size == (192, 128)
    assert refused(await running.http.get("/channels/main/plan/0123456789abcdef.jpg"), 404)
    assert refused(await running.http.get("/channels/nowhere/plan"), 404)
    assert refused(await running.http.get("/channels/nowhere/plan/0123456789abcdef.jpg"), 404)


async def test_a_plan_is_dropped(running: Serving) -> None:
    """The answer has frame and seed, which the report has too; the pictures from there on are others."""
    found = await parts(running, whole=True)
    frame = next(part["frame"] for part in found if not part["rendered"])
    reply = await running.http.post("/channels/main/plan/discard", json={"frame": frame, "seed": 12})
    assert reply.status_code == 200 and reply.json() == {"frame": frame, "seed": 12, "understood": None}
    assert (await running.report())["seed"] == 12
    again = await parts(running)
    assert [part["picture"] for part in again if part["frame"] < frame] == [
        part["picture"] for part in found if part["frame"] < frame
    ]
    async with watching(running) as viewer:
        found = await parts(running)
        rendered = [part["frame"] for part in found if part["rendered"]][-1]
        assert (await running.http.post("/channels/main/plan/discard", json={"frame": rendered})).status_code == 200
        await viewer.received(30)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"frame": 10**6}, 409),
        ({"frame": 2**53}, 422),
        ({"frame": -1}, 422),
        ({"frame": "1"}, 422),
        ({"frame": 1, "seed": 2**32}, 422),
        ({"frame": 1, "prompt": "x"}, 422),
        ({}, 422),
    ],
)
async def test_what_cannot_be_dropped_is_refused(running: Serving, body: dict[str, Any], status: int) -> None:
    """With one problem each; nothing changes."""
    assert refused(await running.http.post("/channels/main/plan/discard", json=body), status)
    assert refused(await running.http.post("/channels/nowhere/plan/discard", json={"frame": 1}), 404)
    assert refused(await running.http.post("/channels/main/plan/discard", content="{}"), 415)
    assert (await running.report())["seed"] == 0


async def test_what_was_on_air_stays(running: Serving) -> None:
    """Its refusal says why."""
    async with watching(running) as viewer:
        await viewer.received(10)
        reply = await running.http.post("/channels/main/plan/discard", json={"frame": 0})
        assert refused(reply, 409) and "on air" in reply.json()["detail"]


async def test_an_engine_that_hangs_is_told(running: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while, to all who look or drop."""
    monkeypatch.setattr("streaming.http.plan_routes.ANSWER_TIMEOUT_S", 0.3)
    hanging = asyncio.create_task(running.http.patch("/channels/main", json={"prompt": HANG}))
    await asyncio.sleep(0.1)
    look = running.http.get("/channels/main/plan")
    drop = running.http.post("/channels/main/plan/discard", json={"frame": 5})
    replies = await asyncio.gather(look, drop)
    assert [reply.status_code for reply in replies] == [504, 504]
    hanging.cancel()
    await asyncio.wait([hanging])


async def test_addresses_of_pictures_carry_the_token() -> None:
    """Where it was in the address; without one they ask for it."""
    async with serving("--view-token", "see") as running:
        await running.until(lambda report: report["buffered_s"] > 1)
        await parts(running, whole=True)
        assert refused(await running.http.get("/channels/main/plan", headers={"authorization": ""}), 401)
        found = await parts(running)
        address = found[0]["picture"]
        assert (await running.http.get(f"{address}?token=see", headers={"authorization": ""})).status_code == 200
        assert refused(await running.http.get(address, headers={"authorization": ""}), 401)

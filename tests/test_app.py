import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from fakes import CRASH, HEIGHT, REFUSE, WIDTH, Serving, Watcher, sample_offer, serving, watching

pytestmark = pytest.mark.usefixtures("loopback")
SDP = {"content-type": "application/sdp"}
TRICKLE = {"content-type": "application/trickle-ice-sdpfrag"}


@pytest.fixture
async def running() -> AsyncIterator[Serving]:
    async with serving() as server:
        yield server


def refused(reply: httpx.Response, status: int) -> bool:
    assert reply.headers["content-type"] == "application/problem+json", reply.text
    assert reply.status_code == status == reply.json()["status"], reply.text
    return bool(reply.json()["detail"])


async def test_no_page_steers_unasked(running: Serving) -> None:
    """Without a token: what a browser sends for any page that somebody opens, a POST that is no JSON."""
    path = "/channels/main/recordings"
    for kind in ({}, {"content-type": "text/plain"}, {"content-type": "multipart/form-data; boundary=x"}):
        assert refused(await running.http.post(path, headers={"origin": "https://evil.example", **kind}), 415)
        # Programs have no origin; there is no folder for recordings.
        assert refused(await running.http.post(path, headers=kind), 409)
    assert refused(await running.http.post(path, headers={"origin": "https://ours.example"}, json={}), 409)


async def test_channel_report_is_complete(running: Serving) -> None:
    """The report of a warm, unwatched channel has its sizes, an idle state and a filled buffer; the list has it too."""
    report = await running.until(lambda report: report["chunk"] is not None)
    assert (report["id"], report["preset"], report["state"], report["error"]) == ("main", "mini", "idle", None)
    assert (report["width"], report["height"], report["fps"]) == (WIDTH, HEIGHT, 16.0)
    assert report["buffered_s"] > 1
    assert (report["frame"], report["viewers"], report["repeats"], report["steps"]) == (None, 0, 0, 4)
    assert set(report["chunk"]["ms"]) == {"plan", "render", "vae"}
    assert report["prompts"] == [
        {
            "prompt": report["prompt"],
            "frame": 0,
            "shown": False,
            "replaced_by": None,
            "unread": [],
            "seed": 0,
            "understood": None,
        }
    ]
    channels = (await running.http.get("/channels")).json()
    assert [entry["id"] for entry in channels] == ["main"]


async def test_service_routes(running: Serving) -> None:
    """Health, readiness, metrics and the page's folder answer."""
    assert (await running.http.get("/healthz")).json() == {"status": "ok"}
    assert (await running.http.get("/readyz")).json() == {"status": "ready"}
    metrics = await running.http.get("/metrics")
    assert "landiff_engine_ready 1.0" in metrics.text
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")


async def test_openapi_describes_whep(running: Serving) -> None:
    """The description names every route, and WHEP's content types."""
    document = (await running.http.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.")
    paths = document["paths"]
    assert {"/healthz", "/readyz", "/metrics", "/channels", "/channels/{channel_id}"} <= set(paths)
    post = paths["/whep/{channel_id}"]["post"]
    assert "application/sdp" in post["requestBody"]["content"]
    assert "application/sdp" in post["responses"]["201"]["content"]
    session = paths["/whep/{channel_id}/{session}"]
    assert "application/trickle-ice-sdpfrag" in session["patch"]["requestBody"]["content"]
    assert {"get", "patch", "delete"} <= set(session)


async def test_prompt_change_reaches_the_picture(running: Serving) -> None:
    """The answer names the frame; the event stream tells when it is on air; the report remembers it."""
    async with watching(running), running.http.stream("GET", "/channels/main/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        reply = await running.http.patch("/channels/main", json={"prompt": "  a blue boat ", "mode": "flow"})
        answer = reply.json()
        assert (reply.status_code, answer["prompt"]) == (200, "a blue boat")
        assert answer["eta_s"] > 0 and answer["unread"] == []
        shown, states = None, []
        async with asyncio.timeout(10):
            name = ""
            async for line in stream.aiter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data" and name == "state":
                    states.append(json.loads(value))
                elif field == "data" and json.loads(value)["prompt"] == "a blue boat":
                    shown = json.loads(value)
                    break
    assert shown == {"prompt": "a blue boat", "frame": answer["frame"]}
    assert states[0]["id"] == "main"
    report = await running.report()
    assert report["prompt"] == "a blue boat"
    assert report["prompts"][-1] == {
        "prompt": "a blue boat",
        "frame": answer["frame"],
        "shown": True,
        "replaced_by": None,
        "unread": [],
        "seed": 0,
        "understood": None,
    }


async def test_bad_prompts_are_refused(running: Serving) -> None:
    """Each bad body is 422 with a reason, and the prompt stays."""
    before = (await running.report())["prompt"]
    prompts = ["", " \n\t ", "a\u0000b", "\ud800", "x" * 2001, 3, REFUSE]
    bodies = [json.dumps({"prompt": prompt}).encode() for prompt in prompts]
    bodies += [
        json.dumps({"prompt": "x"} | more).encode()
        for more in ({"mode": "jump"}, {"seed": -1}, {"paused": 1}, {"sped": 3})
    ]
    for body in (b"", b"nonsense", b'"text"', *bodies):
        reply = await running.http.patch("/channels/main", content=body, headers={"content-type": "application/json"})
        assert refused(reply, 422), body
    assert (await running.report())["prompt"] == before


async def test_huge_bodies_are_refused(running: Serving) -> None:
    """100 kB is 413 on every route that takes a body."""
    for method, path in (("PATCH", "/channels/main"), ("POST", "/whep/main"), ("PATCH", "/whep/main/x")):
        assert refused(await running.http.request(method, path, content=b"x" * 100_000), 413)


async def test_unknown_things_are_not_found(running: Serving) -> None:
    """Unknown channels, sessions and pages are 404; a wrong method is 405."""
    offer = await sample_offer(running)
    for method, path in (
        ("GET", "/channels/other"),
        ("GET", "/channels/other/events"),
        ("PATCH", "/whep/main/none"),
        ("DELETE", "/whep/main/none"),
        ("GET", "/whep/main/none"),
        ("GET", "/whep/other"),
        ("OPTIONS", "/whep/other"),
        ("GET", "/page/../app.py"),
        ("GET", "/page/%2e%2e/app.py"),
        ("GET", "/nowhere"),
    ):
        assert refused(await running.http.request(method, path), 404), path
    assert refused(await running.http.post("/whep/other", content=offer, headers=SDP), 404)
    assert refused(await running.http.patch("/channels/other", json={"prompt": "x"}), 404)
    assert refused(await running.http.put("/channels/main", json={}), 405)


async def test_bad_offers_are_refused(running: Serving) -> None:
    """Wrong types, garbage, and offers that only aiortc stumbles over are 4xx; a viewer beside them sees no stall."""
    good = await sample_offer(running)
    bodies: list[tuple[str, dict[str, str], int]] = [
        (good, {"content-type": "text/plain"}, 415),
        ("", SDP, 400),
        ("garbage", SDP, 400),
        (good[: len(good) // 3], SDP, 400),
        (good.replace("recvonly", "sendonly"), SDP, 400),
        ("\r\n".join(line for line in good.split("\r\n") if "fingerprint" not in line), SDP, 400),
        (good + "a=candidate:1 1 udp 4294967296 192.0.2.1 5000 typ host\r\n", SDP, 400),
        (good + "a=extmap:x urn:y\r\n", SDP, 400),
    ]
    async with watching(running) as watcher:
        for body, headers, status in bodies:
            assert refused(await running.http.post("/whep/main", content=body, headers=headers), status), body[-200:]
        for query in ("?codec=av1", "?marker=maybe"):
            assert refused(await running.http.post(f"/whep/main{query}", content=good, headers=SDP), 422)
        await watcher.received(3)
        report = await running.report()
    assert (report["viewers"], report["repeats"]) == (1, 0)


async def test_session_life(running: Serving) -> None:
    """POST, GET, PATCH, DELETE as WHEP has them; a late DELETE finds the tombstone."""
    watcher = Watcher(running.http)
    await watcher.join()
    assert watcher.answer is not None
    assert watcher.answer.headers["content-type"] == "application/sdp"
    assert watcher.answer.headers["accept-patch"] == TRICKLE["content-type"]
    assert "a=sendonly" in watcher.answer.text
    etag, session = watcher.answer.headers["etag"], watcher.location
    assert (await running.http.get(session)).status_code == 204
    good = "a=candidate:1 1 udp 2130706431 127.0.0.1 5000 typ host\r\na=end-of-candidates\r\n"
    for headers in (TRICKLE, *(TRICKLE | {"if-match": one} for one in (etag, f'"x", {etag}', "*"))):
        trickled = await running.http.patch(session, content=good, headers=headers)
        assert trickled.status_code == 204 and "etag" not in trickled.headers
    for stale in ('"x"', f"W/{etag}", etag.strip('"'), "", '"x", "y"'):
        assert refused(await running.http.patch(session, content=good, headers=TRICKLE | {"if-match": stale}), 412)
    assert refused(await running.http.patch(session, content="a=candidate:1", headers=TRICKLE), 400)
    assert refused(await running.http.patch(session, content="garbage", headers=TRICKLE), 400)
    wrong_type = await running.http.patch(session, content=good, headers=SDP)
    assert refused(wrong_type, 415) and wrong_type.headers["accept-patch"] == TRICKLE["content-type"]
    many = good.splitlines()[0] + "\r\n"
    assert (await running.http.patch(session, content=many * 19, headers=TRICKLE)).status_code == 204
    assert (await running.http.delete(session, headers={"if-match": '"stale"'})).status_code == 200
    assert (await running.http.delete(session)).status_code == 200
    assert refused(await running.http.get(session), 404)
    await watcher.close()
    assert (await running.report())["viewers"] == 0


async def test_endpoint_courtesies(running: Serving) -> None:
    """OPTIONS says what is taken; GET is empty."""
    options = await running.http.options("/whep/main")
    assert (options.status_code, options.headers["accept-post"]) == (204, "application/sdp")
    got = await running.http.get("/whep/main")
    assert (got.status_code, got.content) == (204, b"")


async def test_killed_engine_resumes_for_the_viewer(running: Serving) -> None:
    """After kill -9 of the engine the same connection goes on: timestamps rise, frame numbers continue."""
    async with watching(running) as watcher:
        reply = await running.http.patch("/channels/main", json={"prompt": CRASH})
        assert refused(reply, 503)
        assert reply.headers["retry-after"]
        before = await running.report()
        report = await running.until(
            lambda report: report["state"] == "live" and report["frame"] > before["frame"] + 40
        )
        assert report["error"] is None
        await watcher.received(2)
        assert all(later > earlier for earlier, later in zip(watcher.pts, watcher.pts[1:], strict=False))
        assert "landiff_engine_restarts_total 1.0" in (await running.http.get("/metrics")).text


async def test_no_refusal_looks_like_a_counter_offer(running: Serving) -> None:
    """A 406 is a problem without Location: WHEP's counter-offer is SDP with one."""
    offer = (await sample_offer(running)).replace("VP8", "VP9").replace("H264", "AV1")
    reply = await running.http.post("/whep/main", content=offer, headers=SDP | {"accept": "application/sdp"})
    assert refused(reply, 406) and "location" not in reply.headers


async def test_a_token_for_both() -> None:
    """With --token watching and steering need it; the page and the probes do not."""
    async with serving("--token", "s3cret") as running, httpx.AsyncClient(base_url=running.url) as http:
        assert refused(await http.patch("/channels/main", json={"prompt": "x"}), 401)
        assert refused(await http.post("/whep/main", content="", headers=SDP), 401)
        assert refused(await http.get("/channels/main"), 401)
        assert refused(await http.get("/channels/main/events"), 401)
        for path in ("/", "/page/app.js", "/healthz", "/readyz", "/metrics", "/openapi.json"):
            assert (await http.get(path)).status_code == 200, path
        assert (await running.http.patch("/channels/main", json={"prompt": "x"})).status_code == 200
        async with watching(running) as watcher:
            await watcher.received(1)


async def test_watching_and_steering_have_tokens_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    """The view token watches by header or address and does not steer; no token reaches the log or an answer."""
    caplog.set_level("DEBUG")
    async with serving("--control-token", "c0ntrol", "--view-token", "v1ew+") as running:
        async with httpx.AsyncClient(base_url=running.url) as http:
            view = {"authorization": "Bearer v1ew+"}
            assert (await http.get("/channels/main", headers=view)).status_code == 200
            refusal = await http.patch("/channels/main", json={"prompt": "x"}, headers=view)
            assert refused(refusal, 403) and "v1ew" not in refusal.text
            async with http.stream("GET", "/channels/main/events?token=v1ew%2B") as stream:
                assert stream.status_code == 200
            watcher = Watcher(http)
            await watcher.join("?token=v1ew%2B")
            await watcher.received(1)
            # Who can send no header finds the token in the session's address again.
            assert watcher.location.endswith("?token=v1ew%2B")
            assert refused(await http.delete(watcher.location.partition("?")[0]), 401)
            assert (await http.delete(watcher.location)).status_code == 200
            await watcher.close()
    # Without the records of this test's own client.
    said = [record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert said and "v1ew" not in str(said) and "c0ntrol" not in str(said)


async def test_pages_of_other_origins_may_watch() -> None:
    """Every WHEP answer has CORS headers for an allowed origin, errors too; preflights need no token."""
    page = {"origin": "https://page.example"}
    async with serving("--allow-origin", "https://page.example", "--view-token", "v") as running:
        async with httpx.AsyncClient(base_url=running.url, headers=page) as http:
            for path, method in (
                ("/whep/main", "POST"),
                ("/whep/main/x", "PATCH"),
                ("/channels/main", "PATCH"),
                # Browsers keep the reason to themselves when a preflight is refused: the request has it.
                ("/whep/nowhere", "POST"),
            ):
                preflight = await http.options(path, headers={"access-control-request-method": method})
                assert preflight.status_code == 204
                assert preflight.headers["access-control-allow-origin"] == "https://page.example"
                assert method in preflight.headers["access-control-allow-methods"]
            assert refused(await http.get("/whep/main"), 401)
            auth = {"authorization": "Bearer v"}
            for reply in (
                await http.get("/whep/main", headers=auth),
                await http.head("/whep/main", headers=auth),
                await http.get("/whep/main/none", headers=auth),
                await http.post("/whep/main", content="x" * 50_000, headers=auth),
                await http.post("/whep/main", content="x"),
            ):
                assert reply.headers["access-control-allow-origin"] == "https://page.example"
                assert "ETag" in reply.headers["access-control-expose-headers"]
            other = await http.options(
                "/whep/main", headers={"origin": "https://b", "access-control-request-method": "POST"}
            )
            assert other.status_code == 204 and "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("asked", ["", "/live"])
async def test_behind_a_prefix(asked: str) -> None:
    """With --root-path a proxy may strip the prefix or leave it; page, files, events and Location know it."""
    async with serving("--root-path", "/live/") as running:
        page = await running.http.get(f"{asked}/")
        assert '<base href="/live/">' in page.text and 'src="page/app.js"' in page.text
        for path in ("/page/app.js", "/channels/main", "/healthz", "/openapi.json"):
            assert (await running.http.get(asked + path)).status_code == 200, path
        assert (await running.http.get(f"{asked}/openapi.json")).json()["servers"] == [{"url": "/live"}]
        watcher = Watcher(running.http)
        reply = await running.http.post(f"{asked}/whep/main", content=await watcher.offer(), headers=SDP)
        assert reply.headers["location"].startswith("/live/whep/main/")
        assert (await running.http.delete(reply.headers["location"])).status_code == 200
        await watcher.close()


async def test_every_path_names_its_methods(running: Serving) -> None:
    """HEAD works where GET does, `Allow` is whole, OPTIONS answers on sessions too, and a slash more is no redirect."""
    for path in (
        "/",
        "/healthz",
        "/readyz",
        "/metrics",
        "/openapi.json",
        "/channels",
        "/channels/main",
        "/page/app.js",
    ):
        head, got = await running.http.head(path), await running.http.get(path)
        assert (head.status_code, head.content) == (got.status_code, b"") == (200, b""), path
        assert head.headers["content-type"] == got.headers["content-type"]
    events = await running.http.head("/channels/main/events")
    assert (events.status_code, events.content) == (200, b"")
    for path in ("/channels/", "/channels/main/", "/healthz/", "/whep/main/"):
        assert (await running.http.get(path)).status_code in (200, 204), path
    for path, methods in (
        ("/channels/main", "DELETE, GET, HEAD, OPTIONS, PATCH"),
        ("/whep/main", "GET, HEAD, OPTIONS, POST"),
        ("/whep/main/x", "DELETE, GET, HEAD, OPTIONS, PATCH"),
    ):
        wrong = await running.http.put(path, json={})
        options = await running.http.options(path)
        assert refused(wrong, 405) and wrong.headers["allow"] == methods
        assert (options.status_code, options.headers["allow"]) == (204, methods)


async def test_a_prompt_that_is_no_json_is_415(running: Serving) -> None:
    """The content type decides, in words."""
    for headers in ({}, {"content-type": "text/plain"}):
        reply = await running.http.patch("/channels/main", content=b'{"prompt": "x"}', headers=headers)
        assert refused(reply, 415) and "application/json" in reply.json()["detail"]

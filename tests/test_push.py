import asyncio
import logging
import os
import re
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import httpx
import pytest
from aiortc import RTCPeerConnection
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from fakes import CRASH, FPS, Serving, serving, watching
from fastapi import Response
from fastapi.responses import RedirectResponse
from test_app import refused
from test_ice import free_tcp_port, needs_coturn, turn_server
from test_viewer import say
from whip_endpoint import WhipEndpoint, whip_endpoint

from engine.wire.startup import log_from
from streaming.media.push import PushConfig
from streaming.media.rate import RateConfig

pytestmark = pytest.mark.usefixtures("loopback")
PUSHES = "/channels/main/pushes"


@pytest.fixture
async def endpoint() -> AsyncIterator[WhipEndpoint]:
    async with whip_endpoint() as far:
        yield far


@pytest.fixture
async def running(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Serving]:
    limits = {"connect_s": 4.0, "check_s": 0.05, "silence_s": 2.0, "first_wait_s": 0.1, "longest_wait_s": 0.2}
    monkeypatch.setattr("streaming.media.push.PushConfig", partial(PushConfig, most=2, **limits))
    async with serving() as server:
        yield server


async def push(running: Serving, url: str, **more: str) -> httpx.Response:
    return await running.http.post(PUSHES, json={"url": url, **more})


async def until(running: Serving, location: str, condition: Any, limit_s: float = 10.0) -> dict[str, Any]:
    """Asks for a push's report until it fulfils a condition; returns it."""
    async with asyncio.timeout(limit_s):
        # HTTP has no event to wait for.
        while not condition(report := dict((await running.http.get(location)).json())):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return report


async def test_addresses_stay_out_of_the_log(
    running: Serving, endpoint: WhipEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is logged: the path of a WHIP address is often a secret, and so is its session."""
    log_from("debug")
    with caplog.at_level(logging.DEBUG):
        reply = await push(running, endpoint.url, token="t0ken")
        assert (await running.http.delete(reply.headers["location"])).status_code == 204
    assert "live at" in caplog.text and "secret-key" not in caplog.text and "t0ken" not in caplog.text


@pytest.mark.parametrize("codec", ["h264", "vp8"])
async def test_a_push_brings_the_video(running: Serving, endpoint: WhipEndpoint, codec: str) -> None:
    """The far end decodes it in order, and gets the token; the channel runs for it, and it is no viewer."""
    reply = await push(running, endpoint.url, token="t0ken", codec=codec)
    assert reply.status_code == 201, reply.text
    report, location = reply.json(), reply.headers["location"]
    assert (report["state"], report["codec"], report["error"], report["reconnects"]) == ("live", codec, None, 0)
    session = endpoint.sessions[0]
    await session.received(12)
    assert (session.last.width, session.last.height) == (192, 128)
    steps = [later - earlier for earlier, later in zip(session.pts, session.pts[1:], strict=False)]
    assert min(steps) > 0
    assert sorted(steps)[len(steps) // 2] == pytest.approx(90_000 / FPS, rel=0.05)
    assert endpoint.tokens == ["Bearer t0ken"]
    channel = await running.report()
    assert (channel["state"], channel["viewers"], channel["repeats"]) == ("live", 0, 0)
    assert (await running.http.get(PUSHES)).json()[0]["id"] == report["id"]
    assert "t0ken" not in (await running.http.get(location)).text + reply.text
    assert "secret-key" not in (await running.http.get(location)).text + reply.text
    assert (await running.http.delete(location)).status_code == 204
    assert session.deleted
    assert (await running.http.get(PUSHES)).json() == []
    for method in ("GET", "DELETE"):
        assert refused(await running.http.request(method, location), 404)
    await running.until(lambda report: report["state"] == "idle")


async def test_a_push_follows_what_its_far_end_reports(
    running: Serving, endpoint: WhipEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that loses most packets gets the low rung, and the high one again; no frame out of order."""
    monkeypatch.setattr("streaming.media.rate.RateConfig", partial(RateConfig, wait_s=0.5, drain_s=0.1))
    location = (await push(running, endpoint.url)).headers["location"]
    session = endpoint.sessions[0]
    await session.received(4)
    assert (await running.http.get(location)).json()["rung"] == "high"
    await say(session, lost=200)
    await until(running, location, lambda report: report["rung"] == "low")
    await session.received(8)
    await until(running, location, lambda report: report["rung"] == "high", 20.0)
    await session.received(4)
    assert session.pts == sorted(session.pts)


async def test_the_offer_is_whips(running: Serving, endpoint: WhipEndpoint) -> None:
    """One video that is only sent, one codec with its retransmissions, actpass, and candidates in it."""
    assert (await push(running, endpoint.url)).status_code == 201
    offer = endpoint.sessions[0].offer
    assert len(re.findall("^m=", offer, re.MULTILINE)) == 1
    assert set(re.findall(r"^a=rtpmap:\d+ ([\w]+)", offer, re.MULTILINE)) == {"H264", "rtx"}
    for line in ("a=sendonly", "a=setup:actpass", "a=rtcp-mux", "a=candidate", "a=group:BUNDLE 0"):
        assert line in offer


async def test_redirects_are_followed(running: Serving, endpoint: WhipEndpoint) -> None:
    """307 and 308 lead to the session, the token with them; others, circles and other schemes are told in words."""
    async with whip_endpoint() as front:
        front.instead = lambda: RedirectResponse(endpoint.url, 307)
        assert (await push(running, front.url, token="t")).status_code == 201
        assert endpoint.tokens == ["Bearer t"]
        front.instead = lambda: RedirectResponse(endpoint.url, 302)
        assert "307 or 308" in told(await push(running, front.url + "2"), 502)
        front.instead = lambda: RedirectResponse(front.url, 308)
        assert "circle" in told(await push(running, front.url + "2"), 502)
        front.instead = lambda: RedirectResponse("ftp://127.0.0.1/x", 307)
        assert "none of HTTP" in told(await push(running, front.url + "2"), 502)
        front.instead = lambda: Response(status_code=307)
        assert "nowhere" in told(await push(running, front.url + "2"), 502)
    assert len(endpoint.sessions) == 1


def told(reply: httpx.Response, status: int) -> str:
    """The words of a refusal, in which no secret may stand."""
    assert refused(reply, status)
    detail = str(reply.json()["detail"])
    assert "secret-key" not in detail and "t0ken" not in detail
    return detail


@pytest.mark.parametrize("status", [401, 403, 404, 405, 415, 500, 503, 418, 200])
async def test_refusals_of_the_far_end_are_told(running: Serving, endpoint: WhipEndpoint, status: int) -> None:
    """Each status is one 502 that names it and its meaning; nothing of the push stays."""
    endpoint.instead = lambda: Response("far away", status)
    words = told(await push(running, endpoint.url, token="t0ken"), 502)
    assert f"answers {status}: " in words and "far away" not in words
    assert (await running.http.get(PUSHES)).json() == []
    assert (await running.report())["state"] == "idle"


async def test_answers_that_are_none_are_told(running: Serving, endpoint: WhipEndpoint) -> None:
    """No SDP, too much, no Location, SDP that does not fit, a refused video: one 502 each, and the session is ended."""
    for instead, wanted in (
        (Response("<html>", 201, media_type="text/html"), "no SDP"),
        (Response("v=0 " + "x" * 100_000, 201, media_type="application/sdp"), "more than 65536 bytes"),
    ):
        endpoint.instead = lambda reply=instead: reply  # type: ignore[misc]
        assert wanted in told(await push(running, endpoint.url), 502)
    endpoint.instead = None
    endpoint.headers = {"Location": ""}
    assert "without Location" in told(await push(running, endpoint.url), 502)
    endpoint.headers = {}
    changes = (("m=video", "m=audio"), ("a=recvonly", "a=inactive"), (r"m=video \d+", "m=video 0"), ("H264", "AV1"))
    for number, (old, new) in enumerate(changes):
        endpoint.change = lambda sdp, old=old, new=new: re.sub(old, new, sdp)  # type: ignore[misc]
        reply = await push(running, endpoint.url)
        assert refused(reply, 502), (old, reply.text)
        assert endpoint.sessions[1 + number].deleted
    assert (await running.http.get(PUSHES)).json() == []


async def test_a_far_end_that_is_not_there(running: Serving) -> None:
    """A closed port and an unknown host are 502, one that says nothing is 504; each within the limit."""
    assert "cannot be reached" in told(await push(running, f"http://127.0.0.1:{free_tcp_port()}/secret-key"), 502)
    assert "cannot be reached" in told(await push(running, "http://no-such-host.invalid/secret-key"), 502)
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.MonkeyPatch.context() as patch:
        patch.setattr("streaming.media.whip.ANSWER_S", 0.3)
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/secret-key"
        assert "does not answer" in told(await push(running, url), 504)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"url": "ftp://h/x"}, "https://"),
        ({"url": "h/x"}, "https://"),
        ({"url": "http://user:secret-key@h/x"}, "token"),
        ({"url": "http://h/x#y"}, "#"),
        ({"url": "http://h:99999/x"}, "cannot be read"),
        ({"url": "http://h/x y"}, "ASCII"),
        ({"url": "http://" + "h" * 3000}, "2000"),
        ({"url": "http://h/x", "token": "a b"}, "token"),
        ({"url": "http://h/x", "codec": "av1"}, "codec"),
        ({"url": "http://h/x", "more": 1}, "more"),
        ({}, "url"),
    ],
)
async def test_bad_requests_are_refused(running: Serving, body: dict[str, Any], words: str) -> None:
    """422 with the reason, in which the address is not repeated."""
    reply = await running.http.post(PUSHES, json=body)
    assert words in told(reply, 422)


async def test_other_refusals(running: Serving, endpoint: WhipEndpoint) -> None:
    """A second push to one address is 409, one too many 503, another content type 415, another channel 404."""
    assert (await push(running, endpoint.url)).status_code == 201
    assert refused(await push(running, endpoint.url), 409)
    assert (await push(running, endpoint.url + "2")).status_code == 201
    full = await push(running, endpoint.url + "3")
    assert refused(full, 503) and full.headers["retry-after"]
    assert refused(await running.http.post(PUSHES, content=b"{}", headers={"content-type": "text/plain"}), 415)
    assert refused(await running.http.post("/channels/none/pushes", json={"url": endpoint.url}), 404)


async def test_a_push_outlives_its_far_end(running: Serving, endpoint: WhipEndpoint) -> None:
    """When the far end dies the report says why, the channel rests, and the push is live again when that is back."""
    location = (await push(running, endpoint.url)).headers["location"]
    await endpoint.sessions[0].received(4)
    endpoint.instead = lambda: Response(status_code=503)
    await endpoint.sessions[0].aclose()
    waiting = await until(running, location, lambda report: "answers 503" in (report["error"] or ""))
    assert waiting["live_s"] is None
    await running.until(lambda report: report["state"] == "idle")
    endpoint.instead = None
    again = await until(running, location, lambda report: report["state"] == "live")
    assert again["reconnects"] == 1
    await endpoint.sessions[-1].received(4)
    assert endpoint.sessions[0].deleted


async def test_a_far_end_that_falls_silent_is_left(running: Serving, endpoint: WhipEndpoint) -> None:
    """Without its reports the connection is made anew, whatever ICE says."""
    location = (await push(running, endpoint.url)).headers["location"]
    await endpoint.sessions[0].received(4)
    transport = endpoint.sessions[0].peer.getTransceivers()[0].receiver.transport

    async def nothing(data: bytes) -> None: ...

    transport._send_rtp = nothing
    report = await until(running, location, lambda report: report["reconnects"] == 1)
    assert "reports nothing" in report["error"]


async def test_a_push_outlives_the_engine(running: Serving, endpoint: WhipEndpoint) -> None:
    """A crash of the engine is none of the far end's business: its connection stays, and the video goes on."""
    location = (await push(running, endpoint.url)).headers["location"]
    await endpoint.sessions[0].received(4)
    assert (await running.http.patch("/channels/main", json={"prompt": CRASH})).status_code == 503
    await running.until(lambda report: report["state"] == "live")
    await endpoint.sessions[0].received(30, 20.0)
    assert (await running.http.get(location)).json()["reconnects"] == 0


def with_rsa_certificate(peer: RTCPeerConnection) -> None:
    """As of servers that make no ECDSA ones."""
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "far end")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
    (certificate,) = peer._RTCPeerConnection__certificates
    certificate._key, certificate._cert = key, builder.sign(key, hashes.SHA256())
    make = certificate._create_ssl_context

    def context(**settings: Any) -> Any:
        made = make(**settings)
        made.set_cipher_list(b"ECDHE-RSA-AES128-GCM-SHA256")
        return made

    certificate._create_ssl_context = context


async def test_a_far_end_may_have_an_rsa_certificate(running: Serving, endpoint: WhipEndpoint) -> None:
    """Also where it wants to be the DTLS server, which aiortc alone does not take."""
    endpoint.prepare = with_rsa_certificate
    endpoint.read_offer = lambda sdp: sdp.replace("a=setup:actpass", "a=setup:active")
    reply = await push(running, endpoint.url)
    assert reply.status_code == 201, reply.text
    await endpoint.sessions[0].received(4)


def hear_relays_only(peer: RTCPeerConnection) -> None:
    """Passes over checks that do not come from a port of `turn_command`."""
    connection = peer.getTransceivers()[0].receiver.transport.transport._connection
    take = connection.request_received

    def some(message: Any, addr: tuple[str, int], *rest: Any) -> None:
        if 49160 <= addr[1] <= 49260:
            take(message, addr, *rest)

    connection.request_received = some


@needs_coturn
async def test_turn_servers_of_the_far_end_are_used(running: Serving, endpoint: WhipEndpoint) -> None:
    """Where only a relay leads there, the one of the answer's Link header does; a bad link beside it harms nothing."""
    with turn_server("--lt-cred-mech", "--user", "ann:right") as (_, port):
        turn = f'<turn:127.0.0.1:{port}?transport=tcp>; rel="ice-server"; username="ann"; credential="right"'
        endpoint.headers = {"Link": f"<turn:x>; rel=ice-server, {turn}, </next>; rel=next"}
        endpoint.prepare = hear_relays_only
        reply = await push(running, endpoint.url)
        assert reply.status_code == 201, reply.text
        await endpoint.sessions[0].received(4)


async def test_pushes_disturb_nobody_and_leave_nothing(running: Serving, endpoint: WhipEndpoint) -> None:
    """While pushes come, fail and go a viewer sees no stall; afterwards neither task nor descriptor is left."""
    async with watching(running) as watcher:
        await watcher.received(2)
        tasks, descriptors = len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            location = (await push(running, endpoint.url)).headers["location"]
            await endpoint.sessions[-1].received(2)
            assert (await running.http.delete(location)).status_code == 204
        endpoint.change = lambda sdp: sdp.replace("a=recvonly", "a=inactive")
        assert refused(await push(running, endpoint.url), 502)
        async with asyncio.timeout(10):
            # Nothing tells when aiortc's last task ended, or the endpoint's last connection.
            while len(asyncio.all_tasks()) > tasks or len(os.listdir("/proc/self/fd")) > descriptors:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await watcher.received(4)
        assert (await running.report())["repeats"] == 0


async def test_a_server_that_stops_ends_its_pushes() -> None:
    """The far end hears of it at once, also while a push waits for its next try."""
    async with whip_endpoint() as endpoint, whip_endpoint() as other:
        async with serving() as running:
            assert (await push(running, endpoint.url)).status_code == 201
            location = (await push(running, other.url)).headers["location"]
            other.instead = lambda: Response(status_code=500)
            await other.sessions[0].aclose()
            await until(running, location, lambda report: report["state"] == "waiting")
        assert endpoint.sessions[0].deleted


async def test_steering_needs_the_control_token(endpoint: WhipEndpoint) -> None:
    """Who may only watch sees pushes and makes none."""
    async with serving("--control-token", "c", "--view-token", "v") as running:
        watcher = {"authorization": "Bearer v"}
        reply = await running.http.post(PUSHES, json={"url": endpoint.url}, headers=watcher)
        assert refused(reply, 403)
        assert (await running.http.get(PUSHES, headers=watcher)).json() == []
    assert endpoint.tokens == []


@pytest.mark.parametrize("wrong", [{"most": 0}, {"silence_s": 0.0}, {"first_wait_s": -1.0}])
def test_bad_limits_are_refused(wrong: dict[str, Any]) -> None:
    """Limits must be positive."""
    with pytest.raises(ValueError, match="positive"):
        PushConfig(**wrong)

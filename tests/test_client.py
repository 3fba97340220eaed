import asyncio
import http.server
import threading
from collections.abc import Iterator

import pytest
from fakes import FPS, serving

from streaming.bench.client import BenchViewer, EventStream, Http, RequestError
from streaming.bench.measure import fresh
from streaming.bench.recording import Arrival, BenchError

BODIES = {"/list": b"[]", "/text": b"text"}
REFUSED = {"/unauthorized": 401, "/missing": 404, "/busy": 503}
ANSWER = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n"
AUDIO = ANSWER + "m=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\na=sendonly\r\na=rtpmap:0 PCMU/8000\r\n"
VIDEO = ANSWER + "m=video 9 UDP/TLS/RTP/SAVPF 99\r\na=mid:0\r\na=sendonly\r\na=rtpmap:99 AV1/90000\r\n"
ANSWERS = {
    "/page": ("text/html", "<html>"),
    "/audio": ("application/sdp", AUDIO),
    "/refused": ("application/sdp", VIDEO.replace("m=video 9", "m=video 0")),
    "/inactive": ("application/sdp", VIDEO.replace("sendonly", "inactive")),
    "/av1": ("application/sdp", VIDEO),
    "/broken": ("application/sdp", VIDEO.replace("AV1", "VP8")),
}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path in BODIES else 500)
        self.end_headers()
        self.wfile.write(BODIES.get(self.path, b"no problem+json"))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        kind, body = ANSWERS.get(self.path, ("text/plain", ""))
        self.send_response(REFUSED.get(self.path, 201 if self.path in ANSWERS else 405))
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def strange() -> Iterator[Http]:
    """A server that is none of ours."""
    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield Http(f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/list", None, "not a JSON object"),
        ("/text", None, "not a JSON object"),
        ("/", 500, "500 Internal Server Error"),
    ],
)
async def test_replies_of_another_server_are_refused(strange: Http, path: str, status: int | None, words: str) -> None:
    """No object, or an error without a problem, ends in one clear error."""
    with pytest.raises(RequestError, match=words) as caught:
        await strange.json("GET", path)
    assert caught.value.status == status


async def test_no_reply_is_an_error_without_status() -> None:
    """A port where nobody listens."""
    with pytest.raises(RequestError, match="no reply") as caught:
        await Http("http://127.0.0.1:1").json("GET", "/channels")
    assert caught.value.status is None


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/unauthorized", "401 Unauthorized"),
        ("/missing", "404 Not Found"),
        ("/busy", "503 Service Unavailable"),
        ("/list", "405 Method Not Allowed"),
        ("/page", "the reply is text/html, not application/sdp: is it WHEP"),
        ("/audio", "the answer sends no video"),
        ("/refused", "the answer sends no video"),
        ("/inactive", "the answer sends no video"),
        ("/av1", "the answer's codecs are AV1; VP8 or H264 can be decoded here"),
        ("/broken", "the server's answer is not usable"),
    ],
)
async def test_an_endpoint_that_is_no_good_is_named(strange: Http, path: str, words: str) -> None:
    """Each in one line, with the address."""
    viewer = BenchViewer(Http(strange.url + path), "", None, lambda *seen: None)
    with pytest.raises(BenchError, match=words) as caught:
        await viewer.join()
    assert "\n" not in str(caught.value)
    await viewer.aclose()


async def test_an_endpoint_that_sends_nothing_is_given_up(loopback: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection without pictures ends in one line with its state."""
    monkeypatch.setattr("streaming.bench.client.JOIN_TIMEOUT_S", 0.01)
    async with serving() as running:
        viewer = BenchViewer(Http(running.url + "/whep/main"), "", None, lambda *seen: None)
        with pytest.raises(BenchError, match="no picture came within 0 s; the connection is"):
            await viewer.join()
        await viewer.aclose()


async def test_events_tell_of_rendered_frames_and_end(loopback: None) -> None:
    """Reports come with their time, in order; the thread that reads them ends behind the block."""
    async with serving() as running, EventStream(Http(running.url), "/channels/main/events") as events:
        first_s, report = await events.get()
        second_s, _ = await events.get()
        assert report["fps"] == FPS and second_s >= first_s
    assert not any(thread.name == "events" for thread in threading.enumerate())


@pytest.mark.parametrize("codec", ["vp8", "h264"])
async def test_viewer_reads_marks_and_leaves(loopback: None, codec: str) -> None:
    """Every decoded frame has its number and a clock that fits its arrival; close ends the session, twice is fine."""
    async with serving() as running:
        seen: list[Arrival] = []
        viewer = BenchViewer(
            Http(running.url), f"/whep/main?marker=1&codec={codec}", codec, lambda arrival, i420: seen.append(arrival)
        )
        times = await viewer.join()
        assert 0 < times.http_s < times.picture_s < 30
        assert times.ice_s is not None and times.dtls_s is not None and times.key_frame_s is not None
        assert times.http_s < times.ice_s <= times.dtls_s <= times.key_frame_s <= times.picture_s
        watching = asyncio.create_task(viewer.watch())
        await running.until(lambda report: len(seen) >= 10, 30)
        assert (await running.report())["viewers"] == 1
        assert viewer.stats()["packetsReceived"] >= len(seen)
        watching.cancel()
        await viewer.aclose()
        await viewer.aclose()
        assert (await running.report())["viewers"] == 0
    shown = fresh(seen)
    assert all(arrival.mark is not None for arrival in seen)
    marks = [arrival.mark for arrival in shown if arrival.mark is not None]
    assert [mark.index for mark in marks] == list(range(marks[0].index, marks[0].index + len(marks)))
    assert all(-2 < one.at_s * 1000 - mark.clock_ms < 5000 for one, mark in zip(shown, marks, strict=True))
    assert marks[-1].clock_ms - marks[0].clock_ms == pytest.approx((len(shown) - 1) * 1000 / FPS, abs=2000)
    assert all(one.packets is not None and one.packets.first_s <= one.packets.last_s <= one.at_s for one in shown)
    assert {one.size for one in shown} == {(192, 128)}


async def test_viewer_tells_why_it_was_refused(loopback: None) -> None:
    """The server's own words reach whoever measures, and nothing stays open."""
    async with serving() as running:
        viewer = BenchViewer(Http(running.url), "/whep/other", "vp8", lambda *seen: None)
        with pytest.raises(RequestError, match="There is no such channel"):
            await viewer.join()
        await viewer.aclose()


async def test_viewer_notices_the_end_of_the_video(loopback: None) -> None:
    """A server that stops ends the wait with an error."""
    async with serving() as running:
        viewer = BenchViewer(Http(running.url), "/whep/main", "vp8", lambda *seen: None)
        await viewer.join()
    with pytest.raises(BenchError, match="the viewer's video ended"):
        await viewer.watch()
    await viewer.aclose()

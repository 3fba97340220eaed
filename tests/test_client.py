import asyncio
import http.server
import threading
from collections.abc import Iterator

import pytest
from fakes import FPS, serving

from streaming.bench.client import BenchViewer, Http, RequestError
from streaming.bench.measure import Arrival, BenchError, fresh

BODIES = {"/list": b"[]", "/text": b"text"}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path in BODIES else 500)
        self.end_headers()
        self.wfile.write(BODIES.get(self.path, b"no problem+json"))

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


@pytest.mark.parametrize("codec", ["vp8", "h264"])
async def test_viewer_reads_marks_and_leaves(loopback: None, codec: str) -> None:
    """Every decoded frame has its number and a clock that fits its arrival; close ends the session, twice is fine."""
    async with serving() as running:
        seen: list[Arrival] = []
        viewer = BenchViewer(Http(running.url), "main", codec, seen.append)
        assert 0 < await viewer.join() < 30
        watching = asyncio.create_task(viewer.watch())
        await running.until(lambda report: len(seen) >= 10, 30)
        assert (await running.report())["viewers"] == 1
        watching.cancel()
        await viewer.aclose()
        await viewer.aclose()
        assert (await running.report())["viewers"] == 0
    shown = fresh(seen)
    assert all(arrival.mark is not None for arrival in seen)
    indices = [mark.index for _, mark in shown]
    assert indices == list(range(indices[0], indices[0] + len(indices)))
    assert all(-2 < at_s * 1000 - mark.clock_ms < 5000 for at_s, mark in shown)
    assert shown[-1][1].clock_ms - shown[0][1].clock_ms == pytest.approx((len(shown) - 1) * 1000 / FPS, abs=2000)


async def test_viewer_tells_why_it_was_refused(loopback: None) -> None:
    """The server's own words reach whoever measures, and nothing stays open."""
    async with serving() as running:
        viewer = BenchViewer(Http(running.url), "other", "vp8", lambda arrival: None)
        with pytest.raises(RequestError, match="There is no such channel"):
            await viewer.join()
        await viewer.aclose()


async def test_viewer_notices_the_end_of_the_video(loopback: None) -> None:
    """A server that stops ends the wait with an error."""
    async with serving() as running:
        viewer = BenchViewer(Http(running.url), "main", "vp8", lambda arrival: None)
        await viewer.join()
    with pytest.raises(BenchError, match="the viewer's video ended"):
        await viewer.watch()
    await viewer.aclose()

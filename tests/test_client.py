import http.server
import threading
from collections.abc import Iterator

import pytest
from fakes import FPS, serving

from streaming.bench.client import BenchError, Http, RequestError, Spectator
from streaming.bench.measure import Arrival, fresh

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


@pytest.mark.parametrize("path", ["/list", "/text"])
async def test_reply_that_is_no_object_is_refused(strange: Http, path: str) -> None:
    """Another server's replies end in one clear error."""
    with pytest.raises(RequestError, match="not (a )?JSON"):
        await strange.json("GET", path)


async def test_error_without_a_problem_names_the_status(strange: Http) -> None:
    """A plain error page is told by its status."""
    with pytest.raises(RequestError, match="500 Internal Server Error") as caught:
        await strange.json("GET", "/")
    assert caught.value.status == 500


async def test_no_reply_is_an_error_without_status() -> None:
    """A port where nobody listens."""
    with pytest.raises(RequestError, match="no reply") as caught:
        await Http("http://127.0.0.1:1").json("GET", "/channels")
    assert caught.value.status is None


@pytest.mark.parametrize("codec", ["vp8", "h264"])
async def test_spectator_reads_marks_and_leaves(loopback: None, codec: str) -> None:
    """Every decoded frame has its number and a clock that fits its arrival; close ends the session, twice is fine."""
    async with serving() as running:
        seen: list[Arrival] = []
        spectator = Spectator(Http(running.url), "main", codec, seen.append)
        assert 0 < await spectator.join() < 30
        await running.until(lambda report: len(seen) >= 10, 30)
        assert (await running.report())["viewers"] == 1
        await spectator.close()
        await spectator.close()
        assert (await running.report())["viewers"] == 0
    shown = fresh(seen)
    assert all(arrival.mark is not None for arrival in seen)
    indices = [mark.index for _, mark in shown]
    assert indices == list(range(indices[0], indices[0] + len(indices)))
    assert all(-2 < at_s * 1000 - mark.clock_ms < 5000 for at_s, mark in shown)
    assert shown[-1][1].clock_ms - shown[0][1].clock_ms == pytest.approx((len(shown) - 1) * 1000 / FPS, abs=2000)


async def test_spectator_tells_why_it_was_refused(loopback: None) -> None:
    """The server's own words reach whoever measures, and nothing stays open."""
    async with serving() as running:
        spectator = Spectator(Http(running.url), "other", "vp8", lambda arrival: None)
        with pytest.raises(RequestError, match="There is no such channel"):
            await spectator.join()
        await spectator.close()


async def test_spectator_notices_the_end_of_the_video(loopback: None) -> None:
    """A server that stops ends the wait with an error."""
    async with serving() as running:
        spectator = Spectator(Http(running.url), "main", "vp8", lambda arrival: None)
        await spectator.join()
    with pytest.raises(BenchError, match="the viewer's video ended"):
        await spectator.ended()
    await spectator.close()

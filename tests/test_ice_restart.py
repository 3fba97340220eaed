import asyncio
import re
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import aioice
import httpx
import pytest
from fakes import Serving, Watcher, sample_offer, serving, watching

from streaming.http.whep import NO_MEDIA
from streaming.media.ice import IceAgent
from streaming.media.ice_restart import IceRestarts
from streaming.media.offer import Fragment, IceSession, WhepError

pytestmark = pytest.mark.usefixtures("loopback")

TRICKLE = {"content-type": "application/trickle-ice-sdpfrag"}
ANY = TRICKLE | {"if-match": "*"}
CANDIDATE = "a=candidate:1 1 udp 2130706431 127.0.0.1 5000 typ host\r\n"


def body(ufrag: str = "new1", password: str = "0123456789abcdefghijkl", *more: str) -> str:
    lines = [f"a=ice-ufrag:{ufrag}", f"a=ice-pwd:{password}", "m=video 9 UDP/TLS/RTP/SAVPF 0", "a=mid:0", *more]
    return "".join(f"{line}\r\n" for line in lines)


class Peer:
    """A watcher that restarts ICE with the server's own means, as the controlling side."""

    def __init__(self, watcher: Watcher) -> None:
        transport = watcher.peer.getReceivers()[0].transport
        self.ice = transport.transport
        self._restarts = IceRestarts("watcher", transport, IceAgent(), 5.0)
        self.connection: Any = aioice.Connection(ice_controlling=True)

    async def offer(self) -> str:
        await self.connection.gather_candidates()
        candidates = [f"a=candidate:{one.to_sdp()}" for one in self.connection.local_candidates]
        return body(self.connection.local_username, self.connection.local_password, *candidates)

    async def connect(self, answer: str) -> None:
        values = [line.removeprefix("a=").partition(":") for line in answer.splitlines()]
        for name, _, value in values:
            match name:
                case "ice-ufrag":
                    self.connection.remote_username = value
                case "ice-pwd":
                    self.connection.remote_password = value
                case "candidate":
                    await self.connection.add_remote_candidate(aioice.Candidate.from_sdp(value))
        await self.connection.add_remote_candidate(None)
        await self._restarts._connect(self.connection)


async def restarted(running: Serving, watcher: Watcher) -> httpx.Response:
    """Restarts ICE of a watcher and waits until it goes by the new connection."""
    peer = Peer(watcher)
    reply = await running.http.patch(watcher.location, content=await peer.offer(), headers=ANY)
    assert reply.status_code == 200, reply.text
    await peer.connect(reply.text)
    assert peer.ice._connection is peer.connection
    return reply


async def test_video_goes_on_over_the_new_connection() -> None:
    """A restart gets new credentials and a new ETag; no frame is lost, and the old connection is closed."""
    async with serving() as running, watching(running) as watcher:
        assert watcher.answer is not None
        old = watcher.peer.getReceivers()[0].transport.transport._connection
        reply = await restarted(running, watcher)
        assert reply.headers["content-type"].startswith("application/trickle-ice-sdpfrag")
        assert reply.headers["etag"] not in ("", watcher.answer.headers["etag"])
        names = [line.partition(":")[0] for line in reply.text.splitlines()]
        assert names[:3] == ["m=video 9 UDP/TLS/RTP/SAVPF 0", "a=mid", "a=ice-ufrag"]
        assert names[-1] == "a=end-of-candidates"
        await watcher.received(16)
        assert old._closed
        steps = [later - earlier for earlier, later in zip(watcher.pts, watcher.pts[1:], strict=False)]
        assert max(steps) < 2 * 90_000 / 16
        assert (await running.http.get(watcher.location)).headers["etag"] == reply.headers["etag"]
        again = await restarted(running, watcher)
        await watcher.received(16)
        stale = TRICKLE | {"if-match": reply.headers["etag"]}
        assert (await running.http.patch(watcher.location, content=CANDIDATE, headers=stale)).status_code == 412
        fresh = TRICKLE | {"if-match": again.headers["etag"]}
        assert (await running.http.patch(watcher.location, content=CANDIDATE, headers=fresh)).status_code == 204
    assert watcher.peer.connectionState == "closed"


async def test_a_peer_without_a_usable_candidate_is_found_by_its_checks() -> None:
    """Browsers hide their addresses in names and end their candidates before their first check arrives."""
    async with serving() as running, watching(running) as watcher:
        peer = Peer(watcher)
        hidden = re.sub(r"(udp \d+) \S+", r"\1 1384bee9.local", await peer.offer())
        reply = await running.http.patch(watcher.location, content=hidden, headers=ANY)
        end = {"if-match": reply.headers["etag"]} | TRICKLE
        fragment = body(peer.connection.local_username, peer.connection.local_password, "a=end-of-candidates")
        assert (await running.http.patch(watcher.location, content=fragment, headers=end)).status_code == 204
        await asyncio.sleep(0.2)
        await peer.connect(reply.text)
        await watcher.received(8)
        assert peer.ice._connection is peer.connection


async def test_restart_that_never_connects_leaves_the_video_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old connection stays, with its place in the session, and a later restart works."""
    async with serving() as running, watching(running) as watcher:
        reply = await running.http.patch(watcher.location, content=body(), headers=ANY)
        assert reply.status_code == 200
        await watcher.received(8)
        end = body("new1", "0123456789abcdefghijkl", "a=end-of-candidates")
        fresh = TRICKLE | {"if-match": reply.headers["etag"]}
        assert (await running.http.patch(watcher.location, content=end, headers=fresh)).status_code == 204
        await watcher.received(8)
        await restarted(running, watcher)
        await watcher.received(8)


async def test_viewer_that_leaves_during_a_restart_leaves_nothing() -> None:
    """Neither task nor port of the new connection stays."""
    async with serving() as running:
        tasks = len(asyncio.all_tasks())
        async with watching(running) as watcher:
            assert (await running.http.patch(watcher.location, content=body(), headers=ANY)).status_code == 200
            assert (await running.http.delete(watcher.location)).status_code == 200
        async with asyncio.timeout(5):
            # Nothing tells when aiortc's last task ended.
            while len(asyncio.all_tasks()) > tasks:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def test_a_restart_that_is_given_up_at_once_leaves_no_port() -> None:
    """Also when its task has not begun."""
    transport = SimpleNamespace(transport=SimpleNamespace(_connection=aioice.Connection(ice_controlling=False)))
    restarts = IceRestarts("viewer", transport, IceAgent(), 5.0)
    session = IceSession("new1", "0123456789abcdefghijkl", NO_MEDIA, "0")
    await restarts.begin(session, Fragment((), session))
    new: Any = restarts._connection
    assert new._protocols
    await restarts.close()
    assert not new._protocols


async def test_a_session_that_ended_restarts_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that ends while the restart before is given up: nothing of the new one stays."""
    transport = SimpleNamespace(transport=SimpleNamespace(_connection=aioice.Connection(ice_controlling=False)))
    restarts = IceRestarts("viewer", transport, IceAgent(), 5.0)
    session = IceSession("new1", "0123456789abcdefghijkl", NO_MEDIA, "0")
    await restarts.begin(session, Fragment((), session))
    made, stop, gather = list[aioice.Connection](), restarts._stop, restarts._agent.gather_connection

    async def gather_and_note(connection: aioice.Connection) -> None:
        made.append(connection)
        await gather(connection)

    async def end_meanwhile() -> None:
        restarts._ended = True
        await stop()

    monkeypatch.setattr(restarts._agent, "gather_connection", gather_and_note)
    monkeypatch.setattr(restarts, "_stop", end_meanwhile)
    with pytest.raises(WhepError, match="ended before ICE was restarted"):
        await restarts.begin(session, Fragment((), session))
    assert made and not made[0]._protocols


async def test_bad_restarts_are_refused_and_the_video_goes_on() -> None:
    """Without If-Match 428, with a stale one 412, with half the credentials 400, after the session's end 404."""
    async with serving() as running, watching(running) as watcher:
        session = watcher.location

        async def refused(content: str, headers: dict[str, str]) -> tuple[int, str]:
            reply = await running.http.patch(session, content=content, headers=headers)
            assert reply.headers["content-type"] == "application/problem+json"
            return reply.status_code, reply.json()["detail"]

        status, detail = await refused(body(), TRICKLE)
        assert status == 428 and "If-Match: *" in detail
        assert (await refused(body(), TRICKLE | {"if-match": '"old"'}))[0] == 412
        assert (await refused("a=ice-ufrag:new1\r\n" + CANDIDATE, ANY))[0] == 400
        await watcher.received(3)
        await running.http.delete(session)
        for headers in (TRICKLE, ANY):
            status, detail = await refused(body(), headers)
            assert status == 404 and "ended" in detail


async def test_restarts_at_once_are_told_apart() -> None:
    """Of two that end the same ICE session one is answered; the other is 412, or 409 while the first is answered."""
    async with serving() as running, watching(running) as watcher:
        assert watcher.answer is not None
        known = TRICKLE | {"if-match": watcher.answer.headers["etag"]}
        both = [running.http.patch(watcher.location, content=body(f"new{n}"), headers=known) for n in range(2)]
        statuses = sorted([reply.status_code for reply in await asyncio.gather(*both)])
        assert statuses[0] == 200 and statuses[1] in (409, 412)
        await restarted(running, watcher)
        await watcher.received(8)


async def test_a_restart_that_comes_slowly_is_judged_when_it_is_there() -> None:
    """Its ETag is stale where another restart was answered while its body came."""
    async with serving() as running, watching(running) as watcher:
        assert watcher.answer is not None
        known = TRICKLE | {"if-match": watcher.answer.headers["etag"]}
        go_on = asyncio.Event()

        async def slowly() -> AsyncIterator[bytes]:
            yield body("slow").encode()[:20]
            await go_on.wait()
            yield body("slow").encode()[20:]

        slow = asyncio.create_task(running.http.patch(watcher.location, content=slowly(), headers=known))
        await asyncio.sleep(0.1)
        assert (await running.http.patch(watcher.location, content=body(), headers=known)).status_code == 200
        go_on.set()
        assert (await slow).status_code == 412
        await watcher.received(8)


async def test_restart_before_the_connection_is_refused() -> None:
    """There is nothing to restart yet: 409."""
    async with serving() as running:
        headers = {"content-type": "application/sdp"}
        reply = await running.http.post("/whep/main", content=await sample_offer(running), headers=headers)
        early = await running.http.patch(reply.headers["location"], content=body(), headers=ANY)
        assert early.status_code == 409 and "connected" in early.json()["detail"]


async def test_restart_without_a_free_port_is_refused() -> None:
    """Where every media port is in use it is 503, and the video goes on."""
    async with serving("--media-ports", "45871") as running, watching(running) as watcher:
        reply = await running.http.patch(watcher.location, content=body(), headers=ANY)
        assert reply.status_code == 503 and reply.headers["retry-after"]
        await watcher.received(8)

import asyncio
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import av
import httpx
import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription, rtp
from fakes import FPS, Serving, Watcher, not_understood, sample_offer, serving, watching

from streaming.media import marker
from streaming.media.feed import Feed
from streaming.media.hub import Hub
from streaming.media.metrics import Metrics
from streaming.media.rate import RateConfig, Rung
from streaming.media.viewer import ViewerConfig

pytestmark = pytest.mark.usefixtures("loopback")


class HubProbe:
    def __init__(self) -> None:
        self.requests = 0

    def request_keyframe(self) -> None:
        self.requests += 1

    def payloads(self, packet: av.Packet) -> list[bytes]:
        return [bytes(packet)]


class PacketsProbe:
    """In place of an RtpSender: keeps what is sent, and takes it or not."""

    def __init__(self, sender: object, connected: Callable[[], None]) -> None:
        self.connect = connected
        self.frames: list[list[bytes]] = []
        self.takes = True

    def send(self, payloads: list[bytes], pts: int) -> bool:
        self.frames.append(payloads)
        return self.takes

    def close(self) -> None:
        self.takes = False


def packet(key: bool) -> av.Packet:
    made = av.Packet(b"key" if key else b"delta")
    made.is_keyframe, made.pts = key, 0
    return made


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> tuple[Feed, Any, HubProbe, list[Feed]]:
    """A feed, where it sends, its hub, and how often it joined."""
    monkeypatch.setattr("streaming.media.feed.RtpSender", PacketsProbe)
    hub, joined = HubProbe(), []

    def join(one: Feed, rung: Rung) -> Hub:
        joined.append(one)
        return hub  # type: ignore[return-value]

    one = Feed(None, join, Metrics())
    return one, one.packets, hub, joined


def test_feed_joins_when_it_is_connected(feed: tuple[Feed, Any, HubProbe, list[Feed]]) -> None:
    """A feed that cannot send yet is not on air, so no backlog waits for a slow handshake."""
    one, packets, _, joined = feed
    assert joined == []
    packets.connect()
    assert joined == [one]
    one.offer(packet(True))
    assert packets.frames == [[b"key"]]


def test_feed_begins_with_a_keyframe(feed: tuple[Feed, Any, HubProbe, list[Feed]]) -> None:
    """Packets before the first key frame are dropped, and a key frame is asked for."""
    one, packets, hub, _ = feed
    packets.connect()
    one.offer(packet(False))
    assert (hub.requests, packets.frames, one.first_sent_s) == (1, [], None)
    one.offer(packet(True))
    one.offer(packet(False))
    assert packets.frames == [[b"key"], [b"delta"]] and one.first_sent_s is not None


def test_a_viewer_whose_network_is_full_waits_for_a_keyframe(feed: tuple[Feed, Any, HubProbe, list[Feed]]) -> None:
    """It never gets a delta without what it builds on."""
    one, packets, hub, _ = feed
    packets.connect()
    packets.takes = False
    one.offer(packet(True))
    packets.takes = True
    one.offer(packet(False))
    assert (hub.requests, len(packets.frames)) == (1, 1)
    one.offer(packet(True))
    assert packets.frames[1:] == [[b"key"]]


def test_an_ended_feed_sends_nothing_and_never_joins(feed: tuple[Feed, Any, HubProbe, list[Feed]]) -> None:
    """Also one that ends in the moment in which it connects; ending twice does no harm."""
    one, packets, hub, joined = feed
    one.end()
    one.end()
    packets.connect()
    one.offer(packet(True))
    one.request_keyframe()
    assert (packets.frames, joined, hub.requests) == ([], [], 0)


@pytest.mark.parametrize("wrong", [{"most": 0}, {"silence_s": 0.0}, {"connect_s": -1.0}])
def test_bad_limits_are_refused(wrong: dict[str, int]) -> None:
    """Limits must be positive."""
    with pytest.raises(ValueError, match="positive"):
        ViewerConfig(**wrong)


@pytest.mark.parametrize("query", ["", "?codec=vp8", "?codec=h264"])
async def test_viewer_sees_rising_timestamps(query: str) -> None:
    """A real client decodes video whose timestamps rise by one frame period each."""
    async with serving() as running, watching(running, query) as watcher:
        await watcher.received(12)
        assert (watcher.last.width, watcher.last.height) == (192, 128)
        steps = [later - earlier for earlier, later in zip(watcher.pts, watcher.pts[1:], strict=False)]
        assert min(steps) > 0
        assert sorted(steps)[len(steps) // 2] == pytest.approx(90_000 / FPS, rel=0.05)
        codec = "H264" if "h264" in query else "VP8"
        assert watcher.answer is not None
        assert f"{codec}/90000" in watcher.answer.text
        assert "a=setup:passive" in watcher.answer.text


def frame_numbers(watcher: Watcher) -> list[int]:
    """Of the last frames of a viewer that joined with `?marker=1`; each of them must be readable."""
    marks = [marker.read(frame.to_ndarray()[: frame.height]) for frame in watcher.frames]
    numbers = [mark.index for mark in marks if mark is not None]
    assert len(numbers) == len(marks)
    return numbers


async def test_second_viewer_does_not_disturb_the_first() -> None:
    """While others come and go, by DELETE and abruptly, the first one gets every frame, in order and without gaps."""
    async with serving() as running, watching(running, "?marker=1") as first:
        await first.received(4)
        for query in ("", "?codec=h264", "?marker=1"):
            async with watching(running, query) as other:
                await other.received(2)
        assert (await running.http.delete(other.location)).status_code == 200
        await first.received(4)
        numbers = frame_numbers(first)
        # The picture on air comes again, as a keyframe, where a viewer joins its encoding.
        assert numbers == sorted(numbers)
        assert set(numbers) == set(range(numbers[0], numbers[-1] + 1))
        # The machine may pause once; joining that held others up would do so with every viewer.
        steps = [later - earlier for earlier, later in zip(first.pts, first.pts[1:], strict=False)]
        assert sum(step >= 2 * 90_000 / FPS for step in steps) < 2
        report = await running.report()
        assert (report["repeats"], report["viewers"]) == (0, 1)


async def say(watcher: Any, lost: int) -> None:
    """Receiver reports of who has a `peer` over a hundred packets, with the share of lost ones in 1/256."""
    receiver = watcher.peer.getReceivers()[0]
    (ssrc,) = [one.source for one in receiver.getSynchronizationSources()]
    for highest in (0, 100):
        report = rtp.RtcpReceiverInfo(
            ssrc=ssrc,
            fraction_lost=lost,
            packets_lost=highest * lost // 256,
            highest_sequence=highest,
            jitter=0,
            lsr=0,
            dlsr=0,
        )
        await receiver._send_rtcp(rtp.RtcpRrPacket(ssrc=1, reports=[report]))


@pytest.mark.parametrize("codec", ["vp8", "h264"])
async def test_slow_viewer_has_a_bit_rate_of_its_own(monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    """A viewer that loses most packets goes to the low rung and back; another gets every frame meanwhile."""
    monkeypatch.setattr("streaming.media.rate.RateConfig", partial(RateConfig, wait_s=0.5, drain_s=0.1))
    query = f"?codec={codec}&marker=1"
    async with serving() as running, watching(running, query) as slow:
        async with watching(running, query) as other:
            await other.received(4)
            await say(slow, lost=200)
            await slow.received(8)
            reports = (await running.http.get("/channels/main/viewers")).json()
            assert [one["rung"] for one in reports] == ["low", "high"]
            assert reports[0]["loss"] is not None
            metrics = (await running.http.get("/metrics")).text
            assert 'landiff_viewer_high_rung{channel="main",viewer="0"} 0.0' in metrics
            assert 'landiff_viewer_high_rung{channel="main",viewer="1"} 1.0' in metrics
            async with asyncio.timeout(20):
                # Nothing tells a viewer which rung it gets.
                while (await running.http.get("/channels/main/viewers")).json()[0]["rung"] == "low":  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            await slow.received(4)
            numbers = frame_numbers(other)
            assert set(numbers) == set(range(numbers[0], numbers[-1] + 1))
        assert slow.pts == sorted(slow.pts)
        report = (await running.http.get("/channels/main/viewers")).json()[0]
        assert (report["number"], report["codec"], report["rung_changes"]) == (0, codec, 2)
        assert 'viewer="1"' not in (await running.http.get("/metrics")).text


async def test_lossy_viewer_is_told_to_hold_pictures_back() -> None:
    """One that offers the header extension, when it asks for packets again; the video goes on."""

    class Lossy(Watcher):
        async def offer(self) -> str:
            return await super().offer() + "a=extmap:9 http://www.webrtc.org/experiments/rtp-hdrext/playout-delay\r\n"

    async with serving() as running:
        watcher = Lossy(running.http)
        await watcher.join()
        await watcher.received(2)
        assert watcher.answer is not None and "a=extmap:9 http" in watcher.answer.text
        receiver = watcher.peer.getReceivers()[0]
        (ssrc,) = [one.source for one in receiver.getSynchronizationSources()]
        lost = list(range(1, 11))
        await receiver._send_rtcp(rtp.RtcpRtpfbPacket(rtp.RTCP_RTPFB_NACK, ssrc=1, media_ssrc=ssrc, lost=lost))
        await watcher.received(4)
        (report,) = (await running.http.get("/channels/main/viewers")).json()
        assert report["playout_delay_s"] == 0.35
        await watcher.close()


async def test_sessions_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions that end while they negotiate, connect or run leave no task, descriptor or viewer."""
    async with serving() as running:
        async with watching(running) as watcher:
            await watcher.received(2)
        await running.until(lambda report: report["viewers"] == 0)
        tasks, descriptors = len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))
        for pause_s in (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1):
            watcher = Watcher(running.http)
            await watcher.join()
            await asyncio.sleep(pause_s)
            assert (await running.http.delete(watcher.location)).status_code == 200
            await watcher.close()
        offer = await sample_offer(running)
        with monkeypatch.context() as patch:
            patch.setattr(RTCPeerConnection, "setRemoteDescription", not_understood)
            for sdp in ("v=0", offer):
                reply = await running.http.post("/whep/main", content=sdp, headers={"content-type": "application/sdp"})
                assert reply.status_code == 400
        async with asyncio.timeout(5):
            # Nothing tells when aiortc's last task ended.
            while len(asyncio.all_tasks()) > tasks:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert len(os.listdir("/proc/self/fd")) <= descriptors
        assert (await running.report())["viewers"] == 0


async def test_a_session_that_ends_before_its_answer_is_no_bad_offer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may come again: 503, and not the 400 of an offer that is wrong."""
    asked, let_go, take = asyncio.Event(), asyncio.Event(), RTCPeerConnection.setRemoteDescription

    async def wait(peer: RTCPeerConnection, description: RTCSessionDescription) -> None:
        asked.set()
        await let_go.wait()
        await take(peer, description)

    async with serving() as running:
        assert (await running.http.post("/channels", json={"id": "second", "prompt": "x"})).status_code == 201
        offer = await sample_offer(running)
        monkeypatch.setattr(RTCPeerConnection, "setRemoteDescription", wait)
        headers = {"content-type": "application/sdp"}
        answering = asyncio.create_task(running.http.post("/whep/second", content=offer, headers=headers))
        await asked.wait()
        assert (await running.http.delete("/channels/second")).status_code == 204
        let_go.set()
        reply = await answering
        assert reply.status_code == 503 and "retry-after" in reply.headers, reply.text


def limit(monkeypatch: pytest.MonkeyPatch, **limits: float) -> None:
    """Lets the server's viewers have these limits, beside those of its options."""
    monkeypatch.setattr("streaming.media.viewer.ViewerConfig", partial(ViewerConfig, **limits))


async def post_offer(running: Serving) -> httpx.Response:
    """The reply to the offer of a peer that never connects."""
    headers = {"content-type": "application/sdp"}
    return await running.http.post("/whep/main", content=await sample_offer(running), headers=headers)


async def test_unconnected_viewer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session whose peer never connects ends after the limit, and its place is free for the next."""
    limit(monkeypatch, connect_s=0.5, check_s=0.05)
    async with serving("--max-viewers", "1") as running:
        assert (await post_offer(running)).status_code == 201
        full = await post_offer(running)
        assert full.status_code == 503
        assert full.headers["retry-after"]
        assert full.json()["detail"] == "1 viewers are connected, which is the limit; try again later."
        async with asyncio.timeout(5):
            while 'reason="not connected in time"' not in (await running.http.get("/metrics")).text:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (await post_offer(running)).status_code == 201


@pytest.mark.parametrize("options", [("--max-viewers", "2"), ("--max-viewers-per-address", "2"), ()])
async def test_sessions_that_never_connect_make_room(monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]) -> None:
    """Whatever limit is reached, the session that waits longest for its connection ends for a new one."""
    limit(monkeypatch, patience_s=0.05, most_connecting=16 if options else 2)
    async with serving(*options) as running:
        first, second = await post_offer(running), await post_offer(running)
        await asyncio.sleep(0.1)
        assert (await post_offer(running)).status_code == 201
        assert 'reason="made room"' in (await running.http.get("/metrics")).text
        for session, status in ((first, 404), (second, 415)):
            assert (await running.http.patch(session.headers["location"])).status_code == status


async def test_one_address_has_a_share() -> None:
    """Connected viewers keep their places; the next one from their address is told why it must wait."""
    async with serving("--max-viewers-per-address", "1") as running, watching(running) as watcher:
        refused = await post_offer(running)
        assert refused.status_code == 503
        assert "1 viewers are connected from your address" in refused.json()["detail"]
        await watcher.received(4)


async def test_killed_viewer_is_noticed_by_its_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A viewer that dies without a word is closed after the silence limit, and its place is free again."""
    limit(monkeypatch, silence_s=2.0, check_s=0.1)
    async with serving() as running:
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CLIENT, running.url, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parent
        )
        assert client.stdout is not None
        session = (await client.stdout.readline()).decode().strip()
        assert (await running.report())["viewers"] == 1
        client.kill()
        await client.wait()
        await running.until(lambda report: report["viewers"] == 0, 12.0)
        assert (await running.http.delete(session)).status_code == 200
        assert 'reason="silent"' in (await running.http.get("/metrics")).text


CLIENT = """
import asyncio, sys
from fakes import Watcher
import aioice.ice, httpx

async def main():
    aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"] if use_ipv4 else []
    async with httpx.AsyncClient(base_url=sys.argv[1]) as http:
        watcher = Watcher(http)
        await watcher.join()
        await watcher.received(20)
        print(watcher.location, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""

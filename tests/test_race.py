import asyncio
import shutil
import sys
import threading
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import av
import httpx
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from engine.wire.messages import (
    ChannelOpened,
    FramesReady,
    Heartbeat,
    OpenChannel,
    PromptSet,
    Ready,
    SetPrompt,
    Shown,
    Stop,
)
from engine.wire.ring import RingConfig, RingReader
from engine.wire.settings import ChannelSettings, EngineSettings
from streaming.bench.peers import aiortc_server, film, measure, race
from streaming.bench.recording import BenchError

ROUNDS = 2
FRAME_BYTES = film.WIDTH * film.HEIGHT * 3 // 2


@pytest.fixture(scope="module")
def movie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    film.make(path.with_suffix(".h264"), path, ROUNDS)
    return path


def test_the_film_has_its_rate_and_goes_on(movie: Path) -> None:
    """It fills a viewer's link as ours does, and begins anew at its end, by a clock that does not."""
    kbps = movie.stat().st_size * 8 / film.SECONDS / ROUNDS / 1000
    assert 1000 < kbps < 2500
    pictures = film.frames(movie)
    first = next(pictures)
    assert first.shape == (film.HEIGHT * 3 // 2, film.WIDTH)
    for _ in range(film.SECONDS * film.FPS - 1):
        last = next(pictures)
    assert (next(pictures) == first).all() and not (last == first).all()
    with av.open(str(movie)) as file:
        times_s = [frame.time for frame in file.decode(video=0)]
    assert times_s == [index / film.FPS for index in range(ROUNDS * film.SECONDS * film.FPS)]


async def test_stock_aiortc_serves_the_film(movie: Path, loopback: None) -> None:
    """A viewer gets its pictures, encoded for it alone."""
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    receiver = peer.addTransceiver("video", direction="recvonly").receiver
    await peer.setLocalDescription(await peer.createOffer())
    app = aiortc_server.create(str(movie))
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://film") as http:
            reply = await http.post("/whep", content=peer.localDescription.sdp)
        assert reply.status_code == 201
        await peer.setRemoteDescription(RTCSessionDescription(reply.text, "answer"))
        picture = await asyncio.wait_for(receiver.track.recv(), 30)
        assert (picture.width, picture.height) == (film.WIDTH, film.HEIGHT)
    await peer.close()


def test_an_engine_plays_the_film(movie: Path) -> None:
    """It speaks as an engine does: ready, frames while there is room, prompts, an end."""
    reader = RingReader(RingConfig(4, film.BATCH * FRAME_BYTES))
    here, there = Pipe()
    settings = EngineSettings("mini", str(movie))
    here.send(OpenChannel("main", ChannelSettings("a film")))
    engine = threading.Thread(target=film.film_engine, args=(settings, reader.writer(), there))
    engine.start()
    assert isinstance(here.recv(), ChannelOpened)
    ready = here.recv()
    assert isinstance(ready, Ready) and (ready.width, ready.height, ready.fps) == (film.WIDTH, film.HEIGHT, film.FPS)
    batches = [until(here, FramesReady) for _ in range(4)]
    assert [batch.index for batch in batches] == [0, 8, 16, 24]
    assert reader.frames(batches[0].slot, film.BATCH, film.HEIGHT, film.WIDTH).std() > 10
    until(here, Heartbeat)
    here.send(SetPrompt(7, "main", "another", "flow"))
    assert until(here, PromptSet).request == 7
    here.send(Shown("main", 24, tuple(batch.slot for batch in batches[:3])))
    assert until(here, FramesReady).index == 32
    here.send(Stop())
    engine.join(10)
    assert not engine.is_alive()
    reader.close()


def until(pipe: Any, kind: type) -> Any:
    """The next message of a kind."""
    while not isinstance(message := pipe.recv(), kind):
        pass
    return message


def test_ours_and_stock_aiortc_race(monkeypatch: pytest.MonkeyPatch, loopback: None) -> None:
    """Both serve the same film to the same crowds; one that cannot be had is named, and the others go on."""
    monkeypatch.setattr(race, "FEW", 1)
    monkeypatch.setattr(race, "MANY", 3)
    monkeypatch.setattr(race, "WATCH_S", 1.5)
    monkeypatch.setattr(race, "SETTLE_S", 0.2)
    monkeypatch.setattr(race, "GOCODE", Path("/nowhere"))
    not_measured: list[str] = []
    found = measure(("aiortc", "pion"), not_measured)
    assert list(found) == ["ours", "aiortc"]
    assert not_measured == ["peer pion: Pion is missing: apt-get install golang-go golang-github-pion-webrtc.v3-dev"]
    for figures in found.values():
        assert figures["viewers"] == [1, 3] and figures["failed"] == []
        assert figures["ttff_s"]["count"] == 3 and figures["interval_ms"]["median"] == pytest.approx(62.5, rel=0.5)
        assert figures["kbps_a_viewer"] > 300
    assert "times_ours" in found["aiortc"]


@pytest.mark.skipif(shutil.which("janus") is None, reason="janus is missing")
def test_janus_is_left_with_what_is_needed() -> None:
    """All plugins but the one for streams are switched off."""
    others = race._others("plugins", "streaming")
    assert "libjanus_videoroom.so" in others and "streaming" not in others


async def test_a_server_that_ends_is_named(tmp_path: Path) -> None:
    """With its status, instead of waiting for it."""
    from contextlib import AsyncExitStack

    from streaming.bench.server_process import answers

    async with AsyncExitStack() as stack:
        process = await race._start(stack, sys.executable, "-c", "raise SystemExit(3)")
        with pytest.raises(BenchError, match="it ended with status 3"):
            await answers("http://127.0.0.1:1/", process)
        with pytest.raises(BenchError, match="/nowhere/program is missing"):
            await race._start(stack, "/nowhere/program")

"""Channels that are made of what is there, in the loop of the engine process."""

import asyncio
import multiprocessing
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from test_decoding import film
from test_interleave import SETTINGS, MemoryRing, Server
from test_journal_writer import Told, settled
from tiny import tiny_config, tiny_model, write_weights

from engine.config import PRESETS
from engine.live import journal_writer, opening
from engine.live.control_pipe import ControlPipe
from engine.live.generator import Generator
from engine.live.interleave import Interleaver
from engine.live.journal import Journal
from engine.live.journal_writer import JournalWriter
from engine.live.offline import generate_frames
from engine.live.replay import Replay
from engine.live.start import Starter
from engine.loading.model import load
from engine.loading.weights import save_component
from engine.semantic.theia import Theia
from engine.video.start_clip import last_pictures
from engine.wire.messages import (
    ChannelClosed,
    ChannelOpened,
    ChannelRefused,
    ChunkDone,
    CloseChannel,
    FramesReady,
    OpenChannel,
    Paused,
    Stop,
)
from engine.wire.settings import ChannelSettings, Fork, StartFile
from engine.wire.state_folder import JOURNAL

LIMIT_S = 100.0


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(PRESETS, "tiny", tiny_config)
    monkeypatch.setattr(journal_writer, "SNAPSHOT_S", 4 * tiny_config().chunk_s)
    yield


@cache
def generator() -> Generator:
    return Generator(tiny_model())


@asynccontextmanager
async def running(
    folder: Path | None, own: Generator | None = None
) -> AsyncIterator[tuple[Server, Interleaver, JournalWriter | None]]:
    """A loop with one channel, and journals where there is a folder."""
    own = own or generator()
    ours, theirs = multiprocessing.Pipe()
    writer = None if folder is None else JournalWriter(folder, own, Told())
    with ours, theirs:
        ring = MemoryRing(16)
        interleaver = Interleaver(own, ring, ControlPipe(theirs), journals=writer)  # type: ignore[arg-type]
        ours.send(OpenChannel("main", SETTINGS))
        interleaver.read_inbox()
        server = Server(ours, ring, SETTINGS)
        asyncio.get_running_loop().add_reader(ours.fileno(), server.read)
        task = asyncio.create_task(interleaver.run())
        try:
            await server.receive(ChannelOpened)
            yield server, interleaver, writer
            ours.send(Stop())
            await asyncio.wait_for(task, LIMIT_S)
        finally:
            task.cancel()
            asyncio.get_running_loop().remove_reader(ours.fileno())
            if writer is not None:
                writer.close(60)


def ask(name: str, chunk: int = 0, folder: str = "main", prompt: str | None = None) -> OpenChannel:
    return OpenChannel(name, ChannelSettings(prompt, None, 2, source=Fork(folder, chunk)))


async def chunks(server: Server, count: int) -> None:
    """The first channel makes and shows so many."""
    for _ in range(count):
        # What is there may be enough for now.
        server.show(server.end - server.shown)
        while (await server.receive(ChunkDone)).channel != "main":
            pass
        server.show(server.end - server.shown)


async def test_a_fork_is_made_beside_a_channel_that_runs(tmp_path: Path) -> None:
    """Its first frames are the journal's, the first channel goes on, and both have a journal."""
    async with running(tmp_path) as (server, interleaver, writer):
        assert writer is not None
        await chunks(server, 3)
        server.pipe.send(Paused("main", False))
        server.pipe.send(ask("fork", 2))
        opened = await server.receive(ChannelOpened)
        assert opened.channel == "fork" and opened.settings is not None
        assert (opened.settings.prompt, opened.settings.seed) == (SETTINGS.prompt, SETTINGS.seed)
        assert (opened.settings.start.chunk, opened.settings.start.frame) == (2, 49)
        frames = await of(server, "fork", 24)
        settled(writer)
        source = Replay(generator(), Journal(tmp_path / "main" / JOURNAL))
        was = np.concatenate([batch.i420 for batch in source.frames(49, 73)])
        assert (frames == was).all()
        assert interleaver._channels["fork"].least_steps == 2
    own = Replay(generator(), Journal(tmp_path / "fork" / JOURNAL))
    assert (np.concatenate([batch.i420 for batch in own.frames(49, 73)]) == was).all()


async def test_a_channel_goes_on_from_a_file(tmp_path: Path) -> None:
    """As `generate --start` does, beside a channel that runs; one that is no film is refused."""
    write_weights(tmp_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        save_component(tmp_path, "theia", Theia(tiny_config().theia))
    own = Generator(load(tiny_config(), tmp_path, torch.device("cpu"), torch.float32))
    path = film(tmp_path / "film.mp4", 3)
    async with running(None, own) as (server, _, _):
        await chunks(server, 1)
        bad = ChannelSettings("the sea", 5, 2, source=StartFile(str(tmp_path / "none")))
        server.pipe.send(OpenChannel("bad", bad))
        assert (await server.receive(ChannelRefused)).reason.startswith("the file is no video")
        asked = replace(bad, source=StartFile(str(path)))
        server.pipe.send(OpenChannel("start", asked))
        opened = await server.receive(ChannelOpened)
        assert (opened.channel, opened.settings) == ("start", replace(asked, source=None))
        frames = await of(server, "start", 24)
    state = Starter(own).begin(last_pictures(path, 32, 48, 8.0, 49), "the sea", 5, 2)
    assert (frames == np.concatenate([batch.i420 for batch in generate_frames(own, state, 24)])).all()


async def of(server: Server, name: str, count: int) -> npt.NDArray[np.uint8]:
    """The first frames of another channel than the server's own."""
    frames: list[npt.NDArray[np.uint8]] = []
    while sum(map(len, frames)) < count:
        message = await asyncio.wait_for(server.inbox.get(), LIMIT_S)
        if isinstance(message, FramesReady) and message.channel == name:
            frames.append(server.ring.frames[message.slot])
    return np.concatenate(frames)[:count]


async def test_a_channel_whose_buffer_is_low_comes_first(tmp_path: Path) -> None:
    """A unit of a fork is done only while those that run have enough, and no chunk of theirs is being made."""
    async with running(tmp_path) as (server, interleaver, _):
        await chunks(server, 2)
        main, openings = interleaver._channels["main"], interleaver._openings
        done: list[bool] = []
        work = openings.work

        def noted() -> None:
            done.append(main.batch is None and main.chunk is None and main.buffered <= 12)
            work()

        openings.work = noted  # type: ignore[method-assign]
        server.pipe.send(Paused("main", False))
        server.pipe.send(ask("fork", 1))
        while not any(isinstance(one, ChannelOpened) and one.channel == "fork" for one in server.others):
            await server.receive(object)
            server.show(4)
        assert done and not any(done)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (ask("fork", 99), "chunk 99 is not made yet: those that are there are 0 to"),
        (ask("fork", 0, "nobody"), "^nobody/journal.jsonl cannot be read"),
    ],
    ids=["future", "foreign"],
)
async def test_what_cannot_be_forked_is_refused(tmp_path: Path, message: OpenChannel, reason: str) -> None:
    """With a reason that does not tell where the server keeps its files; the next is made."""
    async with running(tmp_path) as (server, _, _):
        await chunks(server, 1)
        server.pipe.send(message)
        refused = await server.receive(ChannelRefused)
        assert refused.channel == "fork" and str(tmp_path) not in refused.reason
        assert re.search(reason, refused.reason)
        server.pipe.send(ask("fork", 0))
        assert (await server.receive(ChannelOpened)).channel == "fork"


async def test_what_the_engine_lacks_is_named() -> None:
    """Without journals nothing is forked, and without an extractor no file is read."""
    async with running(None) as (server, _, _):
        server.pipe.send(ask("fork"))
        assert "no journals are kept" in (await server.receive(ChannelRefused)).reason
        server.pipe.send(OpenChannel("start", ChannelSettings("the sea", source=StartFile("film"))))
        assert "no extractor" in (await server.receive(ChannelRefused)).reason


async def test_a_defect_is_told_and_costs_only_the_fork(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong while a channel is made, those that run go on."""

    def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    async with running(tmp_path) as (server, _, _):
        await chunks(server, 1)
        monkeypatch.setattr(opening, "fork", broken)
        server.pipe.send(ask("fork"))
        assert "has a defect" in (await server.receive(ChannelRefused)).reason
        assert "a defect" in caplog.text
        await chunks(server, 1)


async def test_one_that_is_not_wanted_any_more_is_dropped(tmp_path: Path) -> None:
    """Before its files are read and in the middle of its units; nothing of it follows."""
    async with running(tmp_path) as (server, interleaver, _):
        await chunks(server, 2)
        server.pipe.send(ask("fork", 1))
        server.pipe.send(CloseChannel("fork"))
        assert (await server.receive(ChannelClosed)).channel == "fork"
        server.pipe.send(ask("fork", 1))
        while not interleaver._openings.ready:  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0)
        server.pipe.send(CloseChannel("fork"))
        assert (await server.receive(ChannelClosed)).channel == "fork"
        assert not interleaver._openings._openings
        await chunks(server, 1)
        assert not any(isinstance(one, ChannelOpened) and one.channel == "fork" for one in server.others)


async def test_a_fork_that_comes_too_early_is_refused(tmp_path: Path) -> None:
    """Before the loop runs, as by an engine that was just started anew."""
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        interleaver = Interleaver(generator(), MemoryRing(4), ControlPipe(theirs))  # type: ignore[arg-type]
        ours.send(ask("fork"))
        interleaver.read_inbox()
        assert "was not ready" in ours.recv().reason

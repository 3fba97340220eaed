import asyncio
import gc
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection

import pytest
from fakes import BREAK, CRASH, HANG, MISSING, fake_engine

from engine.wire.messages import Stop
from engine.wire.ring import RingWriter
from engine.wire.settings import ChannelSettings, EngineSettings
from engine.wire.state_memory import StateMemory
from streaming.channels.channel import Channel
from streaming.engines.link import EngineLink
from streaming.engines.pool import EnginePool
from streaming.engines.process import EngineProcess, EngineTarget, LocalEngines, SupervisorConfig
from streaming.engines.supervisor import EngineError, Supervisor, supervise
from streaming.errors import Unavailable
from streaming.media.metrics import Metrics

QUICK = SupervisorConfig(restarts=2, backoff_s=0.05, stop_s=1.0, outbox=4)
STRICT = SupervisorConfig(restarts=2, backoff_s=0.05, stop_s=1.0, stalled_s=2.0, hung_s=4.0)


def linked(metrics: Metrics, weights: str | None = None, engines: int = 1) -> tuple[EnginePool, Channel]:
    """A pool of engines with one channel, which the first one makes."""
    pool = EnginePool(EngineSettings("mini", weights), metrics, engines)
    channel = Channel("main", ChannelSettings("first"), pool.links[0], metrics.channel("main"))
    pool.links[0].open(channel)
    return pool, channel


@asynccontextmanager
async def local(target: EngineTarget, config: SupervisorConfig) -> AsyncIterator[LocalEngines]:
    place = LocalEngines(target, config)
    try:
        yield place
    finally:
        await place.close()


class Watched(Supervisor):
    """One whose processes are known to be of this machine."""

    engine: EngineProcess | None  # type: ignore[assignment]
    spare: EngineProcess | None  # type: ignore[assignment]


@asynccontextmanager
async def supervised(
    target: EngineTarget = fake_engine, config: SupervisorConfig = QUICK
) -> AsyncIterator[tuple[Watched, Channel, asyncio.Task[None]]]:
    async with several(target, config, 1) as (supervisors, channel, task):
        yield supervisors[0], channel, task


@asynccontextmanager
async def several(
    target: EngineTarget = fake_engine, config: SupervisorConfig = QUICK, engines: int = 2
) -> AsyncIterator[tuple[list[Watched], Channel, asyncio.Task[None]]]:
    metrics = Metrics()
    pool, channel = linked(metrics, engines=engines)
    supervisors: list[Watched] = []
    async with local(target, config) as place:

        def supervisor(link: EngineLink) -> Watched:
            supervisors.append(Watched(place, link, pool, metrics, config))
            return supervisors[-1]

        task = asyncio.create_task(supervise(place, pool, supervisor))
        try:
            await state(channel, "idle")
            yield supervisors, channel, task
        finally:
            task.cancel()
            await asyncio.wait([task])


async def state(channel: Channel, wanted: str) -> None:
    async with asyncio.timeout(20):
        with channel.events.listen("test") as queue:
            while channel.report().state != wanted:
                await queue.get()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_engine_starts_and_stops_cleanly() -> None:
    """Cancelling the supervisor stops the process, and a second one leaves no more descriptors open than the first."""
    counts = []
    for _ in range(2):
        async with supervised() as (supervisor, _, task):
            assert supervisor.engine is not None
            pid = supervisor.engine.pid
            assert alive(pid)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            assert supervisor.engine is None
        assert not alive(pid)
        del supervisor, task, _
        gc.collect()
        counts.append(len(os.listdir("/proc/self/fd")))
    assert counts[1] <= counts[0]


async def test_the_first_engine_may_begin_early() -> None:
    """Whoever asks for it gets it, once; where other settings or none are asked for it ends."""
    settings = EngineSettings("mini")
    for asked in (settings, replace(settings, picture="large"), None):
        async with local(fake_engine, QUICK) as place:
            place.begin_early(settings)
            assert place._early is not None
            early = place._early.pid
            begun = [await place.begin(asked) for _ in range(2)] if asked is not None else []
            assert [one.pid == early for one in begun] == [asked == settings, False][: len(begun)]
            assert alive(early) == (asked in (settings, None))
            for one in begun:
                await one.stop()
        assert not alive(early)


async def test_killed_engine_is_named_and_restarted(caplog: pytest.LogCaptureFixture) -> None:
    """kill -9 is in the log and in the report, and the next engine goes on with the following frame and chunk."""
    async with supervised() as (supervisor, channel, _):
        # Ready comes before the first frames.
        async with asyncio.timeout(10):
            while not (before := channel.report().buffered_s):  # noqa: ASYNC110 - the channel tells nobody of a batch
                await asyncio.sleep(0.01)
        assert before > 0
        assert supervisor.engine is not None
        end = channel.settings().start.frame
        os.kill(supervisor.engine.pid, signal.SIGKILL)
        await state(channel, "restarting")
        assert channel.report().error == "the engine process was ended by SIGKILL"
        start = channel.settings().start
        assert start.frame >= end and start.killed
        await state(channel, "idle")
        assert channel.report().error is None
    assert any("SIGKILL; restarting" in record.message for record in caplog.records if record.levelno == logging.ERROR)


async def test_hopeless_engine_is_given_up() -> None:
    """An engine that keeps crashing is restarted as often as configured, then the channel has failed for good."""
    async with supervised() as (supervisor, channel, task):
        for _ in range(QUICK.restarts + 1):
            await state(channel, "idle")
            with pytest.raises(Unavailable):
                await channel.change(CRASH, "flow")
        await state(channel, "failed")
        await task
        assert supervisor.engine is None
        assert "SIGKILL" in str(channel.report().error)


async def test_protocol_error_ends_the_engine() -> None:
    """An engine that sends nonsense is ended and restarted; the report says what was wrong."""
    async with supervised() as (_, channel, _task):
        asking = asyncio.create_task(channel.change(BREAK, "flow"))
        await state(channel, "restarting")
        assert "broke the protocol" in str(channel.report().error) and not channel.settings().start.killed
        with pytest.raises(Unavailable):
            await asking
        await state(channel, "idle")


async def test_engine_that_does_not_read_is_ended() -> None:
    """Messages to a hung engine never block the server; when too many wait, it is ended."""
    async with supervised() as (supervisor, channel, _):
        asking = asyncio.create_task(channel.change(HANG, "flow"))
        await asyncio.sleep(0.1)
        engine = supervisor.engine
        assert engine is not None
        # Far more than a socket's buffer holds.
        for _ in range(20_000):
            engine.send(Stop())
        await state(channel, "restarting")
        assert channel.report().error == "the engine process does not read its messages"
        with pytest.raises(Unavailable):
            await asking


async def test_hung_engine_is_killed_on_stop() -> None:
    """An engine that ignores Stop is killed after stop_s."""
    async with supervised() as (supervisor, channel, task):
        asking = asyncio.create_task(channel.change(HANG, "flow"))
        await asyncio.sleep(0.1)
        assert supervisor.engine is not None
        pid = supervisor.engine.pid
        task.cancel()
        began_s = asyncio.get_running_loop().time()
        await asyncio.wait([task])
        assert QUICK.stop_s <= asyncio.get_running_loop().time() - began_s < QUICK.stop_s + 1
        assert not alive(pid)
        asking.cancel()


async def test_stopped_engine_is_stalled_and_comes_back() -> None:
    """SIGSTOP is noticed by the missing heartbeat; when the process goes on in time so does the channel."""
    async with supervised(config=STRICT) as (supervisor, channel, _):
        assert supervisor.engine is not None
        pid = supervisor.engine.pid
        os.kill(pid, signal.SIGSTOP)
        await state(channel, "stalled")
        assert "has not been heard" in str(channel.report().error)
        with pytest.raises(Unavailable, match="does not answer"):
            await channel.change("x", "flow")
        os.kill(pid, signal.SIGCONT)
        await state(channel, "idle")
        assert channel.report().error is None and supervisor.engine.pid == pid


async def test_hung_engine_is_restarted() -> None:
    """A process that stays silent is ended, and the next one goes on."""
    async with supervised(config=STRICT) as (supervisor, channel, _):
        assert supervisor.engine is not None
        os.kill(supervisor.engine.pid, signal.SIGSTOP)
        await state(channel, "restarting")
        assert "hung: it was not heard for 4 s" in str(channel.report().error)
        await state(channel, "idle")


async def running(supervisors: list[Watched]) -> None:
    async with asyncio.timeout(20):
        while not all(one._link.running for one in supervisors):  # noqa: ASYNC110 - nobody is told of an idle engine
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_another_engine_takes_the_channel(number: signal.Signals, caplog: pytest.LogCaptureFixture) -> None:
    """Where an engine ends or stands still, one that runs goes on at once; what it left is started again, empty."""
    caplog.set_level(logging.INFO)
    config = replace(QUICK, replaced_s=1.5, hung_s=60.0)
    async with several(config=config) as (supervisors, channel, _):
        await running(supervisors)
        async with asyncio.timeout(10):
            while not channel.report().buffered_s:  # noqa: ASYNC110 - the channel tells nobody of a batch
                await asyncio.sleep(0.01)
        first, second = supervisors
        assert first.engine is not None and channel.engine is first._link
        end, pid = channel.settings().start.frame, first.engine.pid
        os.kill(pid, number)
        async with asyncio.timeout(10):
            while channel.engine is not second._link:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
        assert channel.report().state == "idle" and channel.settings().start.frame >= end
        assert "channel main goes on in engine 1" in caplog.text and not alive(pid)
        await running(supervisors)
        assert not first._link.channels and len(second._link.channels) == 1


def first_without_weights(settings: EngineSettings, ring: RingWriter, control: Connection, memory: StateMemory) -> None:
    """Of the engines the first one cannot start."""
    fake_engine(replace(settings, weights=None if settings.number else MISSING), ring, control, memory)


async def test_an_engine_that_cannot_start_leaves_its_channels_to_others(caplog: pytest.LogCaptureFixture) -> None:
    """The log has its reason; the server goes on with the others, until none is left."""
    async with several(first_without_weights) as (supervisors, channel, task):
        assert channel.engine is supervisors[1]._link and channel.report().state == "idle"
        assert "an engine cannot start: no weights in 'missing'" in caplog.text and not task.done()
    metrics = Metrics()
    pool, channel = linked(metrics, MISSING, 2)
    async with local(fake_engine, QUICK) as place:
        with pytest.raises(EngineError, match="no weights"):
            await supervise(place, pool, lambda link: Supervisor(place, link, pool, metrics, QUICK))
    assert channel.report().state == "failed"


SPARE = SupervisorConfig(restarts=2, backoff_s=0.05, stop_s=1.0, replaced_s=1.5, hung_s=60.0, spare_s=0.05)


async def spare_of(supervisor: Watched) -> int:
    """Waits until there is a spare that is warm; its pid."""
    async with asyncio.timeout(20):
        while supervisor.spare is None or supervisor.spare.ready is None:  # noqa: ASYNC110 - nobody is told of a spare
            await asyncio.sleep(0.02)
    return supervisor.spare.pid


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_spare_takes_over(number: signal.Signals) -> None:
    """An engine that ends or stands still is followed by the process that is warm already; then another is warmed."""
    async with supervised(config=SPARE) as (supervisor, channel, task):
        pid = await spare_of(supervisor)
        assert supervisor.engine is not None
        first = supervisor.engine.pid
        os.kill(first, number)
        await state(channel, "restarting")
        await state(channel, "idle")
        assert supervisor.engine.pid == pid and not alive(first)
        other = await spare_of(supervisor)
        task.cancel()
        await asyncio.wait([task])
        assert not alive(pid) and not alive(other)


async def test_a_spare_that_ends_is_followed_by_another(caplog: pytest.LogCaptureFixture) -> None:
    """The engine goes on meanwhile; one that ended just before it is wanted is passed over."""
    async with supervised(config=SPARE) as (supervisor, channel, _):
        os.kill(pid := await spare_of(supervisor), signal.SIGKILL)
        async with asyncio.timeout(20):
            while supervisor.spare is None or supervisor.spare.pid == pid:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.02)
        assert "it was the spare" in caplog.text and channel.report().state == "idle"
        assert supervisor.engine is not None
        for one in (await spare_of(supervisor), supervisor.engine.pid):
            os.kill(one, signal.SIGKILL)
        await state(channel, "restarting")
        await state(channel, "idle")


@contextmanager
def no_more_files() -> Iterator[None]:
    """Within the block this process cannot make a file of any size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_what_the_system_does_not_give_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    """Without memory for a spare the engine goes on; without memory for the next one that comes later."""
    async with supervised(config=replace(SPARE, restarts=20)) as (supervisor, channel, task):
        with no_more_files():
            async with asyncio.timeout(20):
                while "no spare engine process can begin: File too large" not in caplog.text:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            assert channel.report().state == "idle" and supervisor.engine is not None
            descriptors = len(os.listdir("/proc/self/fd"))
            os.kill(supervisor.engine.pid, signal.SIGKILL)
            async with asyncio.timeout(20):
                while "no engine process can begin: File too large" not in caplog.text:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.02)
            assert len(os.listdir("/proc/self/fd")) < descriptors and not task.done()
        await state(channel, "idle")
        await spare_of(supervisor)


async def test_nothing_is_sent_to_a_process_that_is_stopped() -> None:
    """Who leaves late tells it to nobody."""
    async with supervised() as (supervisor, _, task):
        engine = supervisor.engine
        assert engine is not None
        task.cancel()
        await asyncio.wait([task])
        engine.send(Stop())


def slow_spare(settings: EngineSettings, ring: RingWriter, control: Connection, memory: StateMemory) -> None:
    """An engine whose spare is long in loading."""
    if settings.spare:
        time.sleep(1.0)
    fake_engine(settings, ring, control, memory)


@pytest.mark.parametrize("allowed", [True, False])
async def test_a_spare_that_is_not_warm_yet_is_hurried(allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the server's priority and goes on; where that is not allowed, a new process begins in its place."""

    def refused(*_: int) -> None:
        raise PermissionError

    if not allowed:
        monkeypatch.setattr("os.setpriority", refused)
    async with supervised(slow_spare, SPARE) as (supervisor, channel, _):
        async with asyncio.timeout(20):
            while supervisor.spare is None:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
        assert supervisor.engine is not None
        pid = supervisor.spare.pid
        os.kill(supervisor.engine.pid, signal.SIGKILL)
        await state(channel, "restarting")
        await state(channel, "idle")
        assert (supervisor.engine.pid == pid) == allowed and alive(pid) == allowed


@pytest.mark.parametrize(("weights", "error"), [(MISSING, "no weights in 'missing'"), ("crash", "status 3")])
async def test_engine_that_never_starts_is_an_error(weights: str, error: str) -> None:
    """The engine's own words, or how it ended, come out as one EngineError; there is no restart."""
    metrics = Metrics()
    pool, _ = linked(metrics, weights)
    target = fake_engine if weights == MISSING else end_at_once
    async with local(target, QUICK) as place:
        with pytest.raises(EngineError, match=error):
            await supervise(place, pool, lambda link: Supervisor(place, link, pool, metrics, QUICK))
    assert b"landiff_engine_restarts_total 0.0" in metrics.text()


def end_at_once(*_: object) -> None:
    os._exit(3)


def test_first_restart_is_at_once_and_later_ones_wait_longer() -> None:
    """Delays double up to a limit."""
    config = SupervisorConfig(backoff_s=1.0, backoff_limit_s=5.0)
    assert [config.delay_s(failures) for failures in range(1, 7)] == [0.0, 1.0, 2.0, 4.0, 5.0, 5.0]


@pytest.mark.parametrize("wrong", [{"restarts": -1}, {"outbox": 0}, {"stop_s": -1.0}])
def test_bad_configuration_is_refused(wrong: dict[str, int]) -> None:
    """Negative counts and times raise ValueError."""
    with pytest.raises(ValueError, match="must|needed"):
        SupervisorConfig(**wrong)


def test_server_side_imports_no_torch() -> None:
    """The server process never pays for torch."""
    code = (
        "import sys, server, streaming.http.app, streaming.engines.supervisor, streaming.media.rtp_hooks\n"
        "assert 'torch' not in sys.modules and 'engine.live' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

"""A day of media time, and a system's clock that is set meanwhile: no video, viewer or limit minds."""

import ast
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
from aiortc import clock, rtcrtpreceiver
from fakes import serving, test_frame, watching

from streaming.media.hub import CODECS, Encoder, Geometry
from streaming.media.pacer import MEDIA_CLOCK_HZ, Action, Pacer

ROOT = Path(__file__).parents[1]
DAY_S = 24 * 3600
# Who may read the wall clock, and what for.
WALL = {
    "engine/bench/report.py": "the date of a report",
    "engine/live/journal_writer.py": "the name of a folder that is set aside",
    "engine/wire/state_folder.py": "the age of a folder of a server that is gone",
    "streaming/bench/peers/janus_gateway.py": "a number that no cache knows",
    "streaming/bench/run.py": "the date of a report",
    "streaming/chaos/__main__.py": "the date of a report",
    "streaming/chaos/kills.py": "the date of a report",
    "streaming/chaos/page.py": "a browser's clock, which is held against ours",
    "streaming/chaos/stage.py": "likewise",
    "streaming/media/ice.py": "until when credentials of TURN are good",
    "streaming/media/recordings.py": "the name of a recording",
    "streaming/media/rtp_sender.py": "once, as the process begins",
}
READERS = ("time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "clock.current_ntp_time")


def wall_clocks(path: Path) -> Iterator[str]:
    """Calls in a module that read the wall clock."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(READERS):
            yield ast.unparse(node.func)


def test_few_read_the_wall_clock() -> None:
    """Nothing that decides when something happens; all of that is by the monotonic clock."""
    modules = [ROOT / "server.py", *(path for room in ("engine", "streaming") for path in (ROOT / room).rglob("*.py"))]
    assert {str(path.relative_to(ROOT)) for path in modules if any(wall_clocks(path))} == set(WALL)


async def test_a_clock_that_is_set_is_not_noticed(loopback: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """While somebody watches it goes hours ahead and back: frames come as before, nothing is repeated or closed."""
    async with serving() as running, watching(running) as watcher:
        begun_s = time.monotonic()
        before, now = await running.report(), clock.current_datetime()
        zero_ms = clock.current_ms() - int(1000 * time.monotonic())
        # Of the viewer, in this process too: aiortc counts on by each millisecond that an arrival was later.
        monkeypatch.setattr(clock, "current_ms", lambda: zero_ms + int(1000 * time.monotonic()))
        # Likewise: the reports of aiortc 1.16 end where jitter has more than 32 bits, and closing it waits for them.
        monkeypatch.setattr(rtcrtpreceiver, "time", SimpleNamespace(time=time.time))
        for hours in (5, -5, 24 * 400):
            monkeypatch.setattr(clock, "current_datetime", lambda hours=hours: now + timedelta(hours=hours))
            monkeypatch.setattr(time, "time", lambda hours=hours: now.timestamp() + 3600 * hours)
            await watcher.received(6)
        after = await running.report()
        assert (after["state"], after["viewers"], after["repeats"]) == ("live", 1, before["repeats"])
        steps = [later - earlier for earlier, later in zip(watcher.pts, watcher.pts[1:], strict=False)]
        assert 0 < min(steps) and max(steps) < (time.monotonic() - begun_s) * MEDIA_CLOCK_HZ


def test_the_media_clock_is_exact_after_a_day() -> None:
    """No frame of a day is a tick off, where the machine's clock is years old."""
    pacer, begin_s = Pacer(8.0), 1e8
    pacer.resume(begin_s)
    for number in range(DAY_S * 8):
        tick = pacer.tick(begin_s + number / 8, 8)
        assert tick.action is Action.SHOW and tick.pts == number * MEDIA_CLOCK_HZ // 8
    assert (pacer.repeats, pacer.slips, pacer.underruns) == (0, 0, 0)


@pytest.mark.parametrize("codec", CODECS)
def test_encoders_do_not_mind_a_timestamp_of_more_than_32_bits(codec: str) -> None:
    """Each frame around that place becomes a packet with its timestamp, and can be decoded."""
    encoder = Encoder(codec, Geometry(192, 128, 8.0))
    decoder = av.CodecContext.create("libvpx" if codec == "vp8" else "h264", "r")
    stamps = [(1 << 32) + 11_250 * number for number in range(-4, 4)]
    packets = [encoder.encode(test_frame(number), pts, number == 0) for number, pts in enumerate(stamps)]
    assert [packet.pts for packet in packets] == stamps
    assert sum(len(decoder.decode(packet)) for packet in [*packets, None]) == len(stamps)

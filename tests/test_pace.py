"""How fast the machine computed meanwhile, and figures as it would have at its full speed."""

import asyncio
import time

import psutil
import pytest

from streaming.bench.pace import Pace, at_full_speed, timed

REPORT = {
    "ready_s": 4.0,
    "chunk_ms": {"total": {"median": 500.0}},
    "encode_ms": None,
    "cpu_percent": {"server": 4.0, "engine": 40.0, "bench": 2.0},
    "realtime_factor": 6.0,
    "wave": {"viewers": 20, "cpu_percent_quiet": 4.0, "cpu_percent_full": 10.0},
}
SPANS = {"starting": (0.0, 10.0), "watched": (10.0, 20.0), "crowded": (20.0, 30.0)}


def pace(*samples: tuple[float, float]) -> Pace:
    made = Pace()
    made.samples += samples
    return made


def test_a_share_is_of_the_quickest_additions_of_all() -> None:
    """To the mean of those within the span; a span without any has none."""
    made = pace((1.0, 0.5), (11.0, 1.0), (12.0, 0.6), (20.0, 2.0))
    assert made.share(0.0, 10.0) == 1.0
    assert made.share(10.0, 20.0) == pytest.approx(0.5 / 0.8)
    assert made.share(30.0, 40.0) is None


def test_figures_of_computing_are_given_at_full_speed() -> None:
    """Times and shares of a core become less and the factor more, each by its span; a viewer's cost by both of its."""
    found = at_full_speed(REPORT, pace((1.0, 1.0), (11.0, 2.0), (21.0, 4.0)), SPANS)
    assert found == {
        "share": {"starting": 1.0, "watched": 0.5, "crowded": 0.25},
        "ready_s": 4.0,
        "chunk_ms": {"total": {"median": 250.0}},
        "cpu_percent": {"server": 2.0, "engine": 20.0, "bench": 1.0},
        "realtime_factor": 12.0,
        "wave": {"cpu_percent_a_viewer": (10 / 4 - 4 / 2) / 20},
    }


def test_what_was_not_measured_has_no_figure_at_full_speed() -> None:
    """Neither where the report lacks it, nor where nothing was timed in its span."""
    assert at_full_speed({}, pace((1.0, 1.0)), SPANS) == {"share": {"starting": 1.0}}
    assert at_full_speed(REPORT, pace((1.0, 1.0)), SPANS) == {"share": {"starting": 1.0}, "ready_s": 4.0}
    assert at_full_speed(REPORT, pace(), SPANS) == {"share": {}}


async def test_additions_are_timed_while_the_block_runs() -> None:
    """On the clock of the viewer, by a process that is gone afterwards, also behind an error."""
    began_s = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        async with timed() as running:
            while len(running.samples) < 3:  # noqa: ASYNC110 - nobody is told of a sample
                await asyncio.sleep(0.01)
            own = [process for process in psutil.Process().children() if "streaming.bench.pace" in process.cmdline()]
            raise ZeroDivisionError
    assert len(own) == 1 and not own[0].is_running()
    times_s = [at_s for at_s, _ in running.samples]
    assert began_s < times_s[0] < times_s[1] < times_s[2] < time.monotonic()
    assert all(ms > 0 for _, ms in running.samples)

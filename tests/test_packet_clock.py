"""The clock of a file's packets, where it jumps."""

from fractions import Fraction

import av
import pytest

from engine.video.packet_clock import PacketClock

TICK_S = Fraction(1, 1000)
PERIOD_S = Fraction(1, 25)


def _follow(jumps: bool, times: list[int | None], duration: int | None = 40) -> tuple[list[int | None], list[bool]]:
    """Decoding times that packets get, and where another clock begins; they are shown 80 ticks later."""
    clock, followed, jumped = PacketClock(jumps, TICK_S, PERIOD_S), [], []
    for time in times:
        packet = av.Packet(1)
        packet.time_base, packet.duration = TICK_S, duration
        packet.dts, packet.pts = time, None if time is None else time + 80
        jumped.append(clock.follow(packet))
        followed.append(packet.dts)
        assert packet.pts == (None if packet.dts is None else packet.dts + 80)
    return followed, jumped


@pytest.mark.parametrize("duration", [40, None])
@pytest.mark.parametrize("there", [50_000_000, 10_121, -21, -500, -(10**9)])
def test_another_clock_goes_on_where_the_first_was(there: int, duration: int | None) -> None:
    """A packet behind a jump is due when the one before it ends, whether packets say how long they last or not."""
    times = [0, 40, 80, there, there + 40, there + 140]
    expected = [0, 40, 80, 120, 160, 260]
    assert _follow(True, times, duration) == (expected, [False] * 3 + [True] + [False] * 2)


@pytest.mark.parametrize("times", [[0, 40, 10_080, 10_120], [-80, -40, 0, 40], [0, 40, 20, 60], [0, None, 80]])
def test_what_is_no_jump_is_left(times: list[int | None]) -> None:
    """Pauses of ten seconds, times below 0, missing ones, and some that are a little late stay as they are."""
    assert _follow(True, times) == (times, [False] * len(times))


def test_formats_whose_clocks_do_not_jump_may_pause_for_hours() -> None:
    """Only 30 hours are too long, and only what goes back by more than frames are reordered is another clock."""
    assert not any(_follow(False, [0, 40, 50_000_000, 50_000_040])[1])
    assert not any(_follow(False, [1000, 1040, 500, 540])[1])
    assert _follow(False, [1000, 1040, 0, 200_000_000]) == ([1000, 1040, 1080, 1120], [False, False, True, True])

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.media.pacer import MEDIA_CLOCK_HZ, Action, Pacer


def running(fps: float = 8.0, now_s: float = 100.0) -> Pacer:
    pacer = Pacer(fps)
    pacer.resume(now_s)
    return pacer


def test_first_frame_is_due_at_once() -> None:
    """A paused clock has no due time; after resume the next frame is due now, with pts 0."""
    pacer = Pacer(8)
    assert pacer.due_s is None
    pacer.resume(5.0)
    assert pacer.due_s == 5.0
    tick = pacer.tick(5.0, 1)
    assert (tick.action, tick.pts, tick.late_s) == (Action.SHOW, 0, 0.0)


def test_frames_are_one_period_apart() -> None:
    """Timestamps and due times advance by exactly one period, however late the calls are within it."""
    pacer = running()
    ticks = []
    for delay_s in (0.0, 0.1, 0.02, 0.12):
        assert pacer.due_s is not None
        ticks.append(pacer.tick(pacer.due_s + delay_s, 10))
    assert [tick.pts for tick in ticks] == [round(step * MEDIA_CLOCK_HZ / 8) for step in range(4)]
    assert pacer.slips == 0


def test_late_frame_repeats_the_last() -> None:
    """With an empty buffer the last frame repeats each period, counted, as one underrun."""
    pacer = running()
    actions = [pacer.tick(100 + step / 8, buffered).action for step, buffered in enumerate((1, 0, 0, 1, 0))]
    assert actions == [Action.SHOW, Action.REPEAT, Action.REPEAT, Action.SHOW, Action.REPEAT]
    assert (pacer.repeats, pacer.underruns) == (3, 2)


def test_arrival_after_underrun_anchors_the_clock_again() -> None:
    """Frames that arrive after an underrun go on air at once, then one a period: no burst."""
    pacer = running()
    pacer.tick(100.0, 1)
    pacer.tick(100.125, 0)
    pacer.arrive(100.2)
    assert pacer.due_s == 100.2
    assert pacer.tick(100.2, 9).action is Action.SHOW
    assert pacer.due_s == pytest.approx(100.325)


def test_arrival_without_underrun_changes_nothing() -> None:
    """An early batch waits for its time."""
    pacer = running()
    pacer.tick(100.0, 1)
    pacer.arrive(100.01)
    assert pacer.due_s == 100.125


def test_missed_periods_are_skipped_not_made_up() -> None:
    """A caller that comes three periods late causes one frame and three counted slips."""
    pacer = running()
    pacer.tick(100.0, 9)
    tick = pacer.tick(100.125 + 3 / 8, 9)
    assert tick.late_s == pytest.approx(0.375)
    assert pacer.slips == 3
    assert pacer.due_s == pytest.approx(100.625)


def test_pause_keeps_the_media_clock_honest() -> None:
    """After a pause timestamps have risen by the pause's real length, and nothing counts as late."""
    pacer = running()
    pacer.tick(100.0, 1)
    pacer.pause()
    assert pacer.due_s is None
    pacer.resume(160.0)
    assert pacer.tick(160.0, 1).pts == 60 * MEDIA_CLOCK_HZ
    assert (pacer.slips, pacer.repeats) == (0, 0)


def test_resume_while_running_changes_nothing() -> None:
    """A second viewer does not disturb the clock."""
    pacer = running()
    pacer.tick(100.0, 1)
    pacer.resume(100.05)
    assert pacer.due_s == 100.125


def test_early_tick_is_refused() -> None:
    """Asking before the due time, or while paused, is the caller's mistake."""
    pacer = running()
    with pytest.raises(ValueError, match="due at 100"):
        pacer.tick(99.0, 1)
    with pytest.raises(ValueError, match="None"):
        Pacer(8).tick(1.0, 1)


@pytest.mark.parametrize("fps", [0, -1, 241, float("nan")])
def test_bad_rate_is_refused(fps: float) -> None:
    """A frame rate must be above 0 and at most 240."""
    with pytest.raises(ValueError, match="fps"):
        Pacer(fps)


@given(
    st.lists(st.tuples(st.sampled_from(["tick", "arrive", "join", "pause"]), st.floats(0, 3), st.integers(0, 30))),
    st.sampled_from([8.0, 16.0, 29.97]),
)
def test_timestamps_always_rise(steps: list[tuple[str, float, int]], fps: float) -> None:
    """Whatever happens when, timestamps rise strictly and the next due time lies in the future."""
    pacer, now_s, stamps = running(fps, 0.0), 0.0, [-1]
    for step, wait_s, buffered in steps:
        now_s += wait_s
        if step == "arrive":
            pacer.arrive(now_s)
        elif step == "join":
            stamps.append(pacer.stamp(now_s))
        elif step == "pause":
            pacer.pause()
            pacer.resume(now_s)
        elif pacer.due_s is not None and now_s >= pacer.due_s:
            stamps.append(pacer.tick(now_s, buffered).pts)
            assert pacer.due_s > now_s
    assert all(later > earlier for earlier, later in zip(stamps, stamps[1:], strict=False))

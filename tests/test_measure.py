import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.bench.measure import (
    Arrival,
    Change,
    Recording,
    Spread,
    by_stage,
    delays_ms,
    delays_without_hold_ms,
    figures,
    fresh,
    growth,
    missing,
    percentile,
    prompt_to_pixel_s,
    smoothness,
    spread,
    thin,
)
from streaming.media.marker import CLOCK_WRAP_MS, Mark

FPS = 8.0


def arrivals(*indices: int | None, late_ms: float = 20.0, period_s: float = 1 / FPS) -> list[Arrival]:
    """One arrival a period from 100 s on, each `late_ms` after its clock mark; None is unreadable."""
    made = []
    for place, index in enumerate(indices):
        at_s = 100 + place * period_s
        made.append(Arrival(at_s, None if index is None else Mark(index, round(at_s * 1000 - late_ms))))
    return made


def test_percentile_is_linear_between_neighbours() -> None:
    """Ends, middle and a point between two values."""
    values = [40.0, 10.0, 30.0, 20.0]
    assert percentile(values, 0) == 10
    assert percentile(values, 1) == 40
    assert percentile(values, 0.5) == 25
    assert percentile(values, 0.95) == pytest.approx(38.5)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 1))
def test_percentile_stays_within_the_values(values: list[float], share: float) -> None:
    """No percentile lies outside of what was measured."""
    span = max(values) - min(values)
    assert min(values) - 1e-9 * span <= percentile(values, share) <= max(values) + 1e-9 * span


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 1.1), ([1.0], -0.1)])
def test_percentile_refuses_nonsense(values: list[float], share: float) -> None:
    """No values, or a share that is none."""
    with pytest.raises(ValueError, match="percentile"):
        percentile(values, share)


def test_spread_of_nothing_is_none() -> None:
    """Without values there is no number to give; with some there is."""
    assert spread([]) == Spread(0, None, None, None)
    assert spread([3.0, 1.0, 2.0]) == Spread(3, 2.0, 2.9, 3.0)


def test_repeated_and_unreadable_frames_are_not_fresh() -> None:
    """Only the first showing of each frame counts, and numbers never go back."""
    shown = fresh(arrivals(5, 5, None, 6, 4, 8))
    assert [mark.index for _, mark in shown] == [5, 6, 8]
    assert missing(shown) == 1


def test_even_video_has_no_stall() -> None:
    """Frames one period apart: nominal rate and intervals, no stall."""
    times = [10 + place / FPS for place in range(81)]
    even = smoothness(times, FPS, 12, 20)
    assert even.fps == FPS
    assert (even.interval_p50_ms, even.interval_p95_ms, even.interval_p99_ms) == (125, 125, 125)
    assert (even.stalls, even.stall_ratio, even.longest_gap_ms) == (0, 0, 125)


def test_gap_of_a_second_is_a_stall() -> None:
    """One long gap counts once, with its whole length."""
    times = [place / FPS for place in range(41)] + [6 + place / FPS for place in range(33)]
    uneven = smoothness(times, FPS, 0, 10)
    assert (uneven.stalls, uneven.stall_ratio, uneven.longest_gap_ms) == (1, 0.1, 1000)
    assert uneven.interval_p99_ms is not None
    assert uneven.interval_p99_ms > 125


@pytest.mark.parametrize(("gap_s", "stalls"), [(1.49 / FPS, 0), (1.51 / FPS, 1)])
def test_stall_begins_at_one_and_a_half_periods(gap_s: float, stalls: int) -> None:
    """A little less is jitter, a little more is a stall."""
    times = [0, 1 / FPS, 1 / FPS + gap_s]
    assert smoothness(times, FPS, 0, times[-1]).stalls == stalls


def test_standing_video_at_the_end_is_a_stall() -> None:
    """A video that stops half way is stalled for the other half, although no frame ends that gap."""
    times = [place / FPS for place in range(41)]
    stopped = smoothness(times, FPS, 0, 10)
    assert (stopped.stalls, stopped.stall_ratio) == (1, 0.5)
    assert stopped.interval_p99_ms == 125


def test_only_the_part_of_a_stall_within_the_span_counts() -> None:
    """A stall that began before the span: its share is what lies inside."""
    times = [0.0, *(6 + place / FPS for place in range(33))]
    assert smoothness(times, FPS, 5, 10).stall_ratio == 0.2


def test_nothing_but_standing_still() -> None:
    """No frame at all in the span is one stall over all of it, and no interval."""
    for times in ([], [1.0]):
        still = smoothness(times, FPS, 5, 10)
        assert (still.fps, still.interval_p50_ms, still.stalls, still.stall_ratio) == (0, None, 1, 1)


@pytest.mark.parametrize(("fps", "end_s"), [(0.0, 1.0), (8.0, 0.0)])
def test_empty_spans_are_refused(fps: float, end_s: float) -> None:
    """A span needs a length, and a rate must be positive."""
    with pytest.raises(ValueError, match="positive"):
        smoothness([0.0], fps, 0, end_s)


def test_delay_is_measured_across_the_wrap_of_the_clock() -> None:
    """Marks just before and just after the 32-bit clock wraps give the same delay; an early one is negative."""
    for clock_ms in (CLOCK_WRAP_MS - 10, 5):
        at_s = ((clock_ms + 30) % CLOCK_WRAP_MS + CLOCK_WRAP_MS) / 1000
        assert delays_ms([(at_s, Mark(0, clock_ms))]) == [pytest.approx(30, abs=0.01)]
    assert delays_ms([(1.0, Mark(0, 1005))]) == [pytest.approx(-5)]


def test_delay_without_hold_takes_the_next_clock() -> None:
    """A viewer that waits one period for the next frame is relieved of that period; losses are left out."""
    held = arrivals(0, 1, 2, None, 4, 7, 8, late_ms=145)
    assert delays_without_hold_ms(held) == [pytest.approx(20, abs=1)] * 3


def test_prompt_is_seen_with_the_first_frame_under_it() -> None:
    """Skipped numbers do no harm, frames seen before the request do not count, and a frame that never came is None."""
    shown = fresh(arrivals(0, 1, 2, 5, 6))
    changes = [Change(100.1, 0.01, 4), Change(100.2, 0.01, 0), Change(100.1, 0.01, 9)]
    waits = prompt_to_pixel_s(changes, shown)
    assert waits == [pytest.approx(0.275), pytest.approx(0.05), None]


def test_stages_of_hops_are_summed() -> None:
    """Each stage on its own, and the total of each hop."""
    stages = by_stage([{"plan": 10.0, "render": 90.0}, {"plan": 30.0, "render": 110.0}])
    assert {name: stage.median for name, stage in stages.items()} == {"plan": 20, "render": 100, "total": 120}


def test_growth_begins_late_and_ignores_single_samples() -> None:
    """What was loaded before does not count, nor does one peak."""
    series = [(float(second), 100.0 + (second >= 120) * second / 10) for second in range(240)]
    series[-1] = (239.0, 900.0)
    assert growth(series, 120) == pytest.approx(11.5, abs=0.2)
    assert growth(series[:125], 120) is None


@given(st.integers(0, 400), st.integers(2, 50))
def test_thin_series_keeps_its_ends(length: int, most: int) -> None:
    """Never more points than asked for, rising, with the first and the last."""
    series = [(float(place), 0.0) for place in range(length)]
    kept = thin(series, most)
    assert len(kept) == min(length, most)
    assert kept[:1] + kept[-1:] == series[:1] + series[-1:]
    assert kept == sorted(set(kept))


def recording(*indices: int | None, same_clock: bool = True) -> Recording:
    seen = arrivals(*indices)
    made = Recording(100.0, 100 + len(indices) / FPS, same_clock, seen)
    report = {"fps": FPS, "realtime_factor": 2.0, "repeats": 1, "buffered_s": 3.0}
    made.samples = [(0.0, report), (1.0, report | {"realtime_factor": 1.5, "repeats": 4, "buffered_s": 1.0})]
    return made


def test_figures_of_a_recording() -> None:
    """Every figure comes from its part of the recording; what failed is named."""
    made = recording(*range(16))
    made.changes = [Change(100.5, 0.2, 8), Change(101.0, 0.1, 99)]
    made.refused = ["503 not now"]
    made.hops = {0: {"plan": 1.0}}
    made.memory = {"server": [(float(second), 50.0) for second in range(20)]}
    found = figures(made, 0.5, 5.0)
    assert (found["fps"], found["frames"], found["frames_missing"], found["stalls"]) == (FPS, 16, 0, 0)
    assert (found["realtime_factor"], found["buffered_s_least"], found["repeats"]) == (1.5, 1.0, 3)
    assert found["glass_to_glass_p95_ms"] == pytest.approx(20, abs=1)
    assert found["prompt_to_pixel_s"]["median"] == 0.5
    assert found["prompt_answer_s"]["count"] == 2
    assert found["hop_ms"]["plan"]["count"] == 1
    assert (found["rss_mb"]["server"]["end"], found["rss_mb"]["server"]["growth"]) == (50, 0)
    assert found["failed"] == ["503 not now", "prompt change 2 was never seen"]


def test_clocks_of_two_machines_are_not_compared() -> None:
    """Without a common clock there is no glass-to-glass figure, and everything else is still there."""
    found = figures(recording(*range(16), same_clock=False), 0.5, 5.0)
    assert found["glass_to_glass_p95_ms"] is None
    assert found["glass_to_glass_without_hold_p95_ms"] is None
    assert math.isclose(found["fps"], FPS)


def test_video_without_marks_is_no_measurement() -> None:
    """Frames that carry no marker cannot be judged."""
    with pytest.raises(ValueError, match="none of 3 decoded frames"):
        figures(recording(None, None, None), 0.0, 1.0)

import pytest

from streaming.bench.measure import (
    Arrival,
    BenchError,
    Change,
    Recording,
    by_stage,
    delay_ms,
    delays_without_hold_ms,
    figures,
    fresh,
    memory,
    prompt_to_pixel_s,
    smoothness,
    spread,
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


def test_spread_is_linear_between_values() -> None:
    """Without values there is no number to give; with some there is."""
    assert spread([]) == {"count": 0, "median": None, "p95": None, "most": None}
    assert spread([40.0, 10.0, 30.0, 20.0]) == {"count": 4, "median": 25.0, "p95": 38.5, "most": 40.0}


def test_repeated_and_unreadable_frames_are_not_fresh() -> None:
    """Only the first showing of each frame counts, and numbers never go back."""
    shown = fresh(arrivals(5, 5, None, 6, 4, 8))
    assert [mark.index for _, mark in shown] == [5, 6, 8]


def frames_at(*parts: tuple[float, int]) -> list[float]:
    """Times of runs of frames one period apart: where each begins, and of how many periods it is."""
    return [begin_s + place / FPS for begin_s, periods in parts for place in range(periods + 1)]


@pytest.mark.parametrize(
    ("times", "span", "stalls", "ratio", "longest_ms"),
    [
        pytest.param(frames_at((10, 80)), (12, 20), 0, 0, 125, id="even"),
        pytest.param(frames_at((0, 40), (6, 32)), (0, 10), 1, 0.1, 1000, id="a gap counts once, with its length"),
        pytest.param([0, 0.125, 0.125 + 1.49 / FPS], (0, 0.3), 0, 0, 186.25, id="a little less is jitter"),
        pytest.param([0, 0.125, 0.125 + 1.51 / FPS], (0, 0.3), 1, 0.583333, 188.75, id="a little more is a stall"),
        pytest.param(frames_at((0, 40)), (0, 10), 1, 0.5, 5000, id="stands still at the end"),
        pytest.param(frames_at((0, 0), (6, 32)), (5, 10), 1, 0.2, 6000, id="only its part within the span counts"),
        pytest.param([], (5, 10), 1, 1, 5000, id="no frame"),
        pytest.param([1.0], (5, 10), 1, 1, 9000, id="one frame before"),
    ],
)
def test_gaps_of_more_than_one_and_a_half_periods_are_stalls(
    times: list[float], span: tuple[float, float], stalls: int, ratio: float, longest_ms: float
) -> None:
    """Number, share of the span and longest gap."""
    found = smoothness(times, FPS, *span)
    assert (found["stalls"], found["longest_gap_ms"]) == (stalls, longest_ms)
    assert found["stall_ratio"] == pytest.approx(ratio, abs=1e-4)


def test_intervals_are_between_frames_of_the_span() -> None:
    """One period each in an even video; the open end of one that stops is none; none without frames."""
    for times in (frames_at((10, 80)), frames_at((10, 40))):
        found = smoothness(times, FPS, 12, 20)
        assert [found[f"interval_p{share}_ms"] for share in (50, 95, 99)] == [125] * 3
    assert smoothness(frames_at((10, 80)), FPS, 12, 20)["fps"] == FPS
    assert (smoothness([], FPS, 5, 10)["fps"], smoothness([], FPS, 5, 10)["interval_p50_ms"]) == (0, None)


def test_delay_is_measured_across_the_wrap_of_the_clock() -> None:
    """Marks just before and just after the 32-bit clock wraps give the same delay; an early one is negative."""
    for clock_ms in (CLOCK_WRAP_MS - 10, 5):
        at_s = ((clock_ms + 30) % CLOCK_WRAP_MS + CLOCK_WRAP_MS) / 1000
        assert delay_ms(at_s, Mark(0, clock_ms)) == pytest.approx(30, abs=0.01)
    assert delay_ms(1.0, Mark(0, 1005)) == pytest.approx(-5)


def test_delay_without_hold_takes_the_next_clock() -> None:
    """A viewer that waits one period for the next frame is relieved of that period; losses are left out."""
    held = arrivals(0, 1, 2, None, 4, 7, 8, late_ms=145)
    assert delays_without_hold_ms(held) == [pytest.approx(20, abs=1)] * 3


def test_prompt_is_seen_with_the_first_frame_under_it() -> None:
    """Skipped numbers do no harm, frames seen before the request do not count, and a frame that never came is None."""
    shown = fresh(arrivals(0, 1, 2, 5, 6))
    changes = [Change(100.1, 4), Change(100.2, 0), Change(100.1, 9)]
    waits = prompt_to_pixel_s(changes, shown)
    assert waits == [pytest.approx(0.275), pytest.approx(0.05), None]


def test_stages_of_chunks_are_summed() -> None:
    """Each stage on its own, and the total of each chunk."""
    stages = by_stage([{"plan": 10.0, "render": 90.0}, {"plan": 30.0, "render": 110.0}])
    assert {name: stage["median"] for name, stage in stages.items()} == {"plan": 20, "render": 100, "total": 120}


def test_growth_of_memory_begins_late_and_ignores_single_samples() -> None:
    """Memory loaded before does not count, nor does one peak."""
    series = [(float(second), 100.0 + (second >= 120) * second / 10) for second in range(240)]
    series[-1] = (239.0, 900.0)
    assert memory(series, 120)["growth"] == pytest.approx(11.5, abs=0.2)
    assert memory(series[:125], 120) == {"end": 112.4, "most": 112.4, "growth": None, "growth_from_s": 120}


def recording(*indices: int | None, same_clock: bool = True) -> Recording:
    seen = arrivals(*indices)
    made = Recording(100.0, 100 + len(indices) / FPS, same_clock, seen)
    report = {"fps": FPS, "realtime_factor": 2.0, "repeats": 1}
    made.samples = [(0.0, report), (1.0, report | {"realtime_factor": 1.5, "repeats": 4})]
    return made


def test_figures_of_a_recording() -> None:
    """Every figure comes from its part of the recording; what failed is named."""
    made = recording(*range(16))
    made.changes = [Change(100.5, 8), Change(101.0, 99)]
    made.refused = ["503 not now"]
    made.chunks = {0: {"plan": 1.0}}
    made.memory = {"server": [(float(second), 50.0) for second in range(20)]}
    found = figures(made, 0.5, 5.0)
    assert (found["fps"], found["frames"], found["frames_missing"], found["stalls"]) == (FPS, 16, 0, 0)
    assert (found["realtime_factor"], found["repeats"]) == (1.5, 3)
    assert found["glass_to_glass_p95_ms"] == pytest.approx(20, abs=1)
    assert found["prompt_to_pixel_s"]["median"] == 0.5
    assert found["chunk_ms"]["plan"]["count"] == 1
    assert (found["rss_mb"]["server"]["end"], found["rss_mb"]["server"]["growth"]) == (50, 0)
    assert found["failed"] == ["503 not now", "prompt change 2 was never seen"]


def test_clocks_of_two_machines_are_not_compared() -> None:
    """Without a common clock there is no glass-to-glass figure, and everything else is still there."""
    found = figures(recording(*range(8), *range(10, 18), same_clock=False), 0.5, 5.0)
    assert found["glass_to_glass_p95_ms"] is found["glass_to_glass_without_hold_p95_ms"] is None
    assert (found["fps"], found["frames"], found["frames_missing"]) == (FPS, 16, 2)


def test_video_without_marks_is_no_measurement() -> None:
    """Frames that carry no marker cannot be judged."""
    with pytest.raises(BenchError, match="none of 3 decoded frames"):
        figures(recording(None, None, None), 0.0, 1.0)

import pytest

from streaming.bench.timeline import (
    PREBUFFERS_S,
    Frame,
    freezes,
    intervals,
    jitter_ms,
    percentiles,
    period_of,
    playback,
    spread,
)

FPS = 8.0


def frames_at(*parts: tuple[float, int]) -> list[float]:
    """Times of runs of frames one period apart: where each begins, and of how many periods it is."""
    return [begin_s + place / FPS for begin_s, periods in parts for place in range(periods + 1)]


def test_percentiles_are_values_that_were_measured() -> None:
    """Nearest rank: the smallest value with at least that share at or below it; without values there is none."""
    assert percentiles([], 0.5) == [None]
    assert percentiles([15, 20, 35, 40, 50], 0.05, 0.3, 0.4, 0.5, 1.0) == [15, 20, 20, 35, 50]
    assert percentiles(range(1, 21), 0.0, 0.95) == [1, 19]
    assert spread([40.0, 10.0, 30.0, 20.0]) == {"count": 4, "median": 20.0, "p95": 40.0, "most": 40.0}
    assert spread([]) == {"count": 0, "median": None, "p95": None, "most": None}


@pytest.mark.parametrize(
    ("times", "span", "stalls", "ratio", "longest_ms"),
    [
        pytest.param(frames_at((10, 80)), (12, 20), 0, 0, 125, id="even"),
        pytest.param(frames_at((0, 40), (6, 32)), (0, 10), 1, 0.1, 1000, id="a gap counts once, with its length"),
        pytest.param([0, 0.125, 0.125 + 1.49 / FPS], (0, 0.3), 0, 0, 186.25, id="a little less is jitter"),
        pytest.param([0, 0.125, 0.125 + 1.51 / FPS], (0, 0.3), 1, 0.583333, 188.75, id="a little more is a stall"),
        pytest.param(frames_at((0, 40)), (0, 10), 1, 0.5, 5000, id="stands still at the end"),
        pytest.param(frames_at((0, 0), (6, 32)), (5, 10), 1, 0.2, 6000, id="only its part within the span counts"),
    ],
)
def test_stalls_are_gaps_between_fresh_frames(
    times: list[float], span: tuple[float, float], stalls: int, ratio: float, longest_ms: float
) -> None:
    """A gap of more than 1.5 periods is a stall; its share of the span is what a viewer sees standing."""
    found = intervals(times, FPS, *span)
    assert (found["stalls"], found["stall_ratio"]) == (stalls, pytest.approx(ratio, abs=1e-6))
    assert found["longest_gap_ms"] == pytest.approx(longest_ms)


@pytest.mark.parametrize(("gap_s", "count"), [(0.27, 0), (0.37, 0), (0.38, 1), (1.0, 1)])
def test_freezes_are_those_of_w3c(gap_s: float, count: int) -> None:
    """At 125 ms both bounds count: three intervals are 375 ms, one and 150 ms are 275."""
    times = frames_at((0, 40))
    found = freezes([*times, times[-1] + gap_s])
    assert found == {"freezes": count, "freezes_s": pytest.approx(gap_s * count, abs=0.001)}


def test_a_freeze_is_held_against_the_frames_before_it() -> None:
    """At 60 frames a second 150 ms more than usual decide; the first interval has nothing to be held against."""
    times = [place / 60 for place in range(60)]
    assert freezes([*times, times[-1] + 0.16])["freezes"] == 0
    assert freezes([*times, times[-1] + 0.17])["freezes"] == 1
    assert freezes([0.0, 5.0])["freezes"] == 0


def late(*lateness_s: float) -> list[Frame]:
    return [Frame(50 + place / FPS + one, place / FPS) for place, one in enumerate(lateness_s)]


def test_a_player_that_buffers_enough_misses_nothing() -> None:
    """A frame 300 ms late is missed by every player that buffers less, once: it goes on from there."""
    rows = {row["prebuffer_s"]: row for row in playback(late(*[0.0] * 8, 0.3, *[0.3] * 7), 1 / FPS)}
    assert list(rows) == list(PREBUFFERS_S)
    assert [rows[prebuffer_s]["attained"] for prebuffer_s in (0.0, 0.2, 0.5)] == [1 - 1 / 16, 1 - 1 / 16, 1.0]
    assert rows[0.0]["play_ratio"] == pytest.approx(2 / 2.3, abs=1e-6)
    assert rows[0.2]["play_ratio"] == pytest.approx(2 / 2.1, abs=1e-6)
    assert rows[0.5]["play_ratio"] == 1.0
    assert playback([], 1 / FPS) == []


def test_jitter_does_not_see_that_clocks_run_apart() -> None:
    """Frames that come ever later by 100 ppm have no jitter; ones that are late now and then have."""
    drifting = [Frame(place / FPS * (1 + 1e-4), place / FPS) for place in range(4800)]
    assert jitter_ms(drifting)["jitter_p99_ms"] == pytest.approx(0, abs=0.1)
    assert jitter_ms(drifting)["skew_ppm"] == pytest.approx(100, abs=1)
    shaken = [Frame(at_s + (0.02 if place % 10 == 5 else 0), media_s) for place, (at_s, media_s) in enumerate(drifting)]
    found = jitter_ms(shaken)
    assert (found["jitter_p50_ms"], found["jitter_p95_ms"]) == (pytest.approx(0, abs=0.1), pytest.approx(20, abs=0.1))
    assert jitter_ms(drifting[:1])["jitter_p50_ms"] is None


def test_the_period_is_the_usual_step_of_timestamps() -> None:
    """A gap does not change it; one frame has none."""
    assert period_of([Frame(0, place / FPS) for place in (0, 1, 2, 9, 10)]) == pytest.approx(1 / FPS)
    with pytest.raises(ValueError, match="1 frames"):
        period_of([Frame(0, 0)])

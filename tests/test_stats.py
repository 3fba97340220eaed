from prometheus_client.parser import text_string_to_metric_families

from engine.wire.messages import HopDone
from streaming.channels.stats import HOPS_KEPT, HopStats, Metrics


def hop(index: int, compute_s: float) -> HopDone:
    return HopDone("main", index, 4, 3.0, compute_s, {"render": compute_s * 1000})


def test_no_figures_before_the_first_hop() -> None:
    """A new channel has neither a factor nor a last hop."""
    stats = HopStats()
    assert stats.realtime_factor is None
    assert stats.report() is None


def test_factor_is_the_median_of_the_last_hops() -> None:
    """One slow hop does not move the factor, and hops long ago do not count."""
    stats = HopStats()
    for index in range(20):
        stats.add(hop(index, 100.0))
    for index in range(HOPS_KEPT):
        stats.add(hop(20 + index, 30.0 if index == 3 else 1.5))
    assert stats.realtime_factor == 2.0
    report = stats.report()
    assert report is not None
    assert (report.index, report.ms) == (27, {"render": 1500.0})


def test_hop_without_computing_time_is_left_out() -> None:
    """A hop of zero seconds cannot divide by zero."""
    stats = HopStats()
    stats.add(hop(0, 0.0))
    assert stats.realtime_factor is None


def test_metrics_are_prometheus_text() -> None:
    """The text parses, carries units in its names, and two servers in one process do not share counts."""
    first, second = Metrics(), Metrics()
    first.frames.inc(3)
    first.viewers_closed.labels("deleted").inc()
    families = {family.name: family for family in text_string_to_metric_families(first.text().decode())}
    assert families["landiff_frames_shown"].samples[0].value == 3
    assert families["landiff_viewers_closed"].samples[0].labels == {"reason": "deleted"}
    assert "landiff_buffered_seconds" in families
    assert b"landiff_frames_shown_total 0.0" in second.text()

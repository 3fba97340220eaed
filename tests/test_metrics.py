from prometheus_client.parser import text_string_to_metric_families

from streaming.media.metrics import Metrics


def test_metrics_are_prometheus_text() -> None:
    """The text parses, carries units in its names, and two servers in one process do not share counts."""
    first, second = Metrics(), Metrics()
    first.channel("main").frames.inc(3)
    first.channel("other").frames.inc()
    first.viewers_closed.labels("deleted").inc()
    families = {family.name: family for family in text_string_to_metric_families(first.text().decode())}
    shown = {one.labels["channel"]: one.value for one in families["landiff_frames_shown"].samples}
    assert (shown["main"], shown["other"]) == (3, 1)
    assert families["landiff_viewers_closed"].samples[0].labels == {"reason": "deleted"}
    assert "landiff_buffered_seconds" in families
    assert b"landiff_frames_shown_total{" not in second.text()

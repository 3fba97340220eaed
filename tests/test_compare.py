import json
from pathlib import Path
from typing import Any

import pytest

from streaming.bench import page
from streaming.bench.compare import SCHEMA, load, merged, rows, table, value
from streaming.bench.recording import BenchError


def report(**changed: Any) -> dict[str, Any]:
    """A report of one run, as far as it is looked at here."""
    return {
        "ready_s": 5.0,
        "fps": 8.0,
        "stalls": 0,
        "interval_p99_ms": 130.0,
        "realtime_factor": 6.0,
        "chunk_ms": {"total": {"count": 9, "median": 400.0}},
        "ttff_s": {"cold": None, "warm": {"median": 0.2}},
        "playback": [
            {"prebuffer_s": prebuffer_s, "attained": 1.0, "play_ratio": 1.0} for prebuffer_s in (0.0, 0.1, 0.2, 0.5)
        ],
        "prompts": [
            {"prompt": "a < b", "mode": "flow", "pixel_s": 4.0, "split_ms": {"answer": 20.0, "plan": 150.0}},
        ],
        "series": {"late_ms": [[0.0, 0.0], [1.0, 3.0]], "rss_mb": {"engine": [[0.0, 600.0], [1.0, 610.0]]}},
        "conditions": {"server": "started <here>", "device": "a CPU", "versions": {"python": "3"}},
        "failed": [],
        "not_measured": [],
    } | changed


def verdicts(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    return {row.path: row.verdict for row in rows(merged([old]), merged([new]))}


def test_a_number_is_found_by_its_path() -> None:
    """Through names and places; what is no number is None."""
    made = report()
    assert value(made, "ttff_s.warm.median") == 0.2
    assert value(made, "playback.3.attained") == 1.0
    for path in ("ttff_s.cold", "ttff_s.warm", "playback.9.attained", "playback.x", "nothing.at.all", "ready_s.more"):
        assert value(made, path) is None


@pytest.mark.parametrize(
    ("changed", "path", "verdict"),
    [
        ({"chunk_ms": {"total": {"median": 440.0}}}, "chunk_ms.total.median", "worse"),
        ({"chunk_ms": {"total": {"median": 360.0}}}, "chunk_ms.total.median", "better"),
        ({"chunk_ms": {"total": {"median": 416.0}}}, "chunk_ms.total.median", "equal"),
        ({"realtime_factor": 5.4}, "realtime_factor", "worse"),
        ({"realtime_factor": 7.0}, "realtime_factor", "better"),
        ({"stalls": 1}, "stalls", "worse"),
        ({"interval_p99_ms": 137.0}, "interval_p99_ms", "worse"),
        ({"fps": 7.9}, "fps", "equal"),
    ],
)
def test_verdicts(changed: dict[str, Any], path: str, verdict: str) -> None:
    """More than five percent is a difference, in the direction that the figure has; a count of 0 has no percent."""
    found = verdicts(report(), report(**changed))
    assert found.pop(path) == verdict
    assert set(found.values()) == {"equal"}


def test_what_runs_differ_by_themselves_is_no_difference() -> None:
    """Runs between 400 and 520 ms say nothing of 440; those between 400 and 404 do."""
    for other, verdict in ((520.0, "equal"), (404.0, "worse")):
        old = merged([report(), report(chunk_ms={"total": {"median": other}})])
        new = merged([report(chunk_ms={"total": {"median": 440.0}})])
        assert {row.path: row.verdict for row in rows(old, new)}["chunk_ms.total.median"] == verdict


def at_full_speed(**changed: Any) -> dict[str, Any]:
    return merged([report(full_speed={"chunk_ms": {"total": {"median": 300.0}}} | changed)])


def test_what_a_slower_machine_takes_longer_for_is_no_difference() -> None:
    """Figures of computing are compared at full speed where both reports have them so, else as they were measured."""
    path = "chunk_ms.total.median"
    slower = merged([report(chunk_ms={"total": {"median": 600.0}})])
    for old, new, compared, verdict in (
        (at_full_speed(), at_full_speed() | {"chunk_ms": slower["chunk_ms"]}, f"full_speed.{path}", "equal"),
        (at_full_speed(), at_full_speed(chunk_ms={"total": {"median": 330.0}}), f"full_speed.{path}", "worse"),
        (at_full_speed(), slower, path, "worse"),
    ):
        found = {row.path: row.verdict for row in rows(old, new) if path in row.path}
        assert found == {compared: verdict}
    runs = [report(full_speed={"encode_ms": ms}) for ms in (1.0, 1.5)]
    assert merged(runs)["spread"]["full_speed.encode_ms"] == [1.0, 1.5]


def test_runs_are_put_together_by_their_medians() -> None:
    """Of each number; what failed in any of them is kept once, and the spread of the main figures is told."""
    runs = [report(fps=fps, failed=["late"] if fps < 8 else []) for fps in (7.0, 8.0, 8.1)]
    found = merged(runs)
    assert (found["fps"], found["runs"], found["failed"]) == (8.0, 3, ["late"])
    assert found["spread"]["fps"] == [7.0, 8.1]
    assert found["ttff_s"] == {"cold": None, "warm": {"median": 0.2}}
    assert found["conditions"]["device"] == "a CPU"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"schema": "of-another/1"}', "its schema is 'of-another/1', this program writes"),
        ("[]", "its schema is None"),
        ("{", "Expecting property name"),
        (None, "No such file"),
    ],
)
def test_other_reports_are_refused(text: str | None, words: str, tmp_path: Path) -> None:
    """A report of another schema, none at all, and a file that is not there: one line with the file's name."""
    path = tmp_path / "old.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BenchError, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_report_is_read_back(tmp_path: Path) -> None:
    """What is written can be compared."""
    path = tmp_path / "old.json"
    path.write_text(page.as_json({"schema": SCHEMA} | merged([report()])))
    assert value(load(path), "fps") == 8.0
    lines = table(list(rows(load(path), merged([report(fps=4.0)])))).splitlines()
    assert lines[0].split() == ["figure", "old", "new", "ratio", "verdict"]
    assert ["fps", "8", "4", "0.500", "worse"] in [line.split() for line in lines]


def test_the_page_holds_everything_and_needs_nothing() -> None:
    """Figures, verdicts, plots and all numbers, escaped, and no address outside of the file."""
    old, new = merged([report()]), merged([report(fps=4.0, failed=["<b>bad"])])
    text = page.page(new, list(rows(old, new)))
    assert text.count("<svg") == 4
    for words in ("started &lt;here&gt;", "failed: &lt;b&gt;bad", "<tr class=worse>", "plan 150 ms", "that it played"):
        assert words in text
    assert "http" not in text and "<b>" not in text
    assert json.dumps(new["playback"][0]["prebuffer_s"]) in text


def test_the_summary_has_what_is_measured_beside_each_other() -> None:
    """Viewers, networks and servers in tables; what was not measured is said in a line."""
    made = report(
        browser={"fps": 7.9},
        profiles={"loss1": {"fps": 7.5}},
        peers={"ours": {"cpu_percent_a_viewer": 0.2}, "pion": {"cpu_percent_a_viewer": 0.3, "times_ours": 1.5}},
        not_measured=["profile lan: no netem"],
    )
    lines = [line.split() for line in page.summary(made).splitlines()]
    assert ["Viewers", "aiortc", "chromium"] in lines and ["fps", "8", "7.9"] in lines
    assert ["Networks", "here", "loss1"] in lines and ["fps", "8", "7.5"] in lines
    assert ["cpu_percent_a_viewer", "0.2", "0.3"] in lines and ["times_ours", "1.5"] in lines
    assert "not measured: profile lan: no netem" in page.summary(made)
    assert "Viewers" not in page.summary(report())
    assert "<h2>Servers</h2>" in page.page(made)

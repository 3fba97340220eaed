"""Reports of several runs as one, and two reports beside each other with a verdict for each figure. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from streaming.bench.recording import BenchError
from streaming.bench.timeline import Figures, percentiles

SCHEMA = "landiff-live.stream-bench/4"
EQUAL = 0.05  # relative: less says nothing, however small the spread of the runs was


class Figure(NamedTuple):
    """A figure by which reports are compared."""

    path: str  # its place in a report
    more_is_better: bool = False
    floor: float = 0.0  # a smaller difference says nothing

    @property
    def at_full_speed(self) -> str:
        """Its place as a machine at its full speed would have it, for those that depend on that."""
        return f"full_speed.{self.path}"


MAIN = (
    Figure("ready_s"),
    Figure("cold_start_s"),
    Figure("ttff_s.warm.median", floor=0.02),
    Figure("fps", True),
    Figure("interval_p99_ms", floor=2.0),
    Figure("longest_gap_ms", floor=10.0),
    Figure("stalls"),
    Figure("stall_ratio"),
    Figure("freezes"),
    Figure("freezes_s"),
    Figure("jitter_p95_ms", floor=1.0),
    Figure("playback.0.attained", True),
    Figure("playback.3.attained", True),
    Figure("playback.3.play_ratio", True),
    Figure("frames_missing"),
    Figure("frames_doubled"),
    Figure("pictures_doubled", floor=5.0),
    Figure("frames_misnumbered"),
    Figure("frames_unreadable"),
    Figure("frame_age_ms.median", floor=50.0),
    Figure("transport_ms.p95", floor=2.0),
    Figure("hold_ms.median", floor=2.0),
    Figure("prompt_to_pixel_s.cut.median", floor=0.1),
    Figure("prompt_to_pixel_s.flow.median", floor=0.1),
    Figure("prompt_to_words_s.cut.median", floor=0.25),
    Figure("prompt_to_words_s.flow.median", floor=0.25),
    Figure("realtime_factor", True),
    Figure("chunk_ms.total.median"),
    Figure("encode_ms", floor=0.1),
    Figure("packet_loss", floor=0.001),
    Figure("cpu_percent.server", floor=0.2),
    Figure("cpu_percent.engine", floor=1.0),
    Figure("cpu_percent.bench", floor=0.5),
    Figure("rss_mb.server.end", floor=5.0),
    Figure("rss_mb.engine.end", floor=20.0),
    Figure("wave.cpu_percent_a_viewer", floor=0.02),
)


class Row(NamedTuple):
    """One figure of two reports."""

    path: str
    old: float
    new: float
    ratio: float | None  # new to old; None where old is 0
    verdict: str  # better, equal or worse


def value(report: Mapping[str, Any], path: str) -> float | None:
    """The number at a path such as `ttff_s.warm.median` or `playback.0.attained`; None where there is none."""
    found: Any = report
    for word in path.split("."):
        if isinstance(found, list):
            found = found[int(word)] if word.isdigit() and int(word) < len(found) else None
        else:
            found = found.get(word) if isinstance(found, dict) else None
    return found if isinstance(found, int | float) and not isinstance(found, bool) else None


def merged(reports: Sequence[Figures]) -> Figures:
    """One report of several runs: the median of each number, and by how much the main figures differ."""
    report: Figures = _median(reports)
    report["runs"] = len(reports)
    report["spread"] = {
        path: [min(values), max(values)]
        for figure in MAIN
        for path in (figure.path, figure.at_full_speed)
        if (values := [one for run in reports if (one := value(run, path)) is not None])
    }
    for name in ("failed", "not_measured"):
        report[name] = list(dict.fromkeys(entry for run in reports for entry in run[name]))
    return report


def _median(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, dict):
        alike = [one for one in values if isinstance(one, dict)]
        return {name: _median([one[name] for one in alike if name in one]) for name in first}
    if isinstance(first, list) and all(isinstance(one, list) and len(one) == len(first) for one in values):
        return [_median(entries) for entries in zip(*values, strict=True)]
    numbers = [one for one in values if isinstance(one, int | float) and not isinstance(one, bool)]
    if not numbers or isinstance(first, bool | list | str):
        return first
    (median,) = percentiles(numbers, 0.5)
    return median


def load(path: Path) -> Figures:
    """A report of an earlier run. Raises BenchError when it is none, or of another schema."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(f"--compare {path}: {error}") from error
    schema = report.get("schema") if isinstance(report, dict) else None
    if schema != SCHEMA:
        raise BenchError(f"--compare {path}: its schema is {schema!r}, this program writes {SCHEMA!r}: measure it anew")
    return dict(report)


def rows(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Row]:
    """The main figures that both reports have, at the machine's full speed where both have them so."""
    for figure in MAIN:
        path = figure.at_full_speed
        if value(old, path) is None or value(new, path) is None:
            path = figure.path
        before, after = value(old, path), value(new, path)
        if before is None or after is None:
            continue
        least = max(figure.floor, EQUAL * abs(before), _noise(old, path), _noise(new, path))
        gain = (after - before) * (1 if figure.more_is_better else -1)
        verdict = "equal" if abs(gain) <= least else "better" if gain > 0 else "worse"
        yield Row(path, before, after, after / before if before else None, verdict)


def _noise(report: Mapping[str, Any], path: str) -> float:
    """Half of the difference between the runs of a report."""
    least, most = report.get("spread", {}).get(path, (0.0, 0.0))
    return float(most - least) / 2


def table(compared: Sequence[Row]) -> str:
    """Rows for people, a line each."""
    lines = [f"{'figure':40}{'old':>12}{'new':>12}{'ratio':>9}  verdict"]
    for row in compared:
        ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
        lines.append(f"{row.path:40}{row.old:>12g}{row.new:>12g}{ratio:>9}  {row.verdict}")
    return "\n".join(lines) + "\n"

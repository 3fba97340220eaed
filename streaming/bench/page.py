"""A report as one HTML file that needs nothing else: tables for all figures, pictures for what a table hides."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from streaming.bench.compare import MAIN, Row, value

WIDTH, HEIGHT, LEFT, BOTTOM = 900, 220, 60, 30  # of a plot, pixels
COLOURS = ("#1b6ca8", "#d1495b", "#66a182", "#edae49", "#8d6a9f", "#00798c", "#a0522d", "#555555", "#2e8b57", "#b8860b")
STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{padding:.15rem .8rem .15rem 0;text-align:left;border-bottom:1px solid #ddd}"
    "svg{width:100%;height:auto;background:#fafafa}.worse{color:#b00020}.better{color:#1a7f37}"
    "pre{overflow:auto;background:#f4f4f4;padding:1rem}"
)
Points = Sequence[tuple[float, float]]


SUMMARY = (
    "ready_s", "cold_start_s", "ttff_s", "ttff_split_ms", "fps", "interval_p99_ms", "stalls", "freezes",
    "jitter_p95_ms", "playback", "frame_age_ms", "transport_ms", "prompt_to_pixel_s", "prompt_split_ms",
    "prompt_to_words_s", "realtime_factor", "wave", "cpu_percent", "full_speed", "rss_mb",
)  # fmt: skip
VIEWERS = (  # that are compared: aiortc's and Chromium's
    "fps", "interval_p50_ms", "interval_p95_ms", "interval_p99_ms", "longest_gap_ms", "stalls", "freezes", "freezes_s",
    "jitter_p95_ms", "playback.0.attained", "playback.3.attained", "playback.3.play_ratio",
)  # fmt: skip
PEERS = (
    "cpu_percent_a_viewer", "times_ours", "cpu_percent_few", "cpu_percent_many", "ttff_s.median", "interval_ms.median",
    "interval_ms.p95", "interval_ms.most", "kbps_a_viewer", "packets_missing",
)  # fmt: skip
PROFILES = (
    "fps", "interval_p99_ms", "longest_gap_ms", "stalls", "freezes", "freezes_s", "playback.3.play_ratio",
    "frames_missing", "packet_loss", "bitrate_kbps", "jitter_p95_ms", "ttff_s.warm.median",
)  # fmt: skip


def as_json(report: Mapping[str, Any]) -> str:
    """The whole report as text."""
    return json.dumps(report, indent=1) + "\n"


def summary(report: Mapping[str, Any]) -> str:
    """The main figures for people, a line each, and what could not be measured."""
    lines = [f"{name:24}{json.dumps(report[name])}" for name in SUMMARY if report.get(name) is not None]
    for title, head, rows in _groups(report):
        lines += ["", f"{title:24}" + "".join(f"{name:>14}" for name in head[1:])]
        lines += [f"{row[0]:24}" + "".join(f"{cell:>14}" for cell in row[1:]) for row in rows]
    lines += [f"not measured: {reason}" for reason in report["not_measured"]]
    return "\n".join(lines + [f"failed: {failure}" for failure in report["failed"]]) + "\n"


def page(report: Mapping[str, Any], compared: Sequence[Row] = ()) -> str:
    """The whole report as HTML."""
    series = report.get("series", {})
    parts = [
        f"<h1>Latency of {html.escape(str(report['conditions'].get('server')))}</h1>",
        _conditions(report["conditions"]),
        *(f"<p class=worse>failed: {html.escape(failure)}</p>" for failure in report["failed"]),
        _main(report),
        _compared(compared),
        *(f"<h2>{title}</h2>{_table(head, rows)}" for title, head, rows in _groups(report)),
        _section("Frames: later than the first one was, against their place in the video", "s", "ms",
                 {"decoded": series.get("late_ms", ())}),
        _section("Players, by what they buffer before they begin", "s buffered", "%", _players(report)),
        _prompts(report.get("prompts", ())),
        _section("Computing", "s", "% of a core", series.get("cpu_percent", {})),
        _section("Memory", "s", "MB", series.get("rss_mb", {})),
        f"<h2>All figures</h2><pre>{html.escape(as_json({**report, 'series': None}))}</pre>",
    ]  # fmt: skip
    return (
        f'<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">'
        f"<title>streaming.bench</title><style>{STYLE}</style>{''.join(parts)}</html>\n"
    )


def _groups(report: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Tables of what is measured beside each other: title, head, and rows of text."""
    browser = {"aiortc": report, "chromium": report["browser"]} if "browser" in report else {}
    profiles = {"here": report} | report["profiles"] if report.get("profiles") else {}
    grouped = (
        ("Viewers", browser, VIEWERS),
        ("Networks", profiles, PROFILES),
        ("Servers", report.get("peers", {}), PEERS),
    )
    found = []
    for title, columns, paths in grouped:
        rows = [(path, *(_number(value(column, path)) for column in columns.values())) for path in paths]
        if columns:
            found.append((title, ("figure", *columns), [row for row in rows if any(row[1:])]))
    return found


def _number(found: float | None) -> str:
    return "" if found is None else f"{found:g}"


def _players(report: Mapping[str, Any]) -> dict[str, Points]:
    rows = report.get("playback", ())
    return {
        "frames there when due": [(row["prebuffer_s"], 100 * row["attained"]) for row in rows],
        "time that it played": [(row["prebuffer_s"], 100 * row["play_ratio"]) for row in rows],
    }


def _conditions(conditions: Mapping[str, Any]) -> str:
    shown = {name: one for name, one in conditions.items() if not isinstance(one, dict)}
    return "<p>" + html.escape(", ".join(f"{name} {one}" for name, one in shown.items() if one is not None)) + "</p>"


def _main(report: Mapping[str, Any]) -> str:
    spread = report.get("spread", {})
    rows = [
        (path, f"{found:g}", " to ".join(f"{one:g}" for one in spread.get(path, ())))
        for figure in MAIN
        for path in (figure.path, figure.at_full_speed)
        if (found := value(report, path)) is not None
    ]
    return _table(("figure", "measured", f"of {report.get('runs', 1)} runs"), rows)


def _compared(compared: Sequence[Row]) -> str:
    rows = [
        (row.path, f"{row.old:g}", f"{row.new:g}", "" if row.ratio is None else f"{row.ratio:.3f}", row.verdict)
        for row in compared
    ]
    return "<h2>Compared</h2>" + _table(("figure", "old", "new", "ratio", "verdict"), rows) if rows else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = "".join(f"<th>{html.escape(one)}</th>" for one in head)
    body = "".join(
        f"<tr class={row[-1] or 'none'}>" + "".join(f"<td>{html.escape(one)}</td>" for one in row) + "</tr>"
        if row[-1] in ("better", "worse")
        else "<tr>" + "".join(f"<td>{html.escape(one)}</td>" for one in row) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{cells}</tr>{body}</table>"


def _section(title: str, x_unit: str, y_unit: str, lines: Mapping[str, Points]) -> str:
    """A plot under its title; nothing where there is nothing to draw."""
    lines = {name: [(float(x), float(y)) for x, y in points] for name, points in lines.items() if len(points) > 1}
    if not lines:
        return ""
    xs, ys = zip(*(point for points in lines.values() for point in points), strict=True)
    low_x, high_x, low_y, high_y = min(xs), max(xs), min(0.0, *ys), max(*ys, 1e-9)

    def place(x: float, y: float) -> str:
        across = LEFT + (x - low_x) / ((high_x - low_x) or 1) * (WIDTH - LEFT - 10)
        return f"{across:.1f},{HEIGHT - BOTTOM - (y - low_y) / ((high_y - low_y) or 1) * (HEIGHT - BOTTOM - 10):.1f}"

    drawn = []
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        drawn.append(f'<polyline fill=none stroke="{colour}" points="{" ".join(place(*one) for one in points)}"/>')
        drawn.append(_text(LEFT + 10 + 170 * number, HEIGHT - 2, name, colour))
    drawn += [_text(2, 14, f"{high_y:.4g} {y_unit}"), _text(2, HEIGHT - BOTTOM, f"{low_y:.4g}")]
    drawn += [_text(LEFT, HEIGHT - 16, f"{low_x:.4g}"), _text(WIDTH - 110, HEIGHT - 16, f"{high_x:.4g} {x_unit}")]
    return f"<h2>{html.escape(title)}</h2>{_svg(HEIGHT, drawn)}"


def _prompts(prompts: Sequence[Mapping[str, Any]]) -> str:
    """A bar for each prompt change, of its stages one behind the other."""
    rows = [row for row in prompts if row["split_ms"]]
    if not rows:
        return ""
    longest = max(sum(max(ms, 0) for ms in row["split_ms"].values()) for row in rows) or 1
    stages = list(dict.fromkeys(stage for row in rows for stage in row["split_ms"]))
    drawn = []
    for line, row in enumerate(rows):
        edges = [0.0]
        for ms in row["split_ms"].values():
            edges.append(edges[-1] + max(ms, 0))
        for stage, (begin, end) in zip(row["split_ms"], pairwise(edges), strict=True):
            left, right = ((WIDTH - 10) * edge / longest for edge in (begin, end))
            colour = COLOURS[stages.index(stage) % len(COLOURS)]
            drawn.append(
                f'<rect x="{left:.1f}" y="{20 * line + 2}" width="{right - left:.1f}" height=16 fill="{colour}">'
                f"<title>{stage} {end - begin:.0f} ms</title></rect>"
            )
    height = 20 * len(rows) + 24
    drawn += [_text(10 + 88 * n, height - 6, stage, COLOURS[n % len(COLOURS)]) for n, stage in enumerate(stages)]
    return f"<h2>Prompt to picture, up to {longest / 1000:.2f} s</h2>{_svg(height, drawn)}"


def _svg(height: int, drawn: Iterable[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" font-size=12>{"".join(drawn)}</svg>'


def _text(x: float, y: float, text: str, colour: str = "#333") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" fill="{colour}">{html.escape(text)}</text>'

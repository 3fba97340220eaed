"""The evaluation as one self-contained HTML file: figures with intervals, contact sheet, drift curves, seam histogram.

Charts are SVG written here, so that the report needs no plotting library and no network.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from torch import Tensor

from engine.evaluation.figures import ends
from engine.evaluation.figures import rows as figures_rows
from engine.training.run import write_atomically
from engine.training.world.captions import Label

SHEET_ROWS = 24
SHEET_FRAMES = (0, 24, 48, 72, 96)
CHANGED_COLUMN = 3  # first picture under the new prompt
TEXT_PX = 14  # height of a line of words above the pictures
CHART_PX = (560, 220)
MARGIN_PX = 40
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#a463f2", "#9c6b4e")
WORDS = ("subject", "colour", "scene", "direction", "speed")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #1b1e23 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .25rem .8rem; text-align: left }
tr { border-bottom: 1px solid #dde } td + td { font-variant-numeric: tabular-nums }
img, svg { max-width: 100%; height: auto } code { overflow-wrap: anywhere } .note { color: #667 }
"""

Line = tuple[str, Sequence[float], Sequence[float]]  # name, x, y


@dataclass(frozen=True, slots=True)
class Sheet:
    """What the contact sheet shows: frames SHEET_FRAMES of the first videos, and the words of all."""

    pictures: list[Tensor]  # uint8 [frames, 3, H, W] each
    labels: list[Label]
    later: list[Label]  # after the change of the prompt
    rows: list[dict[str, bool]]
    later_rows: list[dict[str, bool]]


def write_sheet(path: Path, sheet: Sheet) -> None:
    """One row a video with what was asked for, before and after the change; wrong words in red. Writes a PNG."""
    height, width = sheet.pictures[0].shape[-2:]
    row_px = height + TEXT_PX
    whole = Image.new("RGB", (len(SHEET_FRAMES) * width, len(sheet.pictures) * row_px), "white")
    draw = ImageDraw.Draw(whole)
    for row, pictures in enumerate(sheet.pictures):
        top = row * row_px
        _write_words(draw, (2, top + 1), sheet.labels[row], sheet.rows[row])
        _write_words(draw, (CHANGED_COLUMN * width + 2, top + 1), sheet.later[row], sheet.later_rows[row])
        for column, picture in enumerate(pictures):
            whole.paste(Image.fromarray(picture.permute(1, 2, 0).numpy()), (column * width, top + TEXT_PX))
    write_atomically(path, lambda part: whole.save(part, format="PNG"))


def _write_words(draw: ImageDraw.ImageDraw, at: tuple[int, int], label: Label, right: dict[str, bool]) -> None:
    x, y = at
    for word, text in label.words.items():
        draw.text((x, y), text, fill="black" if right[word] else "red")
        x += 6 * len(text) + 8


def write_report(path: Path, figures: dict[str, Any], sheet: Path) -> None:
    """Writes the report of `figures`, with the contact sheet of the file `sheet` in it, whole or not at all."""
    picture = base64.b64encode(sheet.read_bytes()).decode()
    conditions = "".join(
        f"<tr><td>{html.escape(name)}<td><code>{html.escape(str(value))}</code>"
        for name, value in figures["conditions"].items()
    )
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Quality of mini</title><style>{STYLE}</style>'
        "<h1>Quality of <code>mini</code></h1>"
        '<p class="note">Held-out captions, judged on the frames that a viewer would get; ± is half of the 95 % '
        f"interval.</p>{_table(figures)}"
        "<h2>Long videos</h2>" + _drift_charts(figures["drift_curve"]) + _long_table(figures["long"]) + "<h2>Seams</h2>"
        '<p class="note">How much the picture changes from a frame to the next, over the mean inside hops: across a '
        "hop’s first frame, across a latent’s first frame inside a hop, and elsewhere.</p>"
        + _seam_chart(figures["seam_histogram"])
        + "<h2>Contact sheet</h2>"
        f'<p class="note">Frames {", ".join(map(str, SHEET_FRAMES))} of the first videos, not picked; the prompt '
        "changes at frame 49. Words that the judge does not see are red.</p>"
        f'<img alt="Contact sheet" src="data:image/png;base64,{picture}"><h2>Conditions</h2><table>{conditions}</table>'
    )

    def write(part: Path) -> None:
        part.write_text(page, encoding="utf-8")

    write_atomically(path, write)


def _table(figures: dict[str, Any]) -> str:
    rows = "".join(f"<tr><td>{html.escape(name)}<td>{value}" for name, value in figures_rows(figures))
    return f"<table>{rows}</table>"


def _long_table(videos: Sequence[dict[str, Any]]) -> str:
    head = "<tr><th>prompt<th>minutes<th>words, first and last minute<th>sharpness<th>colour<th>seam ratio"
    rows = []
    for video in videos:
        first, last = ends(video)
        rows.append(
            f"<tr><td>{html.escape(video['prompt'])}<td>{video['minutes']:g}<td>{first:.2f}, {last:.2f}"
            f"<td>{video['sharpness_drift']:+.1%}<td>{video['colour_drift']:.1%}<td>{video['seam_ratio']:.2f}"
        )
    return f"<table>{head}{''.join(rows)}</table>"


def _drift_charts(curve: Sequence[dict[str, Any]]) -> str:
    minutes = [float(point["minute"]) for point in curve]
    words: list[Line] = [(word, minutes, [point[word]["share"] for point in curve]) for word in WORDS]
    drifts: list[Line] = [
        (name, minutes, [point[f"{name}_drift"]["mean"] for point in curve]) for name in ("sharpness", "colour")
    ]
    return chart("Share of right words by minute", words, (0.0, 1.0)) + chart("Drift by minute, from minute 0", drifts)


def _seam_chart(histogram: dict[str, Sequence[float]]) -> str:
    middles = [(low + high) / 2 for low, high in zip(histogram["edges"], histogram["edges"][1:], strict=False)]
    lines = [(name, middles, histogram[name]) for name in ("seams", "jumps", "others")]
    return chart("Share of frames by their change", lines)


def chart(title: str, lines: Sequence[Line], limits: tuple[float, float] | None = None) -> str:
    """An SVG with one line a series, its limits of y those of the values unless given."""
    width, height = CHART_PX
    xs, ys = [x for _, row, _ in lines for x in row], [y for _, _, row in lines for y in row]
    low, high = limits or (min(0.0, *ys), max(0.0, *ys))
    left, right = min(xs), max(xs)

    def place(x: float, y: float) -> str:
        across = MARGIN_PX + (x - left) / ((right - left) or 1.0) * (width - 2 * MARGIN_PX)
        down = height - MARGIN_PX - (y - low) / ((high - low) or 1.0) * (height - 2 * MARGIN_PX)
        return f"{across:.1f},{down:.1f}"

    parts = [f'<text x="{MARGIN_PX}" y="18" font-weight="600">{html.escape(title)}</text>']
    for x, y, anchor, value in (
        (MARGIN_PX, height - 20, "start", left), (width - MARGIN_PX, height - 20, "end", right),
        (MARGIN_PX - 4, height - MARGIN_PX, "end", low), (MARGIN_PX - 4, MARGIN_PX + 8, "end", high),
    ):  # fmt: skip
        parts.append(f'<text x="{x}" y="{y}" text-anchor="{anchor}">{value:.3g}</text>')
    frame = f'x="{MARGIN_PX}" y="{MARGIN_PX}" width="{width - 2 * MARGIN_PX}" height="{height - 2 * MARGIN_PX}"'
    parts.append(f'<rect {frame} fill="none" stroke="#ccd"/>')
    for number, (name, row_x, row_y) in enumerate(lines):
        colour = COLOURS[number]
        points = " ".join(place(x, y) for x, y in zip(row_x, row_y, strict=True))
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>')
        # A single point draws no line.
        parts += [f'<circle r="2.5" fill="{colour}" cx="{p.split(",")[0]}" cy="{p.split(",")[1]}"/>'
                  for p in points.split()]  # fmt: skip
        x = MARGIN_PX + number * (width - 2 * MARGIN_PX) // max(5, len(lines))
        parts.append(f'<text x="{x}" y="34" fill="{colour}">{html.escape(name)}</text>')
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    style = 'font-family="system-ui, sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style} role="img">{"".join(parts)}</svg>'

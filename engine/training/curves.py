"""`python -m engine.training curves`: long videos of several evaluations in one picture, minute by minute."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.evaluation import report
from engine.evaluation.drift import WORDS
from engine.training.run import write_atomically

log = logging.getLogger(__name__)


def draw(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """An SVG of the `drift_curve`s of evaluations, by name: right words, and how far the mean colour went."""
    words: list[report.Line] = []
    colours: list[report.Line] = []
    for name, curve in curves.items():
        minutes = [float(point["minute"]) for point in curve]
        shares = [sum(point[word]["share"] for word in WORDS) / len(WORDS) for point in curve]
        words.append((name, minutes, shares))
        colours.append((name, minutes, [point["colour_drift"]["mean"] for point in curve]))
    width, height = report.CHART_PX
    charts = [
        report.chart("Share of right words by minute", words, (0.0, 1.0)),
        report.chart("Change of the mean colour since minute 0", colours),
    ]
    placed = [chart.replace("<svg", f'<svg y="{number * height}"', 1) for number, chart in enumerate(charts)]
    size = f'width="{width}" height="{height * len(placed)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(placed)}</svg>\n'


def main(argv: Sequence[str]) -> int:
    """Arguments to a file; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m engine.training curves", description=__doc__)
    parser.add_argument("figures", type=Path, nargs="+", metavar="F", help="what `engine evaluate --json` wrote")
    parser.add_argument("--svg", type=Path, required=True, metavar="F", help="file to write")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        curves = {path.stem: _read(path) for path in arguments.figures}
        write_atomically(arguments.svg, lambda part: part.write_text(draw(curves), encoding="utf-8"))
    except (ValueError, OSError) as error:
        log.error("curves: %s", error)
        return 2
    return 0


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        curve: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["drift_curve"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no figures of `engine evaluate --json`: {error!r}") from error
    return curve

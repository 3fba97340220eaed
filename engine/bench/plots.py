"""The benchmark's figures as pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine.training.run import write_atomically

Report = Mapping[str, Any]
_SIZE_IN = (7.0, 3.6)
_DPI = 120
_OURS, _THEIRS = "#4269d0", "#b0b4bb"
_SMOOTH = 13  # hops whose median is drawn as a line


def draw(report: Report, folder: Path) -> list[Path]:
    """Writes `bench_peers.png` and, of a report with a long video, `bench_growth.png`; returns where they are."""
    pictures: dict[str, Callable[[Any, Report], None]] = {"bench_peers": _peers}
    if "growth" in report:
        pictures["bench_growth"] = _growth
    return [_write(folder / f"{name}.png", paint, report) for name, paint in pictures.items()]


def _write(target: Path, paint: Callable[[Any, Report], None], report: Report) -> Path:
    # Drawn without pyplot, which would keep the figure and look for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_IN, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    paint(figure, report)
    write_atomically(target, lambda path: figure.savefig(path, format="png"))
    return target


def _peers(figure: Any, report: Report) -> None:
    """Three pairs of bars, each in its own unit."""
    transformer, planner, decoder = report["transformer"], report["planner"], report["autoencoder"]
    panels = {
        "renderer\nms per second of video": (transformer, dict.fromkeys(("ours", "theirs"), transformer["video_s"])),
        "planner\nms per code": (planner, dict.fromkeys(("ours", "theirs"), planner["codes"])),
        "decoder\nms per frame": (decoder, decoder["frames"]),
    }
    names = {"transformer": "diffusers", "planner": "transformers", "autoencoder": "diffusers"}
    axes = figure.subplots(1, len(panels))
    for axis, (title, (figures, per)), peer in zip(axes, panels.items(), names.values(), strict=True):
        for place, (whose, colour) in enumerate((("ours", _OURS), ("theirs", _THEIRS))):
            times = figures[whose]["total"]
            scale = 1e3 / per[whose]
            error = scale * times["middle_half_s"] / 2
            bar = axis.bar(place, scale * times["median_s"], yerr=error, color=colour, capsize=4)
            axis.bar_label(bar, fmt="%.3g", padding=3)
        axis.set_xticks([0, 1], ["ours", peer])
        axis.set_title(title, fontsize=9)
        axis.margins(y=0.2)
        axis.spines[["top", "right"]].set_visible(False)
    facts = report["conditions"]
    figure.suptitle(f"{facts['preset']}, {facts['device']}, {facts['dtype']}: less is better", fontsize=10)


def _growth(figure: Any, report: Report) -> None:
    """Time of each hop with a moving median, and the process's memory."""
    import numpy as np

    series = report["growth"]["series"]
    hops = [point["hop"] for point in series]
    times_ms = np.array([1e3 * point["seconds"] for point in series])
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    above.plot(hops, times_ms, ".", markersize=3, color=_THEIRS)
    if len(times_ms) >= _SMOOTH:
        windows = np.lib.stride_tricks.sliding_window_view(times_ms, _SMOOTH)
        middle = _SMOOTH // 2
        above.plot(hops[middle : middle + len(windows)], np.median(windows, axis=1), color=_OURS)
    above.set_ylabel("ms a hop")
    below.plot(hops, [point["rss_mb"] for point in series], color=_OURS)
    below.set_ylabel("memory, MB")
    below.set_xlabel("hop")
    for axis in (above, below):
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    above.set_title("One video, hop after hop: plan, render, decode", fontsize=10)

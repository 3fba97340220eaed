"""`python -m engine.bench.curve --json F`: error against denoising steps and seconds, for solvers' orders and spacings.

For some captions that training never saw, the first two hops are planned once and then rendered again and again from
the same noise. The error is that of the latents against a run of many steps, relative, as root mean squares; the second
hop always follows the reference's first, so that every run answers the same question.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from engine.arguments import checked, picture
from engine.bench.contender import conditions
from engine.config import preset
from engine.live.generator import ChannelState, Generator
from engine.loading.model import Model, load, pick_device, pick_dtype, use_cores, weights_folder
from engine.perceptual.schedule import FlowSchedule
from engine.training.run import write_atomically
from engine.training.world.captions import caption, random_label

_SIZE_IN, _DPI = (7.0, 3.6), 120
_Run = tuple[int, float, int]  # order, shift, steps


@dataclass(frozen=True, slots=True)
class CurveConfig:
    """What is run: all of `steps` for each order and shift, against many evenly spaced steps of the second order."""

    captions: int
    steps: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16)
    orders: tuple[int, ...] = (1, 2, 3)
    shifts: tuple[float, ...] = (0.6, 1.0)
    reference_steps: int = 64

    def __post_init__(self) -> None:
        if self.captions < 1:
            raise ValueError(f"{self.captions} captions asked for, at least 1 is needed")
        if not self.steps or not 1 <= min(self.steps) <= max(self.steps) < self.reference_steps:
            raise ValueError(f"steps {self.steps} must lie between 1 and the reference's {self.reference_steps}")


@dataclass(frozen=True, slots=True)
class Rendered:
    """One hop, rendered."""

    latents: Tensor  # [1, T, C, H, W]
    seconds: float  # of the denoising steps
    after: ChannelState  # as the hop left it


def curve(model: Model, config: CurveConfig) -> list[dict[str, Any]]:
    """A row for each order, shift and number of steps; times are medians over captions and hops."""
    reference = _generator(model, (2, 1.0, config.reference_steps))
    runs = {run: _generator(model, run) for run in itertools.product(config.orders, config.shifts, config.steps)}
    errors: dict[_Run, list[float]] = {run: [] for run in runs}
    seconds: dict[_Run, list[float]] = {run: [] for run in runs}
    dice = random.Random("curve")
    for seed in tqdm(range(config.captions), unit="caption"):
        channel = reference.open(caption(random_label(dice, held_out=True), dice), seed)
        for _ in range(2):
            while reference.needs_plan(channel):
                reference.plan(channel)
            truth = render(reference, channel)
            # Runs take turns within a hop, so that a busy moment of the machine hits all alike.
            for run, generator in runs.items():
                made = render(generator, channel)
                errors[run].append(relative_error(made.latents, truth.latents))
                seconds[run].append(made.seconds)
            channel = truth.after
    return [
        {
            **dict(zip(("order", "shift", "steps"), run, strict=True)),
            "error": statistics.fmean(errors[run]),
            "worst_error": max(errors[run]),
            "hop_s": statistics.median(seconds[run]),
        }
        for run in runs
    ]


def render(generator: Generator, channel: ChannelState) -> Rendered:
    """The channel's next hop, without changing it."""
    after, new = copy.deepcopy(channel), generator.new_latents(channel)
    seconds, began_s = 0.0, None
    for unit in generator.hop(after):
        now_s = time.perf_counter()
        # The first unit of rendering reads the prompt half.
        seconds += now_s - began_s if began_s is not None and unit.stage == "render" else 0.0
        began_s = now_s
    return Rendered(after.prompt_half[:, -new:], seconds, after)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of the expected values."""
    return float((actual - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt())


def _generator(model: Model, run: _Run) -> Generator:
    order, shift, steps = run
    schedule = FlowSchedule(shift=shift, order=order)
    return Generator(replace(model, config=replace(model.config, schedule=schedule)), steps)


def draw(rows: Sequence[Mapping[str, Any]], target: Path) -> None:
    """Error over steps and over seconds, one line an order and shift, as a PNG."""
    # Drawn without pyplot, which would keep the figure and look for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_IN, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (key, label) in zip(axes, (("steps", "steps"), ("hop_s", "seconds a hop")), strict=True):
        for order, shift in sorted({(row["order"], row["shift"]) for row in rows}):
            line = [row for row in rows if (row["order"], row["shift"]) == (order, shift)]
            name = f"order {order}, shift {shift:g}"
            axis.plot([row[key] for row in line], [row["error"] for row in line], marker=".", label=name)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel(label)
        axis.grid(True, alpha=0.3)
    axes[0].set_ylabel("relative error of the latents")
    axes[0].legend()
    write_atomically(target, lambda path: figure.savefig(path, format="png"))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(prog="python -m engine.bench.curve", description=__doc__)
    options.add_argument("--json", type=Path, required=True, metavar="F", help="file to write the figures to")
    options.add_argument("--png", type=checked(picture), metavar="P", help="picture of them")
    options.add_argument("--captions", type=int, default=6, help="held-out captions (default: 6)")
    options.add_argument("--preset", default="mini", help="which model (default: mini)")
    options.add_argument("--weights", metavar="DIR", help="weights to use instead of the preset's own")
    options.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Arguments to figures; returns the exit status, 2 for a mistake of the caller."""
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = parser().parse_args(words)
    try:
        use_cores()
        amount = CurveConfig(arguments.captions)
        config, device = preset(arguments.preset), pick_device(arguments.device)
        if not isinstance(config.schedule, FlowSchedule):
            raise ValueError(f"preset {config.name!r} is no rectified flow: the captions and the curve are for 'mini'")
        model = load(config, weights_folder(config, arguments.weights), device, pick_dtype(device))
        rows = curve(model, amount)
    except ValueError as error:
        sys.stderr.write(f"curve: {error}\n")
        return 2
    facts = conditions(words, model, "engine.bench.curve")
    text = json.dumps({"conditions": facts, "rows": rows}, indent=1, allow_nan=False) + "\n"
    write_atomically(arguments.json, lambda path: _put(path, text))
    if arguments.png:
        draw(rows, arguments.png)
    return 0


def _put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

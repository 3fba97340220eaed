"""`python -m engine.bench.reuse_cost --json F`: what it costs, and spares, to take the layers' work of earlier steps.

For some captions that training never saw, the first two hops are planned once and rendered again and again from the
same noise, with and without reuse (`engine.perceptual.reuse`). Errors are those of the latents, relative, as root mean
squares: against the same run without reuse, and against a run of very many steps, which tells whether fewer steps would
have been the better way to spare as much. The second hop always follows that run's first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engine.bench import tables
from engine.bench.contender import conditions
from engine.bench.curve import relative_error, render
from engine.config import preset
from engine.live.generator import Generator
from engine.loading.model import Model, load, pick_device, pick_dtype, use_cores, weights_folder
from engine.perceptual.schedule import FlowSchedule
from engine.training.run import write_atomically
from engine.training.world.captions import caption, random_label

COMMAND = "engine.bench.reuse_cost"
_Run = tuple[int, float]  # steps, reach
_MS = 1e3


@dataclass(frozen=True, slots=True)
class ReuseConfig:
    """What is run: all of `steps` without reuse and at each reach."""

    captions: int
    steps: tuple[int, ...] = (4, 8, 16, 32)
    reaches: tuple[float, ...] = (0.3, 0.6, 1.2)
    reference_steps: int = 128

    def __post_init__(self) -> None:
        if self.captions < 1:
            raise ValueError(f"{self.captions} captions asked for, at least 1 is needed")
        if not self.steps or not 2 <= min(self.steps) <= max(self.steps) < self.reference_steps:
            raise ValueError(f"steps {self.steps} must lie between 2 and the reference's {self.reference_steps}")
        if not self.reaches or min(self.reaches) <= 0:
            raise ValueError(f"reaches {self.reaches} must be above 0, which is always run")


def measure(model: Model, config: ReuseConfig) -> list[dict[str, Any]]:
    """A row for each number of steps and reach; times are medians over captions and hops."""
    reference = _generator(model, (config.reference_steps, 0.0))
    runs = {run: _generator(model, run) for run in itertools.product(config.steps, (0.0, *config.reaches))}
    figures: dict[_Run, dict[str, list[float]]] = {run: {"exact": [], "truth": [], "hop_s": []} for run in runs}
    dice = random.Random(COMMAND)
    for seed in tqdm(range(config.captions), unit="caption"):
        channel = reference.open(caption(random_label(dice, held_out=True), dice), seed)
        for _ in range(2):
            while reference.needs_plan(channel):
                reference.plan(channel)
            truth = render(reference, channel)
            made = {run: render(generator, channel) for run, generator in runs.items()}
            for (steps, reach), hop in made.items():
                found = figures[steps, reach]
                found["exact"].append(relative_error(hop.latents, made[steps, 0.0].latents))
                found["truth"].append(relative_error(hop.latents, truth.latents))
                found["hop_s"].append(hop.seconds)
            channel = truth.after
    return [
        {
            "steps": steps,
            "reach": reach,
            "layer_runs": generator.layer_runs,
            "error": statistics.fmean(figures[steps, reach]["exact"]),
            "worst_error": max(figures[steps, reach]["exact"]),
            "reference_error": statistics.fmean(figures[steps, reach]["truth"]),
            "hop_s": statistics.median(figures[steps, reach]["hop_s"]),
        }
        for (steps, reach), generator in runs.items()
    ]


def _generator(model: Model, run: _Run) -> Generator:
    steps, reach = run
    return Generator(replace(model, config=replace(model.config, reuse=reach)), steps)


def written(report: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    facts = report["conditions"]
    rows = [
        [
            str(row["steps"]),
            f"{row['reach']:g}" if row["reach"] else "off",
            str(row["layer_runs"]),
            f"{row['error']:.4f}, {row['worst_error']:.4f}" if row["reach"] else "0",
            f"{row['reference_error']:.4f}",
            f"{_MS * row['hop_s']:.0f}",
        ]
        for row in report["rows"]
    ]
    head = [
        "steps",
        "reach",
        "layers run",
        "error by reuse: mean, worst",
        "error to very many steps",
        "median ms a hop",
    ]
    return (
        f"`{facts['command']}`\n\n"
        f"Conditions: {facts['device']}, {facts['cores']} cores, {facts['threads']} threads, {facts['dtype']}, preset "
        f"{facts['preset']}, {report['captions']} held-out captions of two hops, commit {facts['commit']}, "
        f"{facts['date'][:10]}, load average {facts['load_average']:.1f} at the start.\n\n"
        f"{tables.table(head, rows)}\n"
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(prog=f"python -m {COMMAND}", description=__doc__)
    options.add_argument("--json", type=Path, required=True, metavar="F", help="file to write the figures to")
    options.add_argument("--docs", type=Path, metavar="FILE.md", help="write the table between the marks in that file")
    options.add_argument("--captions", type=int, default=3, help="held-out captions (default: 3)")
    options.add_argument("--preset", default="mini", help="which model (default: mini)")
    options.add_argument("--weights", metavar="DIR", help="weights to use instead of the preset's own")
    options.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Arguments to figures; returns the exit status, 2 for a mistake of the caller."""
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = parser().parse_args(words)
    try:
        amount = ReuseConfig(arguments.captions)
        config, device = preset(arguments.preset), pick_device(arguments.device)
        if not isinstance(config.schedule, FlowSchedule):
            raise ValueError(f"preset {config.name!r} is no rectified flow: the captions and runs are for 'mini'")
        if arguments.docs:
            tables.check_marks(arguments.docs, config.name, COMMAND)
        use_cores()
        model = load(config, weights_folder(config, arguments.weights), device, pick_dtype(device))
        facts = conditions(words, model, COMMAND)
        rows = measure(model, amount)
    except ValueError as error:
        sys.stderr.write(f"reuse_cost: {error}\n")
        return 2
    report = {"conditions": facts, "captions": amount.captions, "rows": rows}
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    write_atomically(arguments.json, lambda path: _put(path, text))
    if arguments.docs:
        tables.place(arguments.docs, config.name, written(report), COMMAND)
    sys.stdout.write(written(report))
    return 0


def _put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

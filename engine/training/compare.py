"""`python -m engine.training compare`: quality against denoising steps of several folders of weights.

All videos of a caption start from the same noise and, where the planner's weights are the same, follow the same plan.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from engine.config import EngineConfig, preset
from engine.evaluation import drift, report
from engine.live.generator import Generator
from engine.live.offline import film
from engine.loading.model import Model, load, pick_device, pick_dtype, use_cores
from engine.loading.weights import load_component
from engine.semantic.theia import Theia
from engine.training.run import write_atomically
from engine.training.world import judge as judging
from engine.training.world import reading
from engine.training.world.captions import Label, caption, random_label

log = logging.getLogger(__name__)

REFERENCE_STEPS = 16  # of the first folder: the frames that all others are compared with


def compare(
    folders: Sequence[Path], config: EngineConfig, steps: Sequence[int], captions: int, device: torch.device
) -> list[dict[str, Any]]:
    """One entry for every folder and number of steps: right words, seams, sharpness, distance from the reference.

    `distance` is the mean absolute difference, in levels of 255, from the first folder's video of REFERENCE_STEPS.
    """
    rng = random.Random("compare")
    labels = [random_label(rng, held_out=True) for _ in range(captions)]
    prompts = [caption(label, rng) for label in labels]
    theia = Theia(config.theia).eval()
    load_component(folders[0], "theia", theia)
    references: list[Tensor] = []
    points = []
    with tqdm(total=captions * (1 + len(folders) * len(steps)), unit="video", desc="compare") as bar:
        for folder in folders:
            model = load(config, folder, device, pick_dtype(device))
            if not references:
                for seed, prompt in enumerate(prompts):
                    references.append(_video(model, prompt, seed, REFERENCE_STEPS, drift.ChangeMeter()))
                    bar.update()
            for count in steps:
                found = _point(model, theia, labels, prompts, references, count, bar)
                points.append({"weights": str(folder), "steps": count, **found})
    return points


def _point(
    model: Model,
    theia: Theia,
    labels: Sequence[Label],
    prompts: Sequence[str],
    references: Sequence[Tensor],
    steps: int,
    bar: tqdm,
) -> dict[str, Any]:
    rows, sharp, distances, changes = [], [], [], []
    for seed, (label, prompt) in enumerate(zip(labels, prompts, strict=True)):
        meter = drift.ChangeMeter()
        clip = _video(model, prompt, seed, steps, meter)
        changes.append(meter.changes)
        rows.append(reading.read(judging.features(theia, clip))[0].right(label))
        sharp.append(judging.sharpness(clip))
        distances.append(float((clip.float() - references[seed].float()).abs().mean()))
        bar.update()
    seams = drift.seams(changes)
    return {
        **judging.shares(rows),
        "words": judging.share([right for row in rows for right in row.values()]),
        "sharpness": judging.mean(sharp),
        "distance": judging.mean(distances),
        **{name: seams[name] for name in ("seam_ratio", "seam_ratio_half_width_95")},
    }


def _video(model: Model, prompt: str, seed: int, steps: int, meter: drift.ChangeMeter) -> Tensor:
    """uint8 [F, 3, H, W] of the first two hops."""
    generator, parts = Generator(model, steps), []
    for chunk in film(generator, generator.open(prompt, seed), judging.CLIP_FRAMES):
        parts.append(judging.to_rgb(chunk.i420))
        meter.see(chunk, parts[-1])
    return torch.cat(parts)


def chart(points: Sequence[dict[str, Any]]) -> str:
    """Share of right words against the logarithm of the steps, one line a folder, as SVG."""
    lines: list[report.Line] = []
    for folder in dict.fromkeys(point["weights"] for point in points):
        own = [point for point in points if point["weights"] == folder]
        steps = [float(np.log2(point["steps"])) for point in own]
        lines.append((Path(folder).name, steps, [point["words"]["share"] for point in own]))
    return report.chart("Share of right words by log2 of the steps", lines, (0.0, 1.0))


def main(argv: Sequence[str]) -> int:
    """Arguments to a file; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m engine.training compare", description=__doc__)
    parser.add_argument("weights", type=Path, nargs="+", metavar="DIR", help="folders of weights, the teacher first")
    parser.add_argument("--json", type=Path, required=True, metavar="F", help="file to write; a chart goes beside it")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="numbers of steps to look at")
    parser.add_argument("--captions", type=int, default=40, help="held-out captions, two hops of video each")
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    use_cores()
    try:
        if arguments.captions < 2 or min(arguments.steps) < 1:
            raise ValueError(f"captions {arguments.captions} must be at least 2 and steps {arguments.steps} at least 1")
        device = pick_device(arguments.device)
        points = compare(arguments.weights, preset(arguments.preset), arguments.steps, arguments.captions, device)
        write_atomically(arguments.json, lambda part: part.write_text(json.dumps(points, indent=1) + "\n", "utf-8"))
        write_atomically(arguments.json.with_suffix(".svg"), lambda part: part.write_text(chart(points), "utf-8"))
    except (ValueError, OSError) as error:
        log.error("compare: %s", error)
        return 2
    for point in points:
        log.info("%s, %d steps: %.3f of the words", point["weights"], point["steps"], point["words"]["share"])
    return 0

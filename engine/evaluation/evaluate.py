"""`python -m engine evaluate`: the quality figures of preset `mini`, judged on the frames that a viewer would get.

The judge is the feature extractor, which first has to prove itself on true pictures of the world. Every caption is
held out; every figure has the half width of its 95 % interval. `--vbench` instead writes videos for the public tool.
Shapes: `V` videos, `F` frames, `H` x `W` pixels, `D` features.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from engine.bench import tables
from engine.bench.contender import commit, processor
from engine.config import preset
from engine.evaluation import drift, report, roundtrip
from engine.evaluation.figures import COMMAND, markdown
from engine.live.generator import Generator
from engine.live.offline import Change, film
from engine.loading.model import Model, load, pick_device, pick_dtype, use_cores, weights_folder
from engine.loading.weights import load_component
from engine.semantic.theia import Theia
from engine.training import vbench
from engine.training.run import write_atomically
from engine.training.world import drawing as world
from engine.training.world import judge as judging
from engine.training.world import reading, teacher
from engine.training.world.captions import Label, caption, random_label

log = logging.getLogger(__name__)

PROOF_SHARE = 0.99  # of true words the judge must find


@dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """How much is looked at. `drift_minutes` is the length of each long video, of `drift_videos`.

    Long videos are made `without` a half of the method if so told: see `drift.chunks`.
    """

    captions: int = 200
    drift_minutes: float = 10.0
    drift_videos: int = 2
    seed: int = 0
    without: drift.Without | None = None

    def __post_init__(self) -> None:
        if self.captions < 2 or self.drift_videos < 1 or self.drift_minutes <= 0:
            raise ValueError(
                f"captions {self.captions} must be at least 2, which an interval needs, drift_videos "
                f"{self.drift_videos} at least 1 and drift_minutes {self.drift_minutes} above 0"
            )


@dataclass(slots=True)
class Truth:
    """What the judge makes of true videos."""

    rows: list[dict[str, bool]] = field(default_factory=list)
    hop_rows: list[dict[str, bool]] = field(default_factory=list)  # of their last hop alone
    summaries: list[Tensor] = field(default_factory=list)  # [2 D] each
    flicker: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Shorts(Truth):
    """The same of generated videos, whose prompt changes after two hops."""

    changed_rows: list[dict[str, bool]] = field(default_factory=list)  # the second hop under the new prompt
    changes: list[drift.Changes] = field(default_factory=list)  # from frame to frame, before the new prompt
    pictures: list[Tensor] = field(default_factory=list)  # [F, 3, H, W] of the first few, for the sheet


def evaluate(model: Model, theia: Theia, config: EvaluateConfig) -> tuple[dict[str, Any], report.Sheet]:
    """All figures, and what the contact sheet shows."""
    rng = random.Random(f"evaluate {config.seed}")
    labels = [random_label(rng, held_out=True) for _ in range(config.captions)]
    later = labels[1:] + labels[:1]
    long_clips = round(config.drift_minutes * 60 * model.config.fps) // judging.CLIP_FRAMES
    with tqdm(
        total=3 * config.captions + config.drift_videos * max(1, long_clips), unit="clip", desc="evaluate"
    ) as bar:
        truth = prove(theia, labels, rng, bar)
        generator = Generator(model)
        shorts = Shorts()
        for seed, (label, new) in enumerate(zip(labels, later, strict=True)):
            short_video(generator, theia, (label, new), rng, seed, shorts)
            bar.update()
        long = [
            drift.watch(generator, theia, label, config.drift_minutes, config.seed, bar.update, config.without)
            for label in labels[: config.drift_videos]
        ]
        reconstruction = roundtrip.autoencoder(model, labels, bar.update)
    made, true = torch.stack(shorts.summaries), torch.stack(truth.summaries)
    figures = {
        "judge_on_true_videos": judging.shares(truth.rows),
        "judge_on_true_hops": judging.shares(truth.hop_rows),
        "held_out": judging.shares(shorts.rows),
        "prompt_change": prompt_change(shorts.changed_rows, labels, later),
        "frechet": judging.frechet(made, true),
        "frechet_half_width_95": judging.frechet_half_width(made, true, config.seed),
        "flicker": flicker(truth, shorts, labels),
        **drift.seams([*shorts.changes, *(video.changes for video in long)]),
        "long": [video.figures() for video in long],
        "drift_curve": drift.curve(long),
        "autoencoder": reconstruction,
    }
    if model.config.tokenizer.feature_dim == teacher.FEATURE_DIM:
        figures["tokenizer_round_trip"] = roundtrip.tokenizer(model, rng)
    return figures, report.Sheet(shorts.pictures, labels, later, shorts.rows, shorts.changed_rows)


def prove(theia: Theia, labels: list[Label], rng: random.Random, bar: tqdm) -> Truth:
    """The judge on true videos of `labels`.

    Raises:
        ValueError: if it misses more words than it may.
    """
    truth = Truth()
    for label in labels:
        clip = world.draw(world.sample([label], rng), torch.arange(judging.CLIP_FRAMES)[None])[0]
        look(theia, clip, label, truth)
        truth.hop_rows.append(judging.judge(theia, clip[-24:], label))
        bar.update()
    shares = judging.shares(truth.rows)
    weak = [f"{name} {one['share']:.3f}" for name, one in shares.items() if one["share"] < PROOF_SHARE]
    if weak:
        raise ValueError(
            f"the judge finds too few words of true videos ({', '.join(weak)}; {PROOF_SHARE} needed): "
            "train the extractor longer"
        )
    return truth


def look(theia: Theia, clip: Tensor, label: Label, seen: Truth) -> None:
    """Judges a clip [F, 3, H, W] and adds what is found to `seen`."""
    features = judging.features(theia, clip)
    seen.rows.append(reading.read(features)[0].right(label))
    seen.summaries.append(judging.summary(features))
    seen.flicker.append(judging.flicker(clip))


def short_video(
    generator: Generator, theia: Theia, labels: tuple[Label, Label], rng: random.Random, seed: int, shorts: Shorts
) -> None:
    """Makes and judges two hops under one label and two under another."""
    config = generator.model.config
    first, hop = judging.CLIP_FRAMES, config.hop_frames
    prompt, new = (caption(label, rng) for label in labels)
    meter, parts = drift.ChangeMeter(), []
    channel = generator.open(prompt, seed)
    for chunk in film(generator, channel, first + 2 * hop, [Change(first, new)]):
        parts.append(judging.to_rgb(chunk.i420))
        if chunk.index < first:
            meter.see(chunk, parts[-1])
    whole = torch.cat(parts)
    look(theia, whole[:first], labels[0], shorts)
    shorts.changes.append(meter.changes)
    shorts.changed_rows.append(judging.judge(theia, whole[-hop:], labels[1]))
    if len(shorts.pictures) < report.SHEET_ROWS:
        shorts.pictures.append(whole[list(report.SHEET_FRAMES)])


def prompt_change(rows: list[dict[str, bool]], before: list[Label], after: list[Label]) -> dict[str, Any]:
    """Right words in the second hop after a change: each kind, all of a video, and those that differ from before."""
    new = [
        right
        for row, old, label in zip(rows, before, after, strict=True)
        for word, right in row.items()
        if old.words.get(word) != label.words[word]
    ]
    every = judging.share([all(row.values()) for row in rows])
    return judging.shares(rows) | {"all": every, "changed_words": judging.share(new)}


def flicker(truth: Truth, shorts: Shorts, labels: list[Label]) -> dict[str, Any]:
    """Flicker of still scenes, in levels of 255, and over that of true videos of the same captions; none if few."""
    still = [row for row, label in enumerate(labels) if (label.direction, label.camera) == ("still", "fixed")]
    if len(still) < 2:
        return {"n": len(still)}
    made, true = ([seen.flicker[row] for row in still] for seen in (shorts, truth))
    return {"levels": judging.mean(made), "true_levels": judging.mean(true), **judging.ratio(made, true)}


def write_figures(path: Path, figures: dict[str, Any]) -> None:
    """The figures as JSON, whole or not at all."""

    def write(part: Path) -> None:
        part.write_text(json.dumps(figures, indent=1) + "\n")

    write_atomically(path, write)


def conditions(argv: Sequence[str], model: Model) -> dict[str, Any]:
    """What the figures were measured with."""
    return {
        "command": "python -m engine evaluate " + " ".join(argv),
        "device": model.device.type,
        "processor": processor(),
        "cores": os.cpu_count(),
        "commit": commit(),
        "dtype": str(model.dtype),
        "torch": torch.__version__,
        "steps": model.config.steps,
        "guidance": model.config.sampling.guidance,
        "date": time.strftime("%Y-%m-%d"),
    }


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m engine evaluate", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="F", help="file to write the figures to")
    parser.add_argument("--html", type=Path, metavar="F", help="report to write beside them, one file")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="contact sheet (default: beside the figures)")
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="FILE.md",
        action="append",
        default=[],
        help="put the table between the marks there",
    )
    parser.add_argument("--captions", type=int, default=200, help="held-out captions, four hops of video each")
    parser.add_argument("--drift-minutes", type=float, default=10.0, help="length of each long video")
    parser.add_argument("--drift-videos", type=int, default=2, help="number of long videos")
    parser.add_argument(
        "--without", choices=get_args(drift.Without), help="make long videos without this half of the method"
    )
    parser.add_argument("--vbench", type=Path, metavar="OUT", help="folder to write videos for VBench to")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="VBench's prompts, one a line or its JSON")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--weights", metavar="DIR|HUB_ID", help="weights to use instead of the preset's own")
    parser.add_argument("--steps", type=int, help="denoising steps a hop (the preset's own)")
    parser.add_argument("--guidance", type=float, help="of the planner's codes; 1 is none (the preset's own)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args(argv)
    if (arguments.vbench is None) != (arguments.prompts is None):
        parser.error("--vbench and --prompts belong together")
    if (arguments.json is None) == (arguments.vbench is None):
        parser.error("give --json F for the figures, or --vbench OUT --prompts FILE for videos")
    if (arguments.html is not None or arguments.docs) and arguments.json is None:
        parser.error("--html and --docs need --json")
    return arguments


def main(argv: Sequence[str]) -> int:
    """Arguments to figures or videos; returns the exit status."""
    arguments = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    use_cores()
    try:
        amount = EvaluateConfig(
            captions=arguments.captions,
            drift_minutes=arguments.drift_minutes,
            drift_videos=arguments.drift_videos,
            seed=arguments.seed,
            without=arguments.without,
        )
        for document in arguments.docs:
            tables.check_marks(document, arguments.preset, COMMAND)
        prompts = vbench.read_prompts(arguments.prompts) if arguments.vbench else []
        config, device = preset(arguments.preset), pick_device(arguments.device)
        if arguments.steps:
            config = replace(config, steps=arguments.steps)
        config = config.guided(arguments.guidance)
        folder = weights_folder(config, arguments.weights)
        model = load(config, folder, device, pick_dtype(device))
        if arguments.vbench:
            written = vbench.write_videos(Generator(model), prompts, arguments.vbench, arguments.seed)
            log.info("%d videos written to %s", written, arguments.vbench)
            return 0
        theia = Theia(config.theia).eval()
        load_component(folder, "theia", theia)
        figures, sheet = evaluate(model, theia, amount)
    except ValueError as error:
        log.error("evaluate: %s", error)
        return 2
    figures = {"conditions": conditions(argv, model), **figures}
    write_figures(arguments.json, figures)
    picture = arguments.sheet or arguments.json.with_suffix(".png")
    report.write_sheet(picture, sheet)
    if arguments.html:
        report.write_report(arguments.html, figures, picture)
    for document in arguments.docs:
        tables.place(document, arguments.preset, markdown(figures), COMMAND)
    log.info("%s", json.dumps({name: value["share"] for name, value in figures["held_out"].items()}))
    return 0

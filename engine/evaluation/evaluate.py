"""`python -m engine evaluate`: the quality figures of preset `mini`, judged on the frames that a viewer would get.

The judge is the feature extractor, which first proves itself on true videos of the drawn world. All captions are held
out, and figures have the half width of their 95 % interval. Shapes: `F` frames, `H` x `W` pixels, `D` features.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from engine.arguments import add_model, checked, seed, steps
from engine.bench.report import conditions
from engine.config import preset
from engine.evaluation import drift
from engine.evaluation.pictures import evaluate_pictures, pictures_markdown
from engine.evaluation.prompt_set import judge_prompts, prompts_markdown, read_prompts
from engine.evaluation.report import SHEET_FRAMES, SHEET_ROWS, SheetRow, contact_sheet, markdown
from engine.evaluation.starts import evaluate_starts, starts_markdown
from engine.evaluation.watched import judge_frames
from engine.live.generator import Generator
from engine.live.offline import Change, generate_frames
from engine.loading.model import Model, load
from engine.loading.options import place
from engine.loading.weights import load_component
from engine.semantic import reading
from engine.semantic.theia import Theia
from engine.training.world import drawing, judge, teacher
from engine.training.world.captions import Label, caption, random_label
from engine.wire.files import check_target, write_atomically

PROOF_SHARE = 0.99  # of true words that the judge must find
BOX_PX = 48  # side of the box around a subject
MOST_MINUTES = 1e6  # of a long video

Rows = list[dict[str, bool]]


@dataclass(slots=True)
class Judged:
    """Findings about true or generated videos, in the order of their labels."""

    rows: Rows = field(default_factory=list)
    last_rows: Rows = field(default_factory=list)  # of the last chunk: of true videos, or under a changed prompt
    summaries: list[Tensor] = field(default_factory=list)  # [2 D] each
    flicker: list[float] = field(default_factory=list)

    def add(self, theia: Theia, clip: Tensor, label: Label, last: Tensor, last_label: Label) -> None:
        """Judges a clip [F, 3, H, W] by its label, and the last chunk by `last_label`."""
        features = judge.features(theia, clip)
        self.rows.append(judge.right(reading.read(features)[0], label))
        self.last_rows.append(judge.judge(theia, last, last_label))
        self.summaries.append(judge.summary(features))
        self.flicker.append(judge.flicker(clip))


def evaluate(
    model: Model, theia: Theia, captions: int, drift_minutes: float, drift_videos: int, seed: int
) -> tuple[dict[str, Any], list[SheetRow]]:
    """All figures, ready for JSON, and rows of the contact sheet. Raises ValueError if the judge fails its proof."""
    rng = random.Random(f"evaluate {seed}")
    labels = [random_label(rng, held_out=True) for _ in range(captions)]
    later = labels[1:] + labels[:1]
    chunk = model.config.chunk_frames
    true = prove(theia, labels, rng, chunk)
    generator, made, changes, sheet = Generator(model), Judged(), [], []
    pairs = tqdm(zip(labels, later, strict=True), total=len(labels), unit="video", desc="short videos")
    for number, (label, new) in enumerate(pairs):
        # Two chunks under one prompt and two under another.
        channel = generator.open(caption(label, rng), number)
        change = Change(judge.CLIP_FRAMES, caption(new, rng))
        batches = generate_frames(generator, channel, judge.CLIP_FRAMES + 2 * chunk, [change])
        video = torch.cat([judge.to_rgb(batch.i420) for batch in batches])
        clip = video[: judge.CLIP_FRAMES]
        made.add(theia, clip, label, video[-chunk:], new)
        changes.append(drift.sort_changes(judge.change_of_frames(clip).tolist(), model.config))
        if number < SHEET_ROWS:
            sheet.append((video[list(SHEET_FRAMES)], (label, made.rows[-1]), (new, made.last_rows[-1])))
    long = [drift.watch(generator, theia, label, drift_minutes, seed) for label in labels[:drift_videos]]
    return {
        "judge_on_true_videos": judge.shares(true.rows),
        "judge_on_true_chunks": judge.shares(true.last_rows),
        "held_out": judge.shares(made.rows),
        "prompt_change": prompt_change(made.last_rows, labels, later),
        "frechet": judge.frechet_figure(torch.stack(made.summaries), torch.stack(true.summaries), seed),
        "flicker": flicker(made, true, labels),
        **drift.seam_figures([*changes, *(video.changes for video in long)]),
        "long_videos": [video.prompt for video in long],
        "drift_curve": drift.curve(long),
        "autoencoder": autoencoder(model, labels),
        "tokenizer": tokenizer(model, labels, rng),
    }, sheet


def prove(theia: Theia, labels: list[Label], rng: random.Random, chunk_frames: int) -> Judged:
    """The judge on true videos of `labels`. Raises ValueError if it misses more words than it may."""
    true = Judged()
    for label in tqdm(labels, unit="video", desc="true videos"):
        clip = drawing.draw(drawing.sample([label], rng), torch.arange(judge.CLIP_FRAMES)[None])[0]
        true.add(theia, clip, label, clip[-chunk_frames:], label)
    shares = judge.shares(true.rows)
    weak = [f"{name} {one['share']:.3f}" for name, one in shares.items() if one["share"] < PROOF_SHARE]
    if weak:
        raise ValueError(f"the judge misses words of true videos ({', '.join(weak)}): train the extractor longer")
    return true


def prompt_change(rows: Rows, before: list[Label], after: list[Label]) -> dict[str, Any]:
    """Right words in the second chunk after a change: each kind, all of a video, and those that differ from before."""
    new = [
        right
        for row, old, label in zip(rows, before, after, strict=True)
        for word, right in row.items()
        if old.words.get(word) != label.words[word]
    ]
    every = judge.share([all(row.values()) for row in rows])
    return judge.shares(rows) | {"all": every, "changed_words": judge.share(new)}


def flicker(made: Judged, true: Judged, labels: list[Label]) -> dict[str, Any]:
    """Flicker of still scenes over that of true videos, and both in levels of 255; empty for less than two scenes."""
    still = [row for row, label in enumerate(labels) if (label.direction, label.camera) == ("still", "fixed")]
    if len(still) < 2:
        return {}
    ours, theirs = ([videos.flicker[row] for row in still] for videos in (made, true))
    return judge.ratio(ours, theirs) | {"levels": judge.mean(ours), "true_levels": judge.mean(theirs)}


@torch.no_grad()
def autoencoder(model: Model, labels: list[Label]) -> dict[str, judge.Figure]:
    """PSNR in dB of true videos through the autoencoder: of whole pictures, and of boxes around the subjects."""
    frames, whole, box = torch.arange(model.config.first_chunk_frames)[None], [], []
    for row, label in enumerate(tqdm(labels, unit="video", desc="autoencoder")):
        spec = drawing.sample([label], random.Random(row))
        video = (drawing.draw(spec, frames).float() / 127.5 - 1).to(model.device)
        with model.computing():
            latents = model.vae.encode(video, model.vae.new_state())
            again = model.vae.decode(latents, model.vae.new_state()).float().clamp(-1, 1)
        error = (again - video).square()[0]
        corners = (drawing.centres(spec, frames)[0] - BOX_PX / 2).clamp(min=0).int().tolist()
        near = [one[:, y : y + BOX_PX, x : x + BOX_PX].mean() for one, (x, y) in zip(error, corners, strict=True)]
        whole.append(float(error.mean()))
        box.append(float(torch.stack(near).mean()))
    return {"picture": judge.decibels(whole), "subject_box": judge.decibels(box)}


@torch.no_grad()
def tokenizer(model: Model, labels: list[Label], rng: random.Random) -> dict[str, Any]:
    """Words of true features that are still right after they went through tokens."""
    frames, rows = torch.arange(0, model.config.tokenizer.frames * 4, 4)[None], []
    for label in tqdm(labels, unit="video", desc="tokenizer"):
        maps = teacher.maps(drawing.sample([label], rng), frames).to(model.device)
        with model.computing():
            again = model.tokenizer.decode(model.tokenizer.encode(maps)).float()
        rows.append(judge.right(reading.read(again)[0], label))
    return judge.shares(rows) | {"all": judge.share([right for row in rows for right in row.values()])}


def load_judged(arguments: argparse.Namespace, picture: str = "small") -> tuple[Model, Theia]:
    """The model, and the judge beside it."""
    config = preset(arguments.preset, picture)
    config = replace(config, steps=arguments.steps or config.steps)
    folder, device, dtype = place(config, arguments.weights, arguments.device)
    model, theia = load(config, folder, device, dtype), Theia(config.theia).eval()
    load_component(folder, "theia", theia)
    return model, theia


def judge_file(arguments: argparse.Namespace, command: str) -> int:
    """Judges the prompts of a file."""
    check_target(arguments.json, ".json")
    prompts = read_prompts(arguments.prompts)
    model, theia = load_judged(arguments)
    judged = None if arguments.plans else theia
    figures = judge_prompts(Generator(model), judged, prompts, arguments.seed, arguments.after_change)
    return tell(arguments, command, model, figures, prompts_markdown(figures))


def judge_pictures(arguments: argparse.Namespace, command: str) -> int:
    """Judges large pictures."""
    check_target(arguments.json, ".json")
    model, theia = load_judged(arguments, "large")
    figures = evaluate_pictures(model, theia, arguments.pictures, arguments.seed)
    return tell(arguments, command, model, figures, pictures_markdown(figures))


def judge_starts(arguments: argparse.Namespace, command: str) -> int:
    """Judges videos that go on from clips."""
    check_target(arguments.json, ".json")
    model, theia = load_judged(arguments)
    figures = evaluate_starts(Generator(model), theia, arguments.starts, arguments.seed)
    return tell(arguments, command, model, figures, starts_markdown(figures))


def tell(arguments: argparse.Namespace, command: str, model: Model, figures: dict[str, Any], told: str) -> int:
    """Prints the figures' table and writes them to their file, with the conditions."""
    figures = {"conditions": conditions(command, arguments.weights or "shipped", model), **figures}
    sys.stdout.write(told)
    write_atomically(arguments.json, lambda part: part.write_text(json.dumps(figures, indent=1) + "\n"))
    return 0


def main(argv: Sequence[str]) -> int:
    """Runs the command. Raises ValueError for a mistake of the caller."""
    told = "Judges videos of held-out captions."
    parser = argparse.ArgumentParser(prog="python -m engine evaluate", description=told)
    parser.add_argument("--json", type=Path, required=True, metavar="F", help="for the figures; the sheet is F.png")
    parser.add_argument("--captions", type=int, default=200, help="held-out captions, four chunks of video each")
    parser.add_argument("--drift-minutes", type=float, default=10.0, help="length of each long video")
    parser.add_argument("--drift-videos", type=int, default=2, help="number of long videos")
    parser.add_argument("--seed", type=checked(seed), default=0, help="of captions and videos (default: 0)")
    told = "JSON lines of prompts with labels (docs/TRAINING.md), to be judged in place of held-out captions"
    parser.add_argument("--prompts", type=Path, metavar="F.jsonl", help=told)
    parser.add_argument("--plans", action="store_true", help="of --prompts: judge plans, not pictures; fast")
    told = "of --prompts: each prompt comes in the video of the one before, and its second chunk is judged"
    parser.add_argument("--after-change", action="store_true", help=told)
    told = "I420 frames that were watched under --prompts, an array each: when does every word become right"
    parser.add_argument("--frames", type=Path, metavar="F.npz", help=told)
    parser.add_argument("--whole", action="store_true", help="of --frames: each array is one clip, judged as a whole")
    told = "judge so many videos that go on from drawn clips of 6 s, in place of those that begin with a prompt"
    parser.add_argument("--starts", type=int, metavar="N", help=told)
    told = "judge large pictures, of so many captions: how sharp, how near to true ones, how steady"
    parser.add_argument("--pictures", type=int, metavar="N", help=told)
    add_model(parser)
    parser.add_argument("--steps", type=checked(steps), help="denoising steps a chunk (default: the preset's own)")
    arguments = parser.parse_args(argv)
    if arguments.frames is not None:
        return judge_frames(arguments)
    if arguments.prompts is not None:
        return judge_file(arguments, " ".join(["python -m engine evaluate", *argv]))
    for name, judges in (("starts", judge_starts), ("pictures", judge_pictures)):
        if (count := getattr(arguments, name)) is not None:
            if count < 2:
                parser.error(f"--{name} must be at least 2")
            return judges(arguments, " ".join(["python -m engine evaluate", *argv]))
    if arguments.captions < 2 or arguments.drift_videos < 1 or not 0 < arguments.drift_minutes <= MOST_MINUTES:
        parser.error(
            f"--captions must be at least 2, --drift-videos 1, and --drift-minutes above 0, {MOST_MINUTES:g} at most"
        )
    sheet_path = arguments.json.with_suffix(".png")
    check_target(arguments.json, ".json")
    check_target(sheet_path)
    model, theia = load_judged(arguments)
    amounts = arguments.captions, arguments.drift_minutes, arguments.drift_videos, arguments.seed
    figures, sheet = evaluate(model, theia, *amounts)
    command = " ".join(["python -m engine evaluate", *argv])
    figures = {"conditions": conditions(command, arguments.weights or "shipped", model), **figures}
    sys.stdout.write(markdown(figures))
    write_atomically(arguments.json, lambda part: part.write_text(json.dumps(figures, indent=1) + "\n"))
    write_atomically(sheet_path, lambda part: contact_sheet(sheet).save(part, format="PNG"))
    return 0

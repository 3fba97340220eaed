"""`python -m engine evaluate`: the quality figures of preset `mini`, judged on the frames that a viewer would get.

The judge is the feature extractor, which first has to prove itself on true pictures of the world.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import random
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

from engine.config import preset
from engine.generator import Generator
from engine.model import Model, load, pick_device, pick_dtype, use_cores
from engine.offline import film
from engine.perceptual.tiny_vae import TinyVAEState
from engine.semantic.theia import Theia
from engine.training import judging, reading, teacher, world
from engine.training.autoencoder import BOX_PX, pixels, psnr
from engine.training.captions import Label, caption, random_label
from engine.training.run import write_atomically
from engine.weights import SHIPPED, load_component

log = logging.getLogger(__name__)

PROOF_SHARE = 0.99  # of true words the judge must find
SHEET_ROWS = 24
SHEET_FRAMES = (0, 12, 24, 36, 48)
ROUND_TRIPS = 200
WORDS = ("subject", "colour", "scene", "direction", "speed")


@dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """How much is looked at. `drift_minutes` is the length of each long video, of `drift_videos`."""

    captions: int = 100
    drift_minutes: float = 10.0
    drift_videos: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.captions, self.drift_videos) < 1 or self.drift_minutes <= 0:
            raise ValueError(
                f"captions {self.captions}, drift_videos {self.drift_videos} and drift_minutes {self.drift_minutes} "
                "must be positive"
            )


def evaluate(model: Model, theia: Theia, config: EvaluateConfig, sheet: Path) -> dict[str, Any]:
    """All figures; writes the contact sheet to `sheet`."""
    rng = random.Random(f"evaluate {config.seed}")
    labels = [random_label(rng, held_out=True) for _ in range(config.captions)]
    frames = round(config.drift_minutes * 60 * model.config.fps)
    total = 2 * config.captions + config.drift_videos * (frames // judging.CLIP_FRAMES)
    with tqdm(total=total, unit="clip", desc="evaluate") as bar:
        truth, proof = prove(theia, labels, rng, bar)
        generator = Generator(model)
        clips, rows = [], []
        for seed, label in enumerate(labels):
            clips.append(short_video(generator, caption(label, rng), seed))
            rows.append(judging.judge(theia, clips[-1], label))
            bar.update()
        long = [drift(generator, theia, label, config, bar) for label in labels[: config.drift_videos]]
    write_sheet(sheet, clips, labels, rows)
    made = torch.stack([judging.summary(judging.features(theia, clip)) for clip in clips])
    return {
        "judge_on_true_videos": proof,
        "held_out": judging.shares(rows),
        "frechet": judging.frechet(made, truth),
        "long": long,
        "seam_ratio": float(np.mean([video["seam_ratio"] for video in long])),
        "autoencoder": autoencoder(model, labels),
        "tokenizer_round_trip": round_trip(model, rng),
    }


def prove(theia: Theia, labels: list[Label], rng: random.Random, bar: tqdm) -> tuple[Tensor, dict[str, Any]]:
    """Features of true videos [V, 2 D], and the judge's figures on them.

    Raises:
        ValueError: if the judge misses more than it may.
    """
    summaries, rows = [], []
    for label in labels:
        spec = world.sample([label], rng)
        clip = world.draw(spec, torch.arange(judging.CLIP_FRAMES)[None])[0]
        seen = judging.features(theia, clip)
        rows.append(reading.read(seen)[0].right(label))
        summaries.append(judging.summary(seen))
        bar.update()
    proof = judging.shares(rows)
    weak = [f"{name} {proof[name]['share']:.3f}" for name in WORDS if proof[name]["share"] < PROOF_SHARE]
    if weak:
        raise ValueError(
            f"the judge finds too few words of true videos ({', '.join(weak)}; {PROOF_SHARE} needed): "
            "train the extractor longer"
        )
    return torch.stack(summaries), proof


def short_video(generator: Generator, prompt: str, seed: int) -> Tensor:
    """The first CLIP_FRAMES frames, uint8 [F, 3, H, W]."""
    chunks = film(generator, generator.open(prompt, seed), judging.CLIP_FRAMES)
    return judging.to_rgb(np.concatenate([chunk.i420 for chunk in chunks]))


def drift(generator: Generator, theia: Theia, label: Label, config: EvaluateConfig, bar: tqdm) -> dict[str, Any]:
    """What becomes of one video: its first and its last minute, and its seams."""
    prompt = caption(label, random.Random(0))
    fps = generator.model.config.fps
    rows, sharp, colour = [], [], []
    at_seams: list[float] = []
    inside: list[float] = []
    clip: list[Tensor] = []
    last: Tensor | None = None
    hop = -1
    for chunk in film(generator, generator.open(prompt, config.seed), round(config.drift_minutes * 60 * fps)):
        rgb = judging.to_rgb(chunk.i420)
        if last is not None:
            change = judging.change_of_frames(torch.cat([last[None], rgb]))
            (at_seams if chunk.hop != hop else inside).append(float(change[0]))
            inside += change[1:].tolist()
        hop, last = chunk.hop, rgb[-1]
        clip += list(rgb)
        if len(clip) >= judging.CLIP_FRAMES:
            part = torch.stack(clip[: judging.CLIP_FRAMES])
            clip = clip[judging.CLIP_FRAMES :]
            rows.append(judging.judge(theia, part, label))
            sharp.append(judging.sharpness(part))
            colour.append(judging.mean_colour(part))
            bar.update()
    minute = max(1, round(60 * fps / judging.CLIP_FRAMES))
    ends = (slice(0, minute), slice(-minute, None))
    first, final = ({name: float(np.mean([r[name] for r in rows[end]])) for name in WORDS} for end in ends)
    colours = [np.mean(colour[end], axis=0) for end in ends]
    return {
        "prompt": prompt,
        "minutes": config.drift_minutes,
        "first_minute": first,
        "last_minute": final,
        "sharpness_drift": float(np.mean(sharp[ends[1]]) / np.mean(sharp[ends[0]]) - 1),
        "colour_drift": float(np.abs(colours[1] - colours[0]).max() / 255),
        "seam_ratio": float(np.mean(at_seams) / np.mean(inside)) if at_seams else float("nan"),
    }


@torch.no_grad()
def autoencoder(model: Model, labels: list[Label]) -> dict[str, float]:
    """Reconstruction of true videos, over the picture and in a box round the subject, in dB."""
    whole, box = [], []
    for row, label in enumerate(labels[:32]):
        spec, frames = world.sample([label], random.Random(row)), torch.arange(25)[None]
        video = pixels(world.draw(spec, frames)).to(model.device)
        with model.computing():
            latents = model.vae.encode(video, TinyVAEState())
            again = model.vae.decode(latents, TinyVAEState()).float().clamp(-1, 1)
        error = (again - video).square()
        whole.append(error.mean())
        for frame, (x, y) in enumerate(world.centres(spec, frames)[0].tolist()):
            left, top = int(max(x - BOX_PX / 2, 0)), int(max(y - BOX_PX / 2, 0))
            box.append(error[0, frame, :, top : top + BOX_PX, left : left + BOX_PX].mean())
    return {"psnr_db": psnr(torch.stack(whole)), "subject_box_psnr_db": psnr(torch.stack(box))}


@torch.no_grad()
def round_trip(model: Model, rng: random.Random) -> dict[str, Any]:
    """Words that the world's own features keep through tokens."""
    labels = [random_label(rng, held_out=True) for _ in range(ROUND_TRIPS)]
    rows = []
    for label in labels:
        frames = torch.arange(0, model.config.tokenizer.frames * 4, 4)[None]
        maps = teacher.maps(world.sample([label], rng), frames).to(model.device)
        with model.computing():
            again = model.tokenizer.decode(model.tokenizer.encode(maps)).float()
        rows.append(reading.read(again)[0].right(label))
    kept = judging.shares(rows)
    kept["mean"] = {"share": round(float(np.mean([kept[name]["share"] for name in WORDS])), 4), "n": len(rows)}
    return kept


def write_sheet(path: Path, clips: list[Tensor], labels: list[Label], rows: list[dict[str, bool]]) -> None:
    """Some frames of the first videos, one row each, with what was asked for; wrong words in red."""
    count = min(SHEET_ROWS, len(clips))
    height, width = clips[0].shape[-2:]
    sheet = Image.new("RGB", (len(SHEET_FRAMES) * width, count * (height + 14)), "white")
    draw = ImageDraw.Draw(sheet)
    for row in range(count):
        top = row * (height + 14)
        x = 2
        for word in WORDS:
            text = getattr(labels[row], word)
            draw.text((x, top + 1), text, fill="black" if rows[row][word] else "red")
            x += 8 * len(text) + 8
        for column, frame in enumerate(SHEET_FRAMES):
            picture = Image.fromarray(clips[row][frame].permute(1, 2, 0).numpy())
            sheet.paste(picture, (column * width, top + 14))
    write_atomically(path, lambda part: sheet.save(part, format="PNG"))


def write_figures(path: Path, figures: dict[str, Any]) -> None:
    """The figures as JSON, whole or not at all."""

    def write(part: Path) -> None:
        part.write_text(json.dumps(figures, indent=1) + "\n")

    write_atomically(path, write)


def _commit() -> str | None:
    """The commit of the running code; None outside a clone."""
    try:
        words = ["git", "describe", "--always", "--dirty"]
        described: str = subprocess.run(words, cwd=SHIPPED, capture_output=True, text=True, check=True).stdout
        return described.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def main(argv: Sequence[str]) -> int:
    """Arguments to figures; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m engine evaluate", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, metavar="F", help="file to write the figures to")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="contact sheet (default: beside the figures)")
    parser.add_argument("--captions", type=int, default=100, help="held-out captions, two hops of video each")
    parser.add_argument("--drift-minutes", type=float, default=10.0, help="length of each long video")
    parser.add_argument("--drift-videos", type=int, default=2, help="number of long videos")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--weights", type=Path, metavar="DIR", help="weights to use instead of the preset's own")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    use_cores()
    try:
        amount = EvaluateConfig(arguments.captions, arguments.drift_minutes, arguments.drift_videos, arguments.seed)
        config, device = preset(arguments.preset), pick_device(arguments.device)
        folder = arguments.weights or SHIPPED / config.name
        model = load(config, folder, device, pick_dtype(device))
        theia = Theia(config.theia).eval()
        load_component(folder, "theia", theia)
        figures = evaluate(model, theia, amount, arguments.sheet or arguments.json.with_suffix(".png"))
    except ValueError as error:
        log.error("evaluate: %s", error)
        return 2
    conditions = {
        "command": "python -m engine evaluate " + " ".join(argv),
        "device": device.type,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "commit": _commit(),
        "dtype": str(model.dtype),
        "torch": torch.__version__,
        "steps": config.steps,
        "date": time.strftime("%Y-%m-%d"),
    }
    write_figures(arguments.json, {"conditions": conditions, **figures})
    log.info("%s", json.dumps({name: value["share"] for name, value in figures["held_out"].items()}))
    return 0

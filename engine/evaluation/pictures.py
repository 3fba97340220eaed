"""`python -m engine evaluate --pictures N`: large pictures beside true ones, and beside small ones that are enlarged.

The same clips go through the autoencoder to large pictures, and to small ones as they were shown before there were
large ones: enlarged by Lanczos, each shown twice. Videos of the same captions are generated too: these have no true
counterpart, only true videos of their caption. Shapes: `F` frames, `H` x `W` pixels.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from engine.bench.report import table
from engine.evaluation import drift
from engine.live.generator import Generator
from engine.live.offline import generate_frames
from engine.loading.model import Model, with_small_pictures
from engine.perceptual.frames import shrunk
from engine.semantic import reading
from engine.semantic.theia import Theia
from engine.training.world import drawing, judge
from engine.training.world.captions import Label, caption, random_label

BOX_PX = 48  # side of the box around a subject, in small pixels
STEEP_SHARE = 0.1  # of the pixels of a picture or box are taken for its edges
CHUNKS = 2  # of a generated video

Row = dict[str, Any]


def evaluate_pictures(model: Model, theia: Theia, captions: int, seed: int) -> dict[str, Any]:
    """Figures of so many held-out captions, with a model that draws large pictures."""
    rng, generator = random.Random(f"pictures {seed}"), Generator(model)
    labels = [random_label(rng, held_out=True) for _ in range(captions)]
    again, made = [], []
    for number, label in enumerate(tqdm(labels, unit="video")):
        again.append(through_autoencoder(model, label, number))
        made.append(generated(generator, theia, label, caption(label, rng), seed + number))
    still = [row for row, label in zip(made, labels, strict=True) if (label.direction, label.camera) == STILL]
    return {
        "sharpness": _sharpness(again, "large", "true"),
        "sharpness_enlarged": _sharpness(again, "enlarged", "true"),
        "sharpness_generated": _sharpness(made, "large", "true"),
        "psnr": _decibels(again, "large"),
        "psnr_enlarged": _decibels(again, "enlarged"),
        "flicker": judge.mean([row["flicker"] for row in still]) if still else {},
        "true_flicker": judge.mean([row["true_flicker"] for row in still]) if still else {},
        **drift.seam_figures([row["changes"] for row in made]),
        "words": judge.share([right for row in made for right in row["right"].values()]),
    }


STILL = ("still", "fixed")  # direction and camera of scenes that stand


def through_autoencoder(model: Model, label: Label, seed: int) -> Row:
    """A true clip as large pictures, and as small ones that are enlarged: errors and sharpness of both."""
    config, small = model.config, with_small_pictures(model)
    spec = drawing.sample([label], random.Random(seed))
    numbers = torch.arange(config.first_chunk_frames)[None] / config.scale
    true = drawing.draw(spec, numbers, config.scale).to(model.device)
    with model.computing():
        latents = model.vae.encode(true.float() / 127.5 - 1, model.vae.new_state())
        large = _levels(model.vae.decode(latents, model.vae.new_state()))
        before = _levels(small.vae.decode(latents, small.vae.new_state()))
    true, middles = true[0].cpu(), drawing.centres(spec, numbers)[0]
    shown = {"true": true, "large": large, "enlarged": enlarged(before, config.scale)[: len(true)]}
    row: Row = {name: sharpness(video, middles, config.scale) for name, video in shown.items()}
    for name in ("large", "enlarged"):
        error = ((shown[name].float() - true.float()) / 127.5).square()
        row[f"{name} error"] = float(error.mean()), float(boxes(error, middles, config.scale).mean())
    return row


def generated(generator: Generator, theia: Theia, label: Label, prompt: str, seed: int) -> Row:
    """A generated video: its sharpness beside that of a true one, changes from frame to frame, and right words."""
    config = generator.model.config
    frames = config.first_chunk_frames + (CHUNKS - 1) * config.chunk_frames
    batches = generate_frames(generator, generator.open(prompt, seed), frames)
    video = torch.cat([judge.to_rgb(batch.i420) for batch in batches])
    spec, numbers = drawing.sample([label], random.Random(seed)), torch.arange(frames)[None] / config.scale
    true = drawing.draw(spec, numbers, config.scale)[0]
    # Words and places are read from what an extractor of small pictures sees.
    features = judge.features(theia, shrunk(video[:: config.scale], config.scale))
    middles, every = reading.path(features)[0][0], config.frames_per_latent
    return {
        "large": sharpness(video[::every], middles, config.scale),
        "true": sharpness(true[::every], drawing.centres(spec, numbers)[0, ::every], config.scale),
        "flicker": judge.flicker(video),
        "true_flicker": judge.flicker(true),
        "changes": drift.sort_changes(judge.change_of_frames(video).tolist(), config),
        "right": judge.right(reading.read(features)[0], label),
    }


def sharpness(video: Tensor, middles: Tensor, scale: int) -> tuple[float, float]:
    """Mean gradient of edges, in levels a pixel: of whole pictures [F, 3, H, W], and around middles [F, 2] small px."""
    return float(steepness(video).mean()), float(steepness(boxes(video, middles, scale)).mean())


def steepness(pictures: Tensor) -> Tensor:
    """Mean gradient, in levels a pixel, of the steepest STEEP_SHARE of each picture [F, 3, H, W]: [F]."""
    grey = pictures.float().mean(1)
    corner = grey[:, :-1, :-1]
    slope = torch.hypot(grey[:, :-1, 1:] - corner, grey[:, 1:, :-1] - corner).flatten(1)
    return slope.topk(int(STEEP_SHARE * slope.shape[1])).values.mean(1)


def boxes(video: Tensor, middles: Tensor, scale: int) -> Tensor:
    """Parts [F, 3, side, side] around middles [F, 2], in small px, of pictures [F, 3, H, W]."""
    side = BOX_PX * scale
    parts = []
    for picture, (x, y) in zip(video, (middles * scale).tolist(), strict=True):
        top, left = (
            int(min(max(middle - side / 2, 0), size - side))
            for middle, size in zip((y, x), picture.shape[-2:], strict=True)
        )
        parts.append(picture[:, top : top + side, left : left + side])
    return torch.stack(parts)


def enlarged(video: Tensor, scale: int) -> Tensor:
    """Small pictures uint8 [F, 3, H, W] as large ones [scale F, 3, scale H, scale W]: by Lanczos, each for `scale`."""
    size = scale * video.shape[-1], scale * video.shape[-2]
    pictures = (Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in video)
    large = np.stack([np.asarray(picture.resize(size, Image.Resampling.LANCZOS)) for picture in pictures])
    return torch.from_numpy(large).permute(0, 3, 1, 2).repeat_interleave(scale, dim=0)


def _levels(video: Tensor) -> Tensor:
    """[1, F, 3, H, W] in -1..1 -> uint8 [F, 3, H, W] on the host."""
    return ((video[0].float().clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)


def _sharpness(rows: Sequence[Row], name: str, beside: str) -> dict[str, judge.Figure]:
    """Ratios to that of `beside`, of whole pictures and of boxes."""
    return {
        what: judge.ratio([row[name][place] for row in rows], [row[beside][place] for row in rows])
        for place, what in enumerate(("picture", "subject_box"))
    }


def _decibels(rows: Sequence[Row], name: str) -> dict[str, judge.Figure]:
    return {
        what: judge.decibels([row[f"{name} error"][place] for row in rows])
        for place, what in enumerate(("picture", "subject_box"))
    }


def pictures_markdown(found: dict[str, Any]) -> str:
    """The figures as a table."""
    flat: list[tuple[str, dict[str, float]]] = []
    for name, value in found.items():
        parts = value if "subject_box" in value else {"": value}
        flat += [(f"{name} {part}".strip().replace("_", " "), figure) for part, figure in parts.items() if figure]
    rows = [
        (name, f"{next(iter(figure.values())):.3f} ± {figure['half_width_95']:.3f} (n = {figure['n']})")
        for name, figure in flat
        if figure["half_width_95"] is not None
    ]
    return table(["figure", "measured"], rows) + "\n"

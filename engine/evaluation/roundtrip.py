"""What is lost on the way through the autoencoder and through the tokens, on true videos of held-out captions."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch

from engine.loading.model import Model
from engine.training.stages.autoencoder import BOX_PX, pixels
from engine.training.world import drawing as world
from engine.training.world import judge as judging
from engine.training.world import reading, teacher
from engine.training.world.captions import Label, random_label

ROUND_TRIPS = 200


@torch.no_grad()
def autoencoder(model: Model, labels: list[Label], judged: Callable[[], object]) -> dict[str, float]:
    """Reconstruction of true videos, over the picture and in a box round the subject, in dB.

    `judged` is called after every video.
    """
    whole, box = [], []
    for row, label in enumerate(labels):
        spec, frames = world.sample([label], random.Random(row)), torch.arange(25)[None]
        video = pixels(world.draw(spec, frames)).to(model.device)
        with model.computing():
            latents = model.vae.encode(video, model.vae.new_state())
            again = model.vae.decode(latents, model.vae.new_state()).float().clamp(-1, 1)
        error = (again - video).square()[0]
        whole.append(float(error.mean()))
        near = []
        for frame, (x, y) in enumerate(world.centres(spec, frames)[0].tolist()):
            left, top = int(max(x - BOX_PX / 2, 0)), int(max(y - BOX_PX / 2, 0))
            near.append(error[frame, :, top : top + BOX_PX, left : left + BOX_PX].mean())
        box.append(float(torch.stack(near).mean()))
        judged()
    result = {"n": float(len(labels))}
    for name, errors in (("psnr", whole), ("subject_box_psnr", box)):
        figure = judging.decibels(errors)
        result |= {f"{name}_db": figure["db"], f"{name}_half_width_95": figure["half_width_95"]}
    return result


@torch.no_grad()
def tokenizer(model: Model, rng: random.Random) -> dict[str, Any]:
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
    kept["mean"] = judging.share([right for row in rows for right in row.values()])
    return kept

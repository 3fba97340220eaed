"""`python -m engine.training plans`: which words plans hold, before anything is rendered, and what tokens alone lose.

The first group for each held-out caption is read as it is planned: semantic features directly, latents of a preset that
plans those (`mini-arlon`) as the pictures that the autoencoder makes of them. The same is read of true videos through
tokens. Needs no renderer.
Shapes: `T` semantic frames, `D` feature channels, `h` x `w` their grid, `F` frames, `H` x `W` pixels.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor
from tqdm import tqdm

from engine.config import FRAMES_PER_LATENT, EngineConfig, preset
from engine.evaluation.evaluate import conditions, write_figures
from engine.live.plan_writer import PlanWriter
from engine.loading.model import Model, assemble, build, pick_dtype, use_cores, weights_folder
from engine.loading.weights import load_component
from engine.runtime.graphs import Graphs
from engine.semantic.theia import Theia
from engine.text.small_t5 import SmallT5, TextConfig, load_tokenizer
from engine.training.stages.autoencoder import pixels
from engine.training.world import drawing as world
from engine.training.world import judge as judging
from engine.training.world import reading, teacher
from engine.training.world.captions import caption, random_label

log = logging.getLogger(__name__)


class Reader:
    """Reads what features show, as the judge does."""

    def __init__(self, model: Model, theia: Theia) -> None:
        self.model, self.theia = model, theia
        self.semantic = model.config.tokenizer.feature_dim == teacher.FEATURE_DIM

    def features(self, clip: Tensor) -> Tensor:
        """uint8 [F, 3, H, W] -> [1, T, D, h, w] as the preset plans them."""
        if self.semantic:
            return judging.features(self.theia, clip)
        vae = self.model.vae
        return nnf.pixel_unshuffle(vae.encode(pixels(clip[None]), vae.new_state())[0], 2)[None].float()

    def read(self, features: Tensor) -> reading.Reading:
        """What features [1, T, D, h, w] show."""
        if not self.semantic:
            vae = self.model.vae
            video = vae.decode(nnf.pixel_shuffle(features[0], 2)[None], vae.new_state())[0].float()
            features = judging.features(self.theia, (video.clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8))
        return reading.read(features)[0]


@torch.no_grad()
def plans(model: Model, theia: Theia, captions: int, seed: int) -> dict[str, Any]:
    """Shares of right words in plans, and in true videos through tokens, of as many held-out `captions`."""
    reader, writer = Reader(model, theia), PlanWriter(model, model.config.sampling, Graphs.on(model.device))
    rng, frames = random.Random(f"plans {seed}"), model.config.tokenizer.frames
    planned, kept = [], []
    for number in tqdm(range(captions), unit="plan", desc="plans"):
        label = random_label(rng, held_out=True)
        with model.computing():
            plan = writer.begin(model.text.embed(caption(label, rng)).planner, seed + number, 0)
            while writer.end(plan) < frames:
                writer.write(plan)
            planned.append(reader.read(writer.features(plan, 0, frames).features).right(label))
            times = torch.arange(1 + (frames - 1) * FRAMES_PER_LATENT)[None]
            true = reader.features(world.draw(world.sample([label], rng), times)[0])
            kept.append(reader.read(model.tokenizer.decode(model.tokenizer.encode(true)).float()).right(label))
    return {name: _shares(rows) for name, rows in (("planned", planned), ("through_tokens", kept))}


def _shares(rows: list[dict[str, bool]]) -> dict[str, Any]:
    words = judging.share([right for row in rows for right in row.values()])
    return {**judging.shares(rows), "words": words, "all": judging.share([all(row.values()) for row in rows])}


def load_planning(config: EngineConfig, folder: Path) -> tuple[Model, Theia]:
    """A model on the CPU whose renderer has no weights, and the judge.

    Raises:
        ValueError: if the preset has no text encoder of its own, or weights are missing or of another model.
    """
    if not isinstance(config.text, TextConfig):
        raise ValueError(f"preset {config.name!r} does not know the drawn world: give a preset that was trained on it")
    modules, theia = build(config, "cpu"), Theia(config.theia).eval()
    text = SmallT5(config.text, load_tokenizer(folder)).requires_grad_(False).eval()
    for name, module in {**modules, "text": text, "theia": theia}.items():
        if name != "renderer":
            load_component(folder, name, module)
    device = torch.device("cpu")
    return assemble(config, text, modules, device, pick_dtype(device)), theia


def main(argv: Sequence[str]) -> int:
    """Arguments to a file; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m engine.training plans", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, metavar="F", help="file to write the figures to")
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--weights", metavar="DIR", help="weights to use instead of the preset's own")
    parser.add_argument("--captions", type=int, default=200, help="held-out captions, a group each")
    parser.add_argument("--guidance", type=float, help="of the planner's codes; 1 is none (the preset's own)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    use_cores()
    try:
        if arguments.captions < 1:
            raise ValueError(f"captions {arguments.captions} must be at least 1")
        config = preset(arguments.preset).guided(arguments.guidance)
        model, theia = load_planning(config, weights_folder(config, arguments.weights))
        figures = plans(model, theia, arguments.captions, arguments.seed)
        command = {"command": "python -m engine.training plans " + " ".join(argv)}
        write_figures(arguments.json, {"conditions": conditions(argv, model) | command, **figures})
    except (ValueError, OSError) as error:
        log.error("plans: %s", error)
        return 2
    log.info("%s", json.dumps({name: one["words"]["share"] for name, one in figures.items()}))
    return 0

"""`python -m engine.training STAGE`: trains one stage of a preset; the same command resumes it."""

from __future__ import annotations

import argparse
import logging
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.config import EngineConfig, preset
from engine.perceptual.tiny_vae import TinyVAE
from engine.semantic.tokenizer import SemanticTokenizer
from engine.text import SmallT5, load_tokenizer
from engine.training.autoencoder import AutoencoderStage
from engine.training.extractor import ExtractorStage
from engine.training.latents import through_tokens
from engine.training.planning import PlannerStage
from engine.training.render import RendererStage
from engine.training.run import RunConfig, Stage, train
from engine.training.tokens import TokenizerStage
from engine.training.words import make_tokenizer
from engine.weights import load_component


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a stage is trained with unless told otherwise; minutes are of one CPU core."""

    minutes: float
    batch: int
    lr: float
    muon_lr: float = 0.0


STAGES = {
    "autoencoder": Defaults(12, 6, 1.5e-3, 5e-3),
    "tokenizer": Defaults(40, 24, 2e-3),
    "extractor": Defaults(30, 32, 1e-3),
    "planner": Defaults(60, 16, 1.5e-3, 8e-3),
    "renderer": Defaults(240, 8, 1e-3, 3e-3),
}


def build(name: str, config: EngineConfig, arguments: argparse.Namespace) -> Stage:
    """The stage, with what it needs of earlier ones loaded from the weights folder.

    Raises:
        ValueError: if an earlier stage's weights are missing or do not fit.
    """
    weights, seed, device = arguments.weights, arguments.seed, arguments.device
    if name == "autoencoder":
        return AutoencoderStage(config.vae, seed, device, weights)
    if name == "tokenizer":
        return TokenizerStage(config.tokenizer, seed, device, weights)
    if name == "extractor":
        return ExtractorStage(config.theia, seed, device, weights)
    if name == "planner":
        tokenizer = SemanticTokenizer(config.tokenizer)
        load_component(weights, "tokenizer", tokenizer)
        text = SmallT5(config.text, make_tokenizer(weights))
        return PlannerStage(config, text, tokenizer, seed, device, weights)
    vae = TinyVAE(config.vae)
    load_component(weights, "vae", vae)
    if arguments.features == "teacher":
        return RendererStage(config, vae, None, None, seed, device, weights)
    tokenizer = SemanticTokenizer(config.tokenizer)
    load_component(weights, "tokenizer", tokenizer)
    text = SmallT5(config.text, load_tokenizer(weights)).to(device).eval()
    load_component(weights, "text", text)
    return RendererStage(config, vae, text.encode, through_tokens(tokenizer.to(device).eval()), seed, device, weights)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m engine.training",
        description="Train one stage of a preset. Stages need the weights of those before them in the weights folder: "
        "autoencoder, tokenizer and extractor stand alone; the planner needs the tokenizer; the renderer needs the "
        "autoencoder, and for --features tokens also tokenizer and planner. Run again to resume.",
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--minutes", type=float, help="training time, over all resumed calls")
    parser.add_argument("--batch", type=int, help="samples a step")
    parser.add_argument("--lr", type=float, help="peak learning rate of AdamW")
    parser.add_argument("--muon-lr", type=float, help="peak learning rate of Muon; 0 leaves everything to AdamW")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads; two one-thread runs beat one two-thread run")
    parser.add_argument("--folder", type=Path, help="checkpoints and metrics (default runs/PRESET/STAGE)")
    parser.add_argument("--weights", type=Path, help="where trained weights are read and written")
    parser.add_argument(
        "--features",
        choices=("teacher", "tokens"),
        default="tokens",
        help="renderer: first on the teacher's maps and without text, then on maps from tokens with text",
    )
    arguments = parser.parse_args(argv)
    runs = Path("runs") / arguments.preset
    arguments.folder = arguments.folder or runs / arguments.stage
    arguments.weights = arguments.weights or runs / "weights"
    return arguments


def main(argv: list[str]) -> int:
    arguments = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    random.seed(arguments.seed)
    defaults = STAGES[arguments.stage]
    try:
        config = RunConfig(
            folder=arguments.folder,
            minutes=arguments.minutes or defaults.minutes,
            batch=arguments.batch or defaults.batch,
            lr=arguments.lr or defaults.lr,
            muon_lr=defaults.muon_lr if arguments.muon_lr is None else arguments.muon_lr,
            seed=arguments.seed,
            device=arguments.device,
        )
        train(build(arguments.stage, preset(arguments.preset), arguments), config)
    except (ValueError, FloatingPointError, OSError) as error:
        logging.getLogger(__name__).error("%s", error)
        return 2
    except KeyboardInterrupt:
        logging.getLogger(__name__).error("stopped; run the same command again to resume")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

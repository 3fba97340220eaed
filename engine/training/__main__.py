"""`python -m engine.training STAGE`: trains one stage of a preset; the same command resumes it.

`dataset` writes the drawn world as a folder, `compare` measures quality against denoising steps.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

from engine.config import preset
from engine.loading.weights import write_description
from engine.training import sharding
from engine.training.build import build
from engine.training.run import RunConfig, read_checkpoint, train
from engine.training.stages.renderer_folder import PARTS


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
    "text": Defaults(12, 128, 2e-3),
    "planner": Defaults(60, 16, 1.5e-3, 8e-3),
    "renderer": Defaults(240, 8, 1e-3, 3e-3),
    "sketch": Defaults(60, 24, 1.5e-3, 4e-3),
    "decoder": Defaults(24, 6, 1e-3, 3e-3),
    "distill": Defaults(60, 8, 3e-4, 1e-3),
}
# Commands that train nothing, by the module that has their `main`.
MODULES = {
    "dataset": "engine.training.video_folder",
    "compare": "engine.training.compare",
    "curves": "engine.training.curves",
    "plans": "engine.training.plans",
    "gallery": "engine.training.gallery",
}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m engine.training",
        description="Train one stage of a preset, or write a dataset, or compare. Stages need the weights of those "
        "before them in the weights folder: autoencoder, tokenizer, extractor and text stand alone; the planner "
        "needs tokenizer and text; the renderer the autoencoder, and for --features tokens also tokenizer and planner; "
        "sketch likewise; decoder and distill need all. With --data, tokenizer, planner and renderer also need the "
        "extractor. Run again to resume.",
    )
    parser.add_argument("stage", choices=(*STAGES, *MODULES))
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
        "--warm-start", action="store_true", help="begin with what the weights folder has instead of new weights"
    )
    parser.add_argument(
        "--features",
        choices=("teacher", "tokens"),
        default="tokens",
        help="renderer: first on the teacher's maps and without text, then on maps from tokens with text",
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder of captioned videos instead of the drawn world"
    )
    parser.add_argument(
        "--part",
        choices=(*PARTS, "head"),
        default="both",
        help="renderer: with --data the base, then the control branch, or both; without it both, or the head alone",
    )
    parser.add_argument("--steps", type=int, default=2, help="distill: steps of the student for a hop")
    parser.add_argument("--teacher-steps", type=int, default=4, help="distill: the teacher's for each of them")
    parser.add_argument("--guidance", type=float, default=1.0, help="distill: the teacher's, which is folded in")
    parser.add_argument(
        "--student", type=Path, help="distill: folder of weights to write (default runs/PRESET/student)"
    )
    arguments = parser.parse_args(argv)
    runs = Path("runs") / arguments.preset
    arguments.folder = arguments.folder or runs / arguments.stage
    arguments.weights = arguments.weights or runs / "weights"
    arguments.student = arguments.student or runs / "student"
    return arguments


def signature(arguments: argparse.Namespace) -> str:
    """What is trained, in words; a checkpoint of something else is not resumed."""
    words = f"{arguments.stage} of {arguments.preset}"
    if arguments.stage == "distill":
        words += f", {arguments.steps} steps of {arguments.teacher_steps}, guidance {arguments.guidance:g}"
    if arguments.warm_start:
        words += ", from weights"
    if arguments.data is not None:
        words += f", part {arguments.part}, on {arguments.data.resolve()}"
    elif arguments.part != "both":
        words += f", part {arguments.part}"
    return words


def main(argv: Sequence[str]) -> int:
    if argv and argv[0] in MODULES:
        command: Callable[[Sequence[str]], int] = import_module(MODULES[argv[0]]).main
        return command(argv[1:])
    arguments = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    random.seed(arguments.seed)
    defaults = STAGES[arguments.stage]
    try:
        sharding.begin(arguments.device)
        config = RunConfig(
            folder=arguments.folder,
            minutes=arguments.minutes or defaults.minutes,
            batch=arguments.batch or defaults.batch,
            lr=arguments.lr or defaults.lr,
            muon_lr=defaults.muon_lr if arguments.muon_lr is None else arguments.muon_lr,
            seed=arguments.seed,
            device=arguments.device,
            signature=signature(arguments),
        )
        # Before the stage is made: a new text tokenizer would take the place of the one that a refused run used.
        read_checkpoint(config, mapped=True)
        stage = build(arguments.stage, preset(arguments.preset), arguments)
        written = arguments.student if arguments.stage == "distill" else arguments.weights
        if find_spec("matplotlib") is None:
            logging.getLogger(__name__).warning("no metrics.png without matplotlib: pip install -e '.[train]'")
        write_description(written, arguments.preset, "python -m engine.training")
        train(stage, config)
    except (ValueError, FloatingPointError, OSError) as error:
        logging.getLogger(__name__).error("%s", error)
        return 2
    except KeyboardInterrupt:
        logging.getLogger(__name__).error("stopped; run the same command again to resume")
        return 130
    finally:
        sharding.end()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

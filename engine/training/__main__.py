"""`python -m engine.training STAGE`: trains one stage of a preset; the same command resumes it.

`dataset` writes the drawn world as a folder of videos.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from engine.config import preset
from engine.loading.weights import write_description
from engine.training.build import STAGES, build
from engine.training.run import Run, RunConfig, read_checkpoint
from engine.training.setup import PARTS, StageSetup
from engine.training.sources.world import write_dataset

log = logging.getLogger(__name__)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m engine.training",
        description="Train one stage of a preset, or write a dataset. Stages need the weights of those before them in "
        "the weights folder: autoencoder, tokenizer, extractor and text stand alone; the planner needs tokenizer and "
        "text; the renderer autoencoder, text and, for --features tokens, tokenizer; sketch likewise; decoder and "
        "distill need the renderer too. With --data, tokenizer, planner and renderer also need the extractor, and the "
        "planner makes the text encoder. Run again to resume.",
    )
    commands = parser.add_subparsers(dest="stage", required=True)
    for name, defaults in STAGES.items():
        stage = commands.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        stage.add_argument("--preset", default="mini", help="whose sizes")
        stage.add_argument("--minutes", type=float, default=defaults.minutes, help="training time, all calls together")
        stage.add_argument("--batch", type=int, default=defaults.batch, help="samples a step")
        stage.add_argument("--lr", type=float, default=defaults.lr, help="peak learning rate of AdamW")
        muon = f"of Muon, else {defaults.muon_lr:g}, for landiff 0; 0 is AdamW alone"
        stage.add_argument("--muon-lr", type=float, help=muon)
        stage.add_argument("--seed", type=int, default=0, help="of weights and data")
        stage.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
        stage.add_argument("--threads", type=int, help="CPU threads; two one-thread runs beat one two-thread run")
        stage.add_argument("--folder", type=Path, help="checkpoints and metrics, runs/PRESET/STAGE if not given")
        stage.add_argument("--weights", type=Path, help="weights are read and written here, else runs/PRESET/weights")
        stage.add_argument("--data", type=Path, metavar="DIR", help="captioned videos instead of the drawn world")
        stage.add_argument("--warm-start", action="store_true", help="begin with what the weights folder has")
    renderer, distill = commands.choices["renderer"], commands.choices["distill"]
    features = "features before or after the tokenizer"
    renderer.add_argument("--features", choices=("teacher", "tokens"), default="tokens", help=features)
    renderer.add_argument("--part", choices=list(PARTS), default="both", help="what is trained; the rest stays")
    distill.add_argument("--steps", type=int, default=2, help="of the student for a chunk")
    distill.add_argument("--teacher-steps", type=int, default=4, help="of the teacher for each of them")
    distill.add_argument("--student", type=Path, help="folder of weights to write, runs/PRESET/student if not given")
    dataset = commands.add_parser("dataset", help="write the drawn world as a folder of captioned videos")
    dataset.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    dataset.add_argument("--clips", type=int, required=True, metavar="N", help="number of videos")
    dataset.add_argument("--frames", type=int, default=97, help="frames of each, 8 a second")
    dataset.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def signature(stage: str, setup: StageSetup) -> str:
    """The training in words; a checkpoint of another one is not resumed."""
    words = [f"{stage} of {setup.config.name}"]
    words += [f"{setup.steps} steps of {setup.teacher_steps}"] * (stage == "distill")
    words += ["from weights"] * setup.warm_start
    words += [f"part {setup.part}"] * (setup.part != "both")
    words += [] if setup.data is None else [f"on {setup.data.resolve()}"]
    return ", ".join(words)


def train_stage(stage: str, setup: StageSetup, config: RunConfig) -> None:
    """Trains, and writes weights and what they are of. Raises as `build` and `Run` do."""
    # Before the stage is made: a new text tokenizer would take the place of the one that a refused run used.
    read_checkpoint(config)
    made = build(stage, setup)
    written = setup.student if stage == "distill" and setup.student else setup.weights
    write_description(written, setup.config.name, "python -m engine.training")
    Run(made, config).train()


def main(argv: Sequence[str]) -> int:
    arguments: dict[str, Any] = vars(parse(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    def options(record: type) -> dict[str, Any]:
        return {field.name: arguments[field.name] for field in fields(record) if field.name in arguments}

    try:
        if (stage := arguments["stage"]) == "dataset":
            write_dataset(arguments["out"], arguments["clips"], arguments["frames"], arguments["seed"])
            return 0
        if arguments["threads"]:
            torch.set_num_threads(arguments["threads"])
        runs = Path("runs") / arguments["preset"]
        for name, place in (("folder", runs / stage), ("weights", runs / "weights"), ("student", runs / "student")):
            arguments[name] = arguments.get(name) or place
        config = preset(arguments["preset"])
        if arguments["muon_lr"] is None:
            arguments["muon_lr"] = 0.0 if config.published else STAGES[stage].muon_lr
        setup = StageSetup(config, **options(StageSetup))
        train_stage(stage, setup, RunConfig(**options(RunConfig), signature=signature(stage, setup)))
    except (ValueError, FloatingPointError, OSError) as error:
        log.error("%s", error)
        return 2
    except KeyboardInterrupt:
        log.error("stopped; run the same command again to resume")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

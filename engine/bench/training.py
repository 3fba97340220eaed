"""`python -m engine.bench.training --data DIR --json F`: what a training step of each stage on videos costs.

Steps are those of `python -m engine.training`, with optimiser and averaged weights, of modules with random weights in a
preset's sizes. Text embeddings are random too: published encoders are not trained. Nothing is kept but the figures.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from engine.bench.contender import RandomText, conditions_of
from engine.bench.rounds import WARM_UPS, Clock, Spread
from engine.config import EngineConfig, preset
from engine.loading.model import build, pick_device, pick_dtype
from engine.perceptual.cogvideox.vae import VAE
from engine.perceptual.mini.vae import TinyVAE
from engine.semantic.theia import Theia
from engine.semantic.tokenizer import SemanticTokenizer
from engine.training.folder import Footage
from engine.training.run import Run, RunConfig, Stage, write_atomically
from engine.training.stages.planner_folder import FootagePlanner
from engine.training.stages.renderer_folder import FootageRenderer, choose_part, start_control
from engine.training.stages.tokenizer_folder import FootageTokenizer

log = logging.getLogger(__name__)


def stages(config: EngineConfig, data: Path, device: torch.device) -> Iterator[tuple[str, Stage]]:
    """Every stage that learns from videos, one after the other, so that one at a time takes memory.

    Raises:
        ValueError: if the videos cannot be used.
    """
    nowhere = Path()  # nothing is exported
    # Not around a yield: what is measured must not run inside.
    with torch.device(device):
        footage = Footage(data, config, Theia(config.theia), str(device))
        text: Any = RandomText(config, device)
        tokenizer = SemanticTokenizer(config.tokenizer).requires_grad_(False).eval()
        vae = build(config, str(device))["vae"]
        assert isinstance(vae, TinyVAE | VAE)
        stage: Stage = FootageTokenizer(config, footage, 0, nowhere)
    yield "tokenizer", stage
    with torch.device(device):
        stage = FootagePlanner(config, footage, tokenizer, text, 0, nowhere)
    yield "planner", stage
    # The convolutional head of a small preset reads the condition, so that no part is trained without the other.
    parts = ("base", "control") if config.renderer.dit.head == "linear" else ("both",)
    with torch.device(device):
        stage = renderer = FootageRenderer(config, footage, vae, tokenizer, text, parts[0], 0, nowhere)
    for part in parts:
        if part == "control":
            start_control(renderer.renderer)
            choose_part(renderer.renderer, part)
        yield f"renderer, part {part}", stage


def measure(stage: Stage, steps: int, batch: int, device: torch.device) -> dict[str, Any]:
    """Seconds and the largest memory of `steps` steps after some that are not counted."""
    clock = Clock(device)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(stage, RunConfig(Path(folder), minutes=1, batch=batch, lr=1e-5, device=device.type))
        stage.module.train()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        losses: list[float] = []
        seconds = [
            clock.time(lambda: losses.append(run.one_step(0.0)["loss"]))
            for _ in tqdm(range(WARM_UPS + steps), unit="step")
        ]
    parameters = list(stage.module.parameters())
    for parameter in parameters:
        parameter.grad = None
    return {
        "parameters": sum(one.numel() for one in parameters),
        "trained": sum(one.numel() for one in parameters if one.requires_grad),
        "batch": batch,
        "step": asdict(Spread.of(seconds[WARM_UPS:])),
        "peak_gb": torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None,
        "losses": losses,
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(prog="python -m engine.bench.training", description=__doc__)
    options.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of captioned videos")
    options.add_argument("--json", type=Path, required=True, metavar="F", help="write the figures there")
    options.add_argument("--preset", default="landiff")
    options.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options.add_argument("--steps", type=int, default=5, help="that count, of each stage")
    options.add_argument("--batch", type=int, default=1, help="samples a step")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and writes; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = parser().parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    figures: dict[str, Any] = {}
    try:
        if min(arguments.steps, arguments.batch) < 1:
            raise ValueError(f"steps {arguments.steps} and batch {arguments.batch} must be at least 1")
        config, device = preset(arguments.preset), pick_device(arguments.device)
        for name, stage in stages(config, arguments.data, device):
            figures[name] = measure(stage, arguments.steps, arguments.batch, device)
            log.info("%s: %s", name, json.dumps(figures[name]))
            del stage
            gc.collect()
        facts = conditions_of("engine.bench.training", words, config, device, pick_dtype(device))
        # Also of a preset whose weights are shipped.
        report = {"conditions": facts | {"weights": "random"}, "stages": figures}
        text = json.dumps(report, indent=1, allow_nan=False) + "\n"
        write_atomically(arguments.json, lambda path: path.write_text(text, encoding="utf-8"))
    except (ValueError, FloatingPointError, OSError) as error:
        log.error("bench: %s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m engine.evaluation.plans`: plans of several tokens a pass beside those of one a pass, token for token.

Held-out captions are planned for a GOP, and for another one under a changed prompt. One token a pass is done twice: in
calls of the same shapes, whose guesses are all made wrong, and in calls of one place. Processors may add up the latter
in another order, and the last bits then decide where two tokens are equally likely.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from engine.bench.report import conditions
from engine.config import preset
from engine.live.plan_writer import PlanWriter
from engine.loading.model import Model, load
from engine.loading.options import place
from engine.runtime.graphs import Graphs
from engine.semantic.passes import default_places
from engine.training.world.captions import caption, random_label
from engine.wire.files import check_target, write_atomically


@dataclass(slots=True)
class PlannerRun:
    """One way to plan, and what it took."""

    writer: PlanWriter
    guesses_wrong: bool = False
    passes: int = 0
    seconds: float = 0.0
    tokens: list[Tensor] = field(default_factory=list)  # of each caption and GOP

    def plan(self, model: Model, prompts: Sequence[str], seed: int) -> None:
        """A GOP for each prompt, the second one behind a cut in the middle of the first."""
        begin_s, frames = time.perf_counter(), model.config.tokenizer.frames
        plan = self.writer.begin(model.text.embed(prompts[0]).planner, seed, 0)
        for number, prompt in enumerate(prompts):
            if number:
                self.writer.cut(plan, frames // 2, model.text.embed(prompt).planner)
            while not plan.gops[-1].closed:
                gop = plan.gops[-1]
                if self.guesses_wrong:
                    gop.tokens[:, gop.count :] = (gop.tokens[:, gop.count :] + 1) % model.config.planner.codebook_size
                self.writer.write(plan)
                self.passes += 1
            self.tokens.append(plan.gops[-1].tokens[0].clone())
        self.seconds += time.perf_counter() - begin_s


@torch.inference_mode()
def compare(model: Model, captions: int, pass_places: int) -> dict[str, Any]:
    """Tokens that differ, of how many; tokens and milliseconds of each way."""

    def writer(places: int) -> PlanWriter:
        return PlanWriter(model, model.config.sampling, Graphs.on(model.device), places)

    runs = {
        "several_a_pass": PlannerRun(writer(pass_places)),
        "one_a_pass": PlannerRun(writer(pass_places), guesses_wrong=True),
        "one_place_a_pass": PlannerRun(writer(1)),
    }
    rng = random.Random("plans")
    with model.computing():
        for seed in tqdm(range(captions), unit="caption"):
            prompts = [caption(random_label(rng, held_out=True), rng) for _ in range(2)]
            for run in runs.values():
                run.plan(model, prompts, seed)
    tokens = {name: torch.cat(run.tokens) for name, run in runs.items()}
    own = tokens["several_a_pass"]
    return {
        "pass_places": pass_places,
        "tokens": len(own),
        "differ": {name: int((own != other).sum()) for name, other in tokens.items() if other is not own},
        "tokens_a_pass": {name: len(own) / run.passes for name, run in runs.items()},
        "ms_a_token": {name: 1000 * run.seconds / len(own) for name, run in runs.items()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Compares and writes; returns the exit status: 1 if tokens differ in calls of the same shapes."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m engine.evaluation.plans", description=__doc__)
    parser.add_argument("--captions", type=int, default=1000, help="held-out captions (default: 1000)")
    parser.add_argument("--places", type=int, metavar="N", help="places of a pass (default: the device's)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    parser.add_argument("--json", type=Path, metavar="F.json", help="write the figures there")
    arguments = parser.parse_args(words)
    if arguments.captions < 1:
        parser.error(f"{arguments.captions} captions asked for, at least 1 is needed")
    if arguments.json:
        check_target(arguments.json, ".json")
    config = preset("mini")
    model = load(config, *place(config, None, arguments.device))
    report = {"conditions": conditions(" ".join(["python -m engine.evaluation.plans", *words]), "shipped", model)}
    report |= compare(model, arguments.captions, arguments.places or default_places(model.device))
    text = json.dumps(report, indent=1) + "\n"
    sys.stdout.write(text)
    if arguments.json:
        write_atomically(arguments.json, lambda part: part.write_text(text, encoding="utf-8"))
    return 1 if report["differ"]["one_a_pass"] else 0


if __name__ == "__main__":
    sys.exit(main())

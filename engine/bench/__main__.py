"""Measures the engine's stages, beside public libraries' models of the same sizes.

Correctness comes first: nothing is timed unless all of it is right. Then everything that is compared takes turns in
one process.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine.arguments import checked, steps
from engine.bench.against import against
from engine.bench.contenders import MS, STAGES, TOTAL, contenders, race, summary
from engine.bench.neighbour import neighbour
from engine.bench.peers import prove
from engine.bench.rates import PROMPT_TOKENS, rates
from engine.bench.report import commit_of_this_tree, conditions, processor, tables
from engine.config import FRAMES_PER_LATENT, EngineConfig, preset
from engine.live.generator import Generator
from engine.live.noise import normal
from engine.loading.model import Model, assemble, load
from engine.loading.modules import autocast_dtypes, build
from engine.loading.options import pick_device, pick_dtype, use_cores
from engine.loading.weights import SHIPPED
from engine.runtime.backends import choose as choose_attention
from engine.text.embedding import FixedText, TextEmbedding
from engine.wire.files import check_target, write_atomically
from engine.wire.priority import go_first

ROUNDS = 15


def bench(model: Model, rounds: int) -> dict[str, Any]:
    """Proofs, and then the figures; on a CPU, those beside a busy process, on CUDA those of every kernel too.

    Raises:
        ArithmeticError: something is wrong, so that its speed would mean nothing; it names all that is.
    """
    config, proofs, tokens = model.config, prove(model), model.config.tokenizer.gop_tokens
    timings = race(contenders(Generator(model)), rounds, model.device)
    ours, peers = timings["our_chunks"], {name: timings[name][TOTAL] for name in ("transformer", "decoder", "llama")}
    first_frames = 1 + (config.context_length - 1) * FRAMES_PER_LATENT
    step_ms, token_ms = ours["steps"] / config.steps, timings["our_tokens"][TOTAL] / tokens
    report: dict[str, Any] = {
        "proofs": proofs,
        "peers": {
            "renderer": _compare(ours[TOTAL] / config.chunk_s, peers["transformer"] / config.chunk_s),
            "decoder": _compare(ours["decode"] / config.chunk_frames, peers["decoder"] / first_frames),
            "planner": _compare(token_ms, peers["llama"] / tokens),
        },
        "stages_ms": {stage: summary(ours[stage]) for stage in STAGES},
        "rates": rates(model, summary(step_ms)["median"] / MS, summary(token_ms)["median"] / MS),
    }
    if model.device.type == "cpu":
        report["neighbour"] = neighbour(Generator(model))
    else:
        from kernels.bench import bench as bench_kernels

        report["kernels"] = bench_kernels(model.device)
    return report


def randomize(config: EngineConfig, device: torch.device, dtype: torch.dtype) -> Model:
    """A model for presets that come without weights. It reads one random embedding, so encoders are not measured."""
    torch.manual_seed(0)
    modules = build(config, str(device))
    for name, weight_dtype in autocast_dtypes(modules, dtype).items():
        component, _, rest = name.partition(".")
        weight = modules[component].get_parameter(rest)
        weight.data = weight.data.to(weight_dtype)
    choose_attention(device, dtype, config.attention_shape)
    dit, tokens = config.renderer.dit, min(PROMPT_TOKENS, config.text.planner_tokens)
    text = TextEmbedding(
        planner=normal((1, tokens, config.planner.text_dim), "bench planner text").to(device),
        renderer=normal((1, dit.text_length, dit.text_dim), "bench renderer text").to(device),
    )
    return assemble(config, FixedText(text), modules, device, dtype)


def _compare(ours_ms: npt.NDArray[np.float64], theirs_ms: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Milliseconds of both, and the ratio of each round's turns."""
    return {"ours_ms": summary(ours_ms), "theirs_ms": summary(theirs_ms), "times_better": summary(theirs_ms / ours_ms)}


def _against(arguments: argparse.Namespace, words: Sequence[str]) -> int:
    """This tree beside an older commit; raises as `against` does."""
    report = against(arguments.against, arguments.preset, arguments.steps or 0, arguments.rounds)
    command = " ".join(["python -m engine.bench", *words])
    report = {"command": command, "commit": commit_of_this_tree(), "device": processor()} | report
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    sys.stdout.write(text)
    if arguments.json:
        write_atomically(arguments.json, lambda part: part.write_text(text, encoding="utf-8"))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and writes; returns the exit status: 1 something is wrong, 2 bad arguments."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m engine.bench", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="F.json", help="write the figures there")
    parser.add_argument("--preset", default="mini", help="which model (default: mini)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    parser.add_argument(
        "--steps", type=checked(steps), metavar="N", help="denoising steps a chunk (default: the preset's own)"
    )
    parser.add_argument(
        "--against", metavar="COMMIT", help="instead of libraries: planning, whole chunks, start and memory beside it"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of each (default: {ROUNDS})")
    arguments = parser.parse_args(words)
    if arguments.rounds < 1:
        parser.error(f"{arguments.rounds} rounds asked for, at least 1 is needed")
    try:
        if arguments.json:
            check_target(arguments.json, ".json")
        config = preset(arguments.preset)
        # One window a chunk is compared; the second one, without context, has no peer.
        config = replace(config, steps=arguments.steps or config.steps, context_mix=())
        if arguments.against:
            return _against(arguments, words)
        go_first()
        use_cores()
        device, folder = pick_device(arguments.device), SHIPPED / config.name
        shipped, dtype = folder.is_dir(), pick_dtype(device)
        model = load(config, folder, device, dtype) if shipped else randomize(config, device, dtype)
        command = " ".join(["python -m engine.bench", *words])
        report = {"conditions": conditions(command, "shipped" if shipped else "random", model)}
        report |= bench(model, arguments.rounds)
        sys.stdout.write(tables(report))
        if arguments.json:
            text = json.dumps(report, indent=1, allow_nan=False) + "\n"
            write_atomically(arguments.json, lambda part: part.write_text(text, encoding="utf-8"))
    except (ArithmeticError, ValueError, OSError) as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1 if isinstance(error, ArithmeticError) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

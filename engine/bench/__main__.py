"""`python -m engine.bench --json F`: what the engine's stages cost, beside public libraries' models of the same sizes.

Correctness comes first: nothing is timed unless all of it is right. Then everything that is compared takes turns in
this one process. Last, one long video shows that its thousandth hop costs what an early one does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from engine.arguments import checked, picture
from engine.bench import plots, tables
from engine.bench.compiled import measure_compiled
from engine.bench.contender import conditions, subject
from engine.bench.growth import least_hops, measure_growth
from engine.bench.hop_cost import DECODE, STEPS, OwnHops, TheirDecoding, TheirHops
from engine.bench.peers import decoder_parameters
from engine.bench.plan_cost import OwnPlanning, TheirPlanning, codes_per_round
from engine.bench.proofs import checks
from engine.bench.rounds import TOTAL, Clock, Contender, Spread, copy_gb_s, matrix_gflop_s, quartiles, race
from engine.config import EngineConfig, preset
from engine.live.generator import Generator
from engine.loading.costs import stages
from engine.loading.model import Model, build, pick_device, pick_dtype, use_cores
from engine.perceptual.solver import solver_of
from engine.training.run import write_atomically

TRANSFORMER_BAR = 2.0  # times less compute than diffusers, `mini` on two CPU cores
PLANNER_BAR = 1.3  # times transformers' tokens per second, likewise

# What takes longest, and can be left out.
LONGEST = ("compiled", "kernels", "growth")

Timings = Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """How much is measured."""

    rounds: int = 15
    hops: int = 1000  # of the long video
    without: frozenset[str] = frozenset()  # some of LONGEST

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"{self.rounds} rounds asked for, at least 1 is needed")


def check_amount(amount: BenchConfig, config: EngineConfig) -> None:
    """Raises ValueError, before anything runs, where the long video would be too short."""
    if "growth" not in amount.without and amount.hops < least_hops(config):
        raise ValueError(
            f"{amount.hops} hops asked for, {least_hops(config)} are the fewest whose ends can be compared"
        )


def bench(model: Model, amount: BenchConfig) -> dict[str, Any]:
    """All figures.

    Raises:
        ArithmeticError: something is wrong, so that its speed would mean nothing; it names all that is.
    """
    found = checks(model)
    for check in found:
        sys.stdout.write(
            f"{'right' if check.right else 'WRONG'}  {check.what}: {check.error:.1e} of {check.allowed:.0e}\n"
        )
    wrong = [check.what for check in found if not check.right]
    if wrong:
        raise ArithmeticError(f"not measured, because these are wrong: {'; '.join(wrong)}")
    clock, generator = Clock(model.device), Generator(model)
    roofs = {"copy_gb_s": copy_gb_s(model.device), "matrix_gflop_s": matrix_gflop_s(model.device, model.dtype)}
    figures = _rendering(generator, amount.rounds, clock) | _planning(generator, amount.rounds, clock)
    longest: dict[str, Callable[[], Any]] = {
        "compiled": lambda: _compiled(generator, amount.rounds, clock),
        "kernels": lambda: _kernels(model),
        "growth": lambda: measure_growth(generator, amount.hops, clock),
    }
    return {
        "checks": [asdict(check) for check in found],
        "roofs": roofs,
        **figures,
        "shares": _shares(model, figures, roofs),
        **{name: measure() for name, measure in longest.items() if name not in amount.without},
    }


def paired(above: Iterable[float], below: Iterable[float]) -> dict[str, Any]:
    """The ratio of two things that took turns, round by round: its median and the borders of its middle half."""
    ratios = [one / other for one, other in zip(above, below, strict=True)]
    return {"median": Spread.of(ratios).median_s, "middle_half": list(quartiles(ratios))}


def _spreads(timings: Timings) -> dict[str, Any]:
    return {part: asdict(Spread.of(seconds)) for part, seconds in timings.items()}


def _rendering(generator: Generator, rounds: int, clock: Clock) -> dict[str, Any]:
    model, config = generator.model, generator.model.config
    theirs, decoding = TheirHops(model, generator.steps, clock), TheirDecoding(model, clock)
    contenders: dict[str, Contender] = {"ours": OwnHops(generator, clock), "theirs": theirs, "decoding": decoding}
    timings = race(contenders, rounds, "rendering and decoding")
    ours, whole = timings["ours"], timings["theirs"][TOTAL]
    frames = decoding.frames
    return {
        "transformer": {
            "layers": {"ours": [config.renderer.dit.layers, config.renderer.control_layers], "theirs": theirs.layers},
            "rows": theirs.rows,
            "steps": generator.steps,
            "video_s": config.hop_s,
            "ours": _spreads(ours),
            "theirs": _spreads(timings["theirs"]),
            "times_less": paired(whole, ours[TOTAL]),
            "bar": _bar(model, TRANSFORMER_BAR),
        },
        "autoencoder": {
            "parameters": {"ours": _decoder_size(config), "theirs": decoder_parameters(decoding.peer)},
            "frames": {"ours": config.hop_frames, "theirs": frames},
            "ours": _spreads({TOTAL: ours[DECODE]}),
            "theirs": _spreads(timings["decoding"]),
            "times_less": paired(
                [seconds / frames for seconds in timings["decoding"][TOTAL]],
                [seconds / config.hop_frames for seconds in ours[DECODE]],
            ),
        },
    }


def _decoder_size(config: EngineConfig) -> int:
    return decoder_parameters(build(config)["vae"])


def _planning(generator: Generator, rounds: int, clock: Clock) -> dict[str, Any]:
    model = generator.model
    contenders: dict[str, Contender] = {"ours": OwnPlanning(generator, clock), "theirs": TheirPlanning(model, clock)}
    timings = race(contenders, rounds, "planning")
    return {
        "planner": {
            "codes": codes_per_round(model),
            "rows": 1 + model.config.sampling.guided,
            "ours": _spreads(timings["ours"]),
            "theirs": _spreads(timings["theirs"]),
            "times_as_fast": paired(timings["theirs"][TOTAL], timings["ours"][TOTAL]),
            "bar": _bar(model, PLANNER_BAR),
        }
    }


def _bar(model: Model, bar: float) -> float | None:
    """Bars are set for `mini` on a CPU."""
    return bar if model.config.name == "mini" and model.device.type == "cpu" else None


def _shares(model: Model, figures: Mapping[str, Any], roofs: Mapping[str, float]) -> dict[str, Any]:
    """How much of the device's measured rates the two heavy loops reach."""
    costs = {stage.name: stage for stage in stages(model.config, build(model.config))}
    transformer, planner = figures["transformer"], figures["planner"]
    steps_s = transformer["ours"][STEPS]["median_s"] / transformer["steps"]
    token_s = planner["ours"][TOTAL]["median_s"] / planner["codes"]
    gflop_s = costs["denoising step"].flops / steps_s / 1e9
    gb_s = costs["plan a token"].traffic_bytes / token_s / 1e9
    return {
        "denoising_step": {"gflop_s": gflop_s, "of_matrix_rate": gflop_s / roofs["matrix_gflop_s"]},
        "planned_code": {"gb_s": gb_s, "of_copy": gb_s / roofs["copy_gb_s"]},
    }


def _compiled(generator: Generator, rounds: int, clock: Clock) -> dict[str, Any]:
    """Our two networks beside torch.compile of them, with the ratios of their turns."""
    entries = measure_compiled(generator.model, generator.steps, rounds, clock)
    for entry in entries.values():
        if entry["obstacle"] is None:
            entry["times_less"] = paired(entry["compiled_s"], entry["ours_s"])
    return entries


def _kernels(model: Model) -> dict[str, Any] | None:
    """Every kernel beside eager torch and torch.compile; None on a CPU, which runs the plain references."""
    if model.device.type != "cuda":
        return None
    from kernels.bench import bench as bench_kernels

    return bench_kernels(model.device)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    usual = BenchConfig()
    options = argparse.ArgumentParser(prog="python -m engine.bench", description=__doc__)
    options.add_argument("--json", type=Path, required=True, metavar="F", help="write the figures there")
    options.add_argument("--plots", type=checked(picture), metavar="DIR", help="draw them into that folder, as PNG")
    options.add_argument("--docs", type=Path, metavar="FILE.md", help="write the tables between the marks in that file")
    options.add_argument("--preset", default="mini", help="which model (default: mini)")
    options.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    options.add_argument("--steps", type=int, metavar="N", help="denoising steps a hop (the preset's own)")
    options.add_argument("--rounds", type=int, default=usual.rounds, help=f"turns of each (default: {usual.rounds})")
    options.add_argument("--hops", type=int, default=usual.hops, help=f"of the long video (default: {usual.hops})")
    options.add_argument("--without", nargs="+", choices=LONGEST, default=[], help="what to leave out")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and writes; returns the exit status: 1 something is wrong, 2 bad arguments."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser()
    arguments = options.parse_args(words)
    try:
        model, amount = _prepare(arguments)
    except ValueError as error:
        options.error(str(error))
    try:
        report = {"conditions": conditions(words, model)} | bench(model, amount)
    except ArithmeticError as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("bench: interrupted; nothing was written\n")
        return 130
    _write(arguments.json, report)
    if arguments.plots:
        plots.draw(report, arguments.plots)
    if arguments.docs:
        tables.insert(report, arguments.docs)
    sys.stdout.write(tables.tables(report))
    return 0


def _write(target: Path, report: dict[str, Any]) -> None:
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"

    def put(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    write_atomically(target, put)


def _prepare(arguments: argparse.Namespace) -> tuple[Model, BenchConfig]:
    """Everything that can be refused, before minutes of measuring. Raises ValueError."""
    if not arguments.json.parent.is_dir() or arguments.json.is_dir():
        raise ValueError(f"--json {arguments.json} must be a file in a folder that exists")
    if arguments.plots and not arguments.plots.is_dir():
        raise ValueError(f"--plots {arguments.plots} must be a folder that exists")
    if arguments.docs:
        tables.check_marks(arguments.docs, arguments.preset)
    use_cores()
    # What is compared is one window a hop; the second one of anchored hops has no peer.
    config = replace(preset(arguments.preset), anchors=())
    if arguments.steps is not None:
        config = replace(config, steps=arguments.steps)
    amount = BenchConfig(arguments.rounds, arguments.hops, frozenset(arguments.without))
    check_amount(amount, config)
    # Refuses impossible numbers of steps.
    solver_of(config.schedule, config.steps)
    device = pick_device(arguments.device)
    return subject(config, device, pick_dtype(device)), amount


if __name__ == "__main__":
    sys.exit(main())

"""`python -m engine.bench.ranks MEASURED.json`: what several H200s should make of the published model. Computed.

Times of one GPU are measured ones; what several do with them is arithmetic: products and attention are divided among
ranks as `engine.ranks` does it, and what they exchange goes over links of a stated bandwidth. Nothing overlaps within a
step, and the parts of a product are taken to be as fast, for their size, as the whole.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.config import EngineConfig, preset
from engine.perceptual.solver import solver_of
from engine.ranks.exchange import shares
from engine.ranks.layout import PIPELINE_RANKS, RankLayout

GPUS, STEPS = (1, 2, 4, 8), (50, 20, 12)
PRESET = "landiff"
_BENCH_STEPS = 2  # denoising steps of the measured chunk, of two rows each
_BENCH_TOKENS = (700, 444, 700)  # that its rounds planned
_BYTES = 2  # of an exchanged number, bfloat16
_EXCHANGES = 2  # a layer: queries, keys and values to heads, and attention's answer back to tokens
_PARTS = 4  # numbers a token and channel that a layer exchanges: query, key, value, answer


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds that the stages of a chunk take on one GPU."""

    token_s: float  # of the plan
    context_s: float  # before the first step: condition and context
    step_s: float  # both rows of guidance
    decode_s: float

    @classmethod
    def read(cls, report: dict[str, Any]) -> Measured:
        """From a report as `docs/results/h200.json`. Raises ValueError if it has no such figures."""
        try:
            ours = report["rendering"]["seconds_by_round"]["ours"]
            tokens = [seconds / count for seconds, count in zip(ours["plan"], _BENCH_TOKENS, strict=True)]
            median = statistics.median
            steps = median(ours["steps"]) / _BENCH_STEPS
            return cls(median(tokens), median(ours["prompt half"]), steps, median(ours["decode"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this report has no times of a chunk's stages ({error!r}): give h200.json") from error


@dataclass(frozen=True, slots=True)
class Interconnect:
    """How ranks are connected. NVLink of an H200: 450 GB/s each way, of which three quarters are counted."""

    gb_s: float = 0.75 * 450
    exchange_s: float = 30e-6  # to begin an exchange
    call_s: float = 1e-3  # until all ranks know what to compute


def linear_flops(config: EngineConfig) -> float:
    """FLOPs of a denoising step's matrix products, a row of guidance, in the layers of both networks."""
    dit, control = config.renderer.dit, config.renderer.control_layers
    weights = (4 + 2 * dit.mlp_ratio) * dit.hidden**2
    return 2.0 * _tokens(config) * ((dit.layers + control) * weights + control * dit.hidden**2)


def attention_flops(config: EngineConfig) -> float:
    """FLOPs of a denoising step's attention, a row of guidance."""
    return 4.0 * _tokens(config) ** 2 * config.renderer.dit.hidden * _layers(config)


def step_s(config: EngineConfig, layout: RankLayout, rows: int, measured: Measured, link: Interconnect) -> float:
    """Seconds of a denoising step of `rows` rows of guidance."""
    own = rows if layout.rows == 1 else 1  # rows that a rank computes
    linear, attention = linear_flops(config), attention_flops(config)
    tokens, heads = _tokens(config), config.renderer.dit.heads
    # Everything beside attention grows with the tokens, as products do.
    most_tokens, most_heads = (max(shares(count, layout.context)) / count for count in (tokens, heads))
    work = (linear * most_tokens + attention * most_heads) / (2 * (linear + attention)) * own
    return measured.step_s * work + _exchanged_s(config, layout, own, link)


def _exchanged_s(config: EngineConfig, layout: RankLayout, rows: int, link: Interconnect) -> float:
    """Seconds in which ranks wait for each other's numbers in a step; each computes so many rows."""
    if len(layout.rendering) == 1:
        return 0.0
    context, values = layout.context, _tokens(config) * config.renderer.dit.hidden * rows
    sent = _BYTES * values * (context - 1) / context * (_PARTS * _layers(config) / context + 1)
    begun = (_EXCHANGES * _layers(config) + 1) * (context > 1)
    return link.call_s + begun * link.exchange_s + sent / (link.gb_s * 1e9)


def chunk_s(config: EngineConfig, layout: RankLayout, steps: int, measured: Measured, link: Interconnect) -> float:
    """Seconds from one chunk to the next, where each has its average share of the plan."""
    tokens = config.tokenizer.offsets[-1] / config.tokenizer.frames * config.chunk_length
    plan = measured.token_s * tokens
    solver = solver_of(config.schedule, steps)
    rows = [2 if solver.guidance(index) != 1.0 else 1 for index in range(steps)]
    render = measured.context_s + sum(step_s(config, layout, count, measured, link) for count in rows)
    return max(plan, render, measured.decode_s) if layout.pipeline else plan + render + measured.decode_s


def table(measured: Measured, link: Interconnect) -> str:
    """Realtime factors as a Markdown table: seconds of video made in a second."""
    config = preset(PRESET)
    lines = ["| H200s | what they do | " + " | ".join(f"{steps} steps" for steps in STEPS) + " |"]
    lines.append("|---|---|" + "---|" * len(STEPS))
    for gpus in GPUS:
        for pipeline in (False, True) if gpus >= PIPELINE_RANKS else (False,):
            layout = RankLayout.of(config, gpus, pipeline)
            factors = [config.chunk_s / chunk_s(config, layout, steps, measured, link) for steps in STEPS]
            lines.append(f"| {gpus} | {_words(layout)} | " + " | ".join(f"{factor:.2f}" for factor in factors) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Raises ValueError if the report has no such figures."""
    parser = argparse.ArgumentParser(prog="python -m engine.bench.ranks", description="Computes, measures nothing.")
    parser.add_argument("measured", type=Path, metavar="MEASURED.json", help="docs/results/h200.json")
    link = Interconnect()
    told = f"each way between two GPUs (default: {link.gb_s:g})"
    parser.add_argument("--gb-s", type=float, default=link.gb_s, metavar="N", help=told)
    arguments = parser.parse_args(argv)
    measured = Measured.read(json.loads(arguments.measured.read_text(encoding="utf-8")))
    sys.stdout.write(table(measured, Interconnect(arguments.gb_s)) + "\n")
    return 0


def _words(layout: RankLayout) -> str:
    if layout.ranks == 1:
        return "everything"
    grid = f"{layout.rows} rows x {layout.context} render"
    return f"one decodes, one plans, {grid}" if layout.pipeline else f"{grid}, one of them plans and decodes"


def _tokens(config: EngineConfig) -> int:
    """Tokens of a whole window, text and all."""
    dit = config.renderer.dit
    return dit.text_length + dit.frames * dit.frame_tokens


def _layers(config: EngineConfig) -> int:
    return config.renderer.dit.layers + config.renderer.control_layers


if __name__ == "__main__":
    sys.exit(main())

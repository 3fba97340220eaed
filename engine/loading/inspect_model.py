"""`inspect --preset P --json F`: what a preset's weights are, and what a second of its video costs at least."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.config import PRESETS, EngineConfig, preset
from engine.loading.costs import Stage, group_s, hop_s, stages
from engine.loading.filling import shapes_of
from engine.loading.memory import Needs
from engine.loading.model import build, products
from engine.loading.published_files import FILES
from engine.text.small_t5 import TextConfig, text_encoder

# An H100 with dense bf16.
_TFLOPS = 989.0
_GB_S = 3350.0
_FP32_BYTES = 4

Listing = dict[str, dict[str, list[int]]]


def modules_of(config: EngineConfig) -> dict[str, nn.Module]:
    """The preset's modules by component name, on the meta device; published text encoders are not part of them."""
    if not isinstance(config.text, TextConfig):
        return build(config)
    with torch.device("meta"):
        text = nn.ModuleDict({"encoder": text_encoder(config.text)})
    return {"text": text, **build(config)}


def listing(config: EngineConfig, modules: Mapping[str, nn.Module]) -> Listing:
    """Every tensor's shape under its published name, by component as the files of the release are named.

    `mini` is published by this project: its components and names are our own.
    """
    if config.published:
        shapes = shapes_of(modules)
        return {
            file.name: {key: shapes[target] for key, target in sorted(file.keys(modules).items())} for file in FILES
        }
    return {
        name: {key: list(value.shape) for key, value in module.state_dict().items()} for name, module in modules.items()
    }


def describe(tensors: Mapping[str, list[int]], keys: bool) -> dict[str, Any]:
    """One component as the JSON has it; bytes are those of float32."""
    count = sum(_count(shape) for shape in tensors.values())
    facts: dict[str, Any] = {"parameters": count, "tensors": len(tensors), "bytes": count * _FP32_BYTES}
    return facts | {"keys": dict(tensors)} if keys else facts


def _count(shape: list[int]) -> int:
    return torch.Size(shape).numel()


def component_table(components: Listing) -> str:
    """Sizes and memory of every component."""
    width = max(len(name) for name in components)
    lines = [f"{'component':{width}}  {'tensors':>8}{'parameters':>15}{'fp32 GB':>10}{'bf16 GB':>10}{'fp8 GB':>10}"]
    for name, tensors in components.items():
        count = sum(_count(shape) for shape in tensors.values())
        sizes = "".join(f"{count * size / 1e9:10.3f}" for size in (_FP32_BYTES, 2, 1))
        lines.append(f"{name:{width}}  {len(tensors):8}{count:15,}{sizes}")
    return "\n".join(lines)


def cost_table(costs: Sequence[Stage], spans: Mapping[str, float], tflops: float, gb_s: float) -> str:
    """FLOPs, bytes and the least time of every stage for spans of video given in seconds."""
    lines = [f"lower bounds for {tflops:g} TFLOP/s and {gb_s:g} GB/s, weights in bf16"]
    for title, video_s in spans.items():
        lines.append(f"\n{title} ({video_s:g} s of video)")
        lines.append(f"  {'stage':22}{'TFLOP':>14}{'GB moved':>12}{'at least ms':>14}")
        for stage in costs:
            flops, traffic = stage.per(video_s)
            bound = stage.bound_ms(video_s, tflops, gb_s)
            lines.append(f"  {stage.name:22}{flops / 1e12:14.4f}{traffic / 1e9:12.3f}{bound:14.2f}")
        total = sum(stage.bound_ms(video_s, tflops, gb_s) for stage in costs)
        lines.append(f"  {'all':22}{'':26}{total:14.2f}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Writes the JSON and prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m engine inspect", description=__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="mini", help="which model (default: mini)")
    parser.add_argument("--json", type=Path, metavar="F", help="file to write the components to")
    parser.add_argument("--keys", action="store_true", help="with every published name and its shape, in the file")
    parser.add_argument("--tflops", type=_positive, default=_TFLOPS, help=f"of the device (default: {_TFLOPS:g})")
    parser.add_argument(
        "--memory", type=_positive, action="append", default=[], metavar="GB", help="show the plan for so much memory"
    )
    parser.add_argument("--gb-s", type=_positive, default=_GB_S, help=f"of its memory (default: {_GB_S:g})")
    arguments = parser.parse_args(argv)
    config = preset(arguments.preset)
    modules = modules_of(config)
    components = listing(config, modules)
    if arguments.json is not None:
        facts = {name: describe(tensors, arguments.keys) for name, tensors in components.items()}
        try:
            arguments.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            sys.stderr.write(f"inspect: {arguments.json} cannot be written: {error}\n")
            return 2
    spans = {"a group": group_s(config), "a hop": hop_s(config), "a second": 1.0}
    table = cost_table(stages(config, modules), spans, arguments.tflops, arguments.gb_s)
    sys.stdout.write(f"{component_table(components)}\n\n{table}\n")
    try:
        if arguments.memory:
            needs = Needs.of(config, modules, products(modules, torch.bfloat16))
            for memory_gb in arguments.memory:
                sys.stdout.write(f"\n{needs.plan(round(memory_gb * 1e9)).table()}\n")
    except ValueError as error:
        sys.stderr.write(f"inspect: {error}\n")
        return 2
    return 0


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number

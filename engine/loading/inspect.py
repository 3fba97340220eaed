"""`inspect --preset P [--json F]`: parameters and bytes of a preset's components."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from engine.config import PRESETS, EngineConfig, preset
from engine.loading.filling import shapes_of
from engine.loading.modules import build
from engine.loading.published_files import FILES
from engine.text.small_t5 import SmallT5Config, text_encoder
from engine.wire.files import check_target, write_atomically

_BYTES = {"fp32": 4, "bf16": 2, "fp8": 1}  # per number

Shapes = dict[str, list[int]]


def components(config: EngineConfig) -> dict[str, Shapes]:
    """Shape of every tensor under its published name, by component: the release's files, or `mini`'s own components.

    The published text encoders are not part of it.
    """
    modules: dict[str, nn.Module] = build(config)
    if config.published:
        shapes = shapes_of(modules)
        return {
            file.name: {key: shapes[target] for key, target in sorted(file.keys(modules).items())} for file in FILES
        }
    if isinstance(config.text, SmallT5Config):
        with torch.device("meta"):
            modules = {"text": nn.ModuleDict({"encoder": text_encoder(config.text)}), **modules}
    return {name: {key: list(value.shape) for key, value in modules[name].state_dict().items()} for name in modules}


def parameters(shapes: Shapes) -> int:
    """Numbers in a component."""
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def table(listing: Mapping[str, Shapes]) -> str:
    """Tensors, parameters and GB (10^9 bytes) of every component."""
    width = max(map(len, listing))
    kinds = "".join(f"{kind + ' GB':>10}" for kind in _BYTES)
    lines = [f"{'component':{width}}  {'tensors':>8}{'parameters':>15}{kinds}"]
    for name, shapes in listing.items():
        count = parameters(shapes)
        sizes = "".join(f"{count * size / 1e9:10.3f}" for size in _BYTES.values())
        lines.append(f"{name:{width}}  {len(shapes):8}{count:15,}{sizes}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Runs the command. Raises ValueError or OSError if the JSON cannot be written."""
    parser = argparse.ArgumentParser(prog="python -m engine inspect", description=__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="mini", help="which model (default: mini)")
    parser.add_argument("--json", type=Path, metavar="F", help="file to write every name and its shape to")
    arguments = parser.parse_args(argv)
    if arguments.json is not None:
        check_target(arguments.json)
    listing = components(preset(arguments.preset))
    if arguments.json is not None:
        facts = {name: {"parameters": parameters(shapes), "shapes": shapes} for name, shapes in listing.items()}
        text = json.dumps(facts, indent=1) + "\n"
        write_atomically(arguments.json, lambda part: part.write_text(text, encoding="utf-8"))
    sys.stdout.write(f"{table(listing)}\n")
    return 0

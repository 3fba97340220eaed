"""`python -m engine.bench.fp8_report --json F`: what products in 8 bits cost each layer of planner and renderer.

Each layer alone is compared with its exact product, on the inputs that two hops of a video bring; nothing that comes
after it is changed. Without a GPU that multiplies in 8 bits the same numbers are multiplied in float32.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.config import preset
from engine.live.generator import Generator
from engine.live.offline import film
from engine.loading.model import Model, load, pick_device, pick_dtype, use_cores, weights_folder
from engine.runtime.fp8_products import layer_errors
from engine.runtime.graphs import Graphs
from engine.training.run import write_atomically


def report(model: Model, prompt: str) -> dict[str, dict[str, float]]:
    """Relative errors by component and layer, worst call."""
    # Graphs would hide the calls.
    generator = Generator(model, graphs=lambda device: Graphs(None))
    frames = model.config.first_hop_frames + model.config.hop_frames
    errors: dict[str, dict[str, float]] = {}

    def run() -> None:
        for _ in film(generator, generator.open(prompt, 0), frames):
            pass

    for name, module in (("planner", model.planner), ("renderer", model.renderer)):
        errors[name] = layer_errors(module, run)
    return errors


def main(argv: Sequence[str] | None = None) -> int:
    """Arguments to figures; returns the exit status, 2 for a mistake of the caller."""
    options = argparse.ArgumentParser(prog="python -m engine.bench.fp8_report", description=__doc__)
    options.add_argument("--json", type=Path, required=True, metavar="F", help="file to write the errors to")
    options.add_argument("--prompt", default="a red ball moves slowly to the right over green hills")
    options.add_argument("--preset", default="mini", help="which model (default: mini)")
    options.add_argument("--weights", metavar="DIR|HUB_ID", help="weights to use instead of the preset's own")
    options.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    arguments = options.parse_args(argv)
    try:
        use_cores()
        config, device = preset(arguments.preset), pick_device(arguments.device)
        model = load(config, weights_folder(config, arguments.weights), device, pick_dtype(device))
    except ValueError as error:
        sys.stderr.write(f"fp8_report: {error}\n")
        return 2
    errors = report(model, arguments.prompt)
    text = json.dumps(errors, indent=1, allow_nan=False) + "\n"

    def put(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    write_atomically(arguments.json, put)
    for name, layers in errors.items():
        worst = max(layers, key=layers.__getitem__)
        mean = sum(layers.values()) / len(layers)
        sys.stdout.write(f"{name}: {len(layers)} layers, mean error {mean:.4f}, worst {layers[worst]:.4f} in {worst}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m engine.bench.loading --json F`: converting and loading weights against copying the same files.

A published folder is made of random numbers, every tensor in its full shape but with fewer layers, as many as fit the
size asked for. Each round then copies it, converts it and loads it in both layouts, in turn, every time from files that
are not in the page cache, and with what was written flushed to the disk before the clock stops.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from engine.bench.contender import commit, processor
from engine.config import EngineConfig, preset
from engine.loading.convert import convert
from engine.loading.filling import shapes_of
from engine.loading.model import build, products
from engine.loading.published_files import FILES
from engine.loading.tensor_files import write_safetensors
from engine.loading.weights import load_weights
from engine.training.run import write_atomically

BAR = 0.6  # of the rate of copying
_NUMBER_BYTES = 4  # the release's modules are float32
_LAYERS = 24  # of the planner, at full size
_NOISE = 1 << 20  # random numbers, of which all tensors are tiled
CPU = torch.device("cpu")


def config_of(size_bytes: int) -> EngineConfig:
    """Preset `landiff` with as many layers as `size_bytes` hold.

    Raises:
        ValueError: if that is less than one layer of each network.
    """
    least, next_bytes = folder_bytes(_with_layers(1)), folder_bytes(_with_layers(2))
    if least > size_bytes:
        raise ValueError(f"{size_bytes / 1e9:g} GB are too few: one layer of each network takes {least / 1e9:.2f} GB")
    return _with_layers(min(_LAYERS, 1 + (size_bytes - least) // (next_bytes - least)))


def _with_layers(layers: int) -> EngineConfig:
    full = preset("landiff")
    dit = replace(full.renderer.dit, layers=layers)
    renderer = replace(full.renderer, dit=dit, control_layers=min(layers, full.renderer.control_layers))
    return replace(full, planner=replace(full.planner, layers=layers), renderer=renderer)


def folder_bytes(config: EngineConfig) -> int:
    """Bytes of a published folder's tensors."""
    modules = build(config)
    counts = {name: torch.Size(shape).numel() for name, shape in shapes_of(modules).items()}
    return _NUMBER_BYTES * sum(counts[target] for file in FILES for target in file.keys(modules).values())


def make_published(folder: Path, config: EngineConfig) -> None:
    """Writes a published folder of random numbers."""
    modules = build(config)
    shapes = shapes_of(modules)
    noise = torch.randn(_NOISE)
    for file in FILES:
        path = folder / file.name
        path.parent.mkdir(parents=True)
        tensors = {key: _tiled(noise, shapes[target]) for key, target in file.keys(modules).items()}
        if file.inner is None:
            write_safetensors(path, tensors)
        else:
            torch.save({file.inner: tensors}, path)
    flush(folder)


def _tiled(noise: Tensor, shape: Sequence[int]) -> Tensor:
    tensor = torch.empty(tuple(shape))
    for part in tensor.view(-1).split(len(noise)):
        part.copy_(noise[: len(part)])
    return tensor


def flush(folder: Path) -> None:
    """Waits until all files of a folder are on the disk."""
    for path in _files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())


def forget(folder: Path) -> None:
    """Takes all files of a folder, which are on the disk, out of the page cache."""
    for path in _files(folder):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def size_of(folder: Path) -> int:
    """Bytes of all files of a folder."""
    return sum(path.stat().st_size for path in _files(folder))


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def measure(folder: Path, config: EngineConfig, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round by what was done; leaves the published and the converted folder in `folder`."""
    published, converted, made = folder / "published", folder / "converted", folder / "made"
    make_published(published, config)
    convert(published, converted, config)
    flush(converted)
    work: dict[str, tuple[Path, Callable[[], object]]] = {
        "copy": (published, lambda: shutil.copytree(published, made)),
        "convert": (published, lambda: convert(published, made, config)),
        "load published": (published, lambda: _load(published, config)),
        "load converted": (converted, lambda: _load(converted, config)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    names = list(work)
    with tqdm(total=rounds * len(names), desc="rounds", unit="run") as bar:
        for number in range(rounds):
            # Another one begins each time, so that none always follows the same.
            for name in names[number % len(names) :] + names[: number % len(names)]:
                source, run = work[name]
                forget(source)
                begin = time.perf_counter()
                run()
                flush(made)
                seconds[name].append(time.perf_counter() - begin)
                shutil.rmtree(made, ignore_errors=True)
                bar.update()
    return seconds


def _load(folder: Path, config: EngineConfig) -> None:
    modules = build(config)
    load_weights(folder, modules, config.name, CPU, products(modules, torch.bfloat16))


def figures(seconds: dict[str, list[float]], sizes: dict[str, int]) -> dict[str, Any]:
    """Rates, and their shares of the rate of copying in the same round.

    Args:
        seconds: of each round, by what was done.
        sizes: bytes that it reads and uses; the published tokenizer file is copied, but overridden when it is loaded.
    """
    rates = {name: [sizes[name] / 1e9 / took for took in values] for name, values in seconds.items()}
    facts: dict[str, Any] = {}
    for name, values in rates.items():
        facts[name] = {"gb_s": _spread(values)}
        if name != "copy":
            facts[name]["share_of_copy"] = _spread([a / b for a, b in zip(values, rates["copy"], strict=True)])
    return facts


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints a line for each figure and writes the JSON; 1 if the bar is missed, 2 for a caller's mistake."""
    parser = argparse.ArgumentParser(prog="python -m engine.bench.loading", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, metavar="F", help="file to write")
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of the files (default: 4)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured (default: 5)")
    parser.add_argument("--folder", type=Path, help="where to work, on the disk to measure; takes three times the size")
    arguments = parser.parse_args(argv)
    try:
        if arguments.rounds < 1:
            raise ValueError(f"{arguments.rounds} rounds asked for, at least 1 is needed")
        config = config_of(round(arguments.gigabytes * 1e9))
        with tempfile.TemporaryDirectory(dir=arguments.folder) as made:
            folder = Path(made)
            seconds = measure(folder, config, arguments.rounds)
            sizes = {
                part: sum(path.stat().st_size for path in _files(folder / part)) for part in ("published", "converted")
            }
    except (ValueError, OSError) as error:
        sys.stderr.write(f"bench_loading: {error}\n")
        return 2
    by_work = {name: sizes["published" if name == "copy" else "converted"] for name in seconds}
    facts = figures(seconds, by_work)
    reached = all(row["share_of_copy"]["median"] >= BAR for name, row in facts.items() if name != "copy")
    conditions = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit(), "bytes": sizes,
        "rounds": arguments.rounds, "planner_layers": config.planner.layers, "processor": processor(),
        "cores": os.cpu_count(), "threads": torch.get_num_threads(), "load_average": os.getloadavg(),
        "torch": torch.__version__, "page_cache": "source files not in it", "written": "flushed to the disk",
    }  # fmt: skip
    for work, row in facts.items():
        share = row.get("share_of_copy")
        sys.stdout.write(
            f"{work:16}{row['gb_s']['median']:8.3f} GB/s ({row['gb_s']['least']:.3f} to {row['gb_s']['most']:.3f})"
            + (f", {share['median']:.0%} of copying ({share['least']:.0%} to {share['most']:.0%})\n" if share else "\n")
        )
    report = json.dumps({"bar": BAR, "conditions": conditions, "figures": facts}, indent=1) + "\n"
    write_atomically(arguments.json, partial(_write, report))
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())

"""A report's conditions, and its figures as Markdown tables."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from engine.bench.peers import ALLOWED_ERROR
from engine.loading.model import Model

PACKAGES = ("torch", "diffusers", "transformers", "triton", "xformers", "numpy")
PEERS = {
    "renderer": "renderer, a second of new video, beside diffusers' CogVideoX transformer",
    "decoder": "decoder, a video frame, beside diffusers' autoencoder",
    "planner": "planner, a token, beside transformers' LLaMA with a static cache",
}


def conditions(command: str, weights: str, model: Model) -> dict[str, Any]:
    """Command line, commit, model with the source of its weights, machine and versions, ready for JSON."""
    on_cuda = model.device.type == "cuda"
    versions = {found.name: found.version for found in distributions() if found.name in PACKAGES}
    return {
        "command": command,
        "device": torch.cuda.get_device_name(model.device) if on_cuda else processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "preset": model.config.name,
        "picture": model.config.picture,
        "weights": weights,
        "steps": model.config.steps,
        "commit": commit_of_this_tree(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": round(os.getloadavg()[0], 1),
        "versions": {"python": platform.python_version()} | versions,
    }


def processor() -> str:
    """The CPU's name; Python knows no more than its architecture."""
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def commit_of_this_tree() -> str | None:
    """The commit of the running code, with `-dirty` where files differ from it; None outside a clone."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.check_output(command, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True).strip()
    return None


def tables(report: Mapping[str, Any]) -> str:
    """Conditions, peers, stages and rates of a report of `engine.bench`."""
    facts = dict(report["conditions"])
    command, versions = facts.pop("command"), facts.pop("versions")
    told = ", ".join(f"{name} {value}" for name, value in (facts | versions).items())
    errors = (f"{what} {error:.1e}" for what, error in report["proofs"].items())
    peers = [(what, *map(_spread, report["peers"][name].values())) for name, what in PEERS.items()]
    parts = [
        f"`{command}`",
        f"Conditions: {told}.",
        f"Relative errors in float32, before anything was timed: {'; '.join(errors)} (at most {ALLOWED_ERROR:.0e}).",
        table(["median of turns (middle half)", "ours, ms", "theirs, ms", "times better"], peers),
        table(["a chunk", "ms"], [(stage, _spread(ms)) for stage, ms in report["stages_ms"].items()]),
        table(["rate", "measured"], [(name, _number(value)) for name, value in report["rates"].items()]),
    ]
    if "neighbour" in report:
        figures = dict(report["neighbour"])
        numbers = ", ".join(map(str, figures.pop("threads")))
        head = f"a chunk beside a busy process (threads: {numbers})"
        parts.append(table([head, "median (middle half)"], [(name, _spread(value)) for name, value in figures.items()]))
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _spread(values: Mapping[str, Any]) -> str:
    """Median and middle half."""
    return f"{_number(values['median'])} ({' to '.join(map(_number, values['middle_half']))})"


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"

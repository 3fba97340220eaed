"""`check-reference DIR`: holds the engine's modules against golden cases of the published model."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from engine.loading.options import pick_device
from engine.published.case import load_case
from engine.published.checks import CHECKS


def check(path: Path, device: str) -> str:
    """Runs a case, given without its ending, in float32 on a device: its kind and verdict.

    Raises:
        Exception: saying why the case failed: unknown kind, wrong result, tensor that no check knows, broken file.
    """
    case = load_case(path, device)
    kind = str(case.facts.get("case"))
    if kind not in CHECKS:
        raise ValueError(f"kind {kind!r} is unknown; known are {', '.join(CHECKS)}")
    with torch.inference_mode():
        CHECKS[kind](case)
    return f"{kind}, {case.verdict()}"


def check_cases(folder: Path, device: str) -> Iterator[tuple[bool, str]]:
    """Whether each case of a folder passed, and a line about it; sorted by path."""
    files = [*folder.rglob("*.json"), *folder.rglob("*.safetensors")]
    for path in sorted({file.with_suffix("") for file in files}):
        try:
            yield True, f"ok     {path.name}: {check(path, device)}"
        # One broken case, whatever is wrong with it, must not hide the others' results.
        except Exception as error:
            yield False, f"FAILED {path.name}: " + " ".join(f"{type(error).__name__}: {error}".split())


def main(argv: Sequence[str]) -> int:
    """Prints a line for each case and `N passed, M failed` last; 0 only if all of at least one passed.

    Raises:
        ValueError: if the folder or the device is not there.
    """
    parser = argparse.ArgumentParser(prog="python -m engine check-reference", description=__doc__)
    parser.add_argument("directory", type=Path, help="folder of golden cases, NAME.json beside NAME.safetensors")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the modules run (default: cpu)")
    arguments = parser.parse_args(argv)
    # The goldens come from MKL's code for any processor. Where it chooses by processor, exp() differs in the last bit,
    # which a sinusoid of time 999 shows. Read by MKL at its first call, so there is no way to ask for it later.
    os.environ["MKL_CBWR"] = "COMPATIBLE"
    device = pick_device(arguments.device).type
    # Convolutions on CUDA would round float32 to 10 bits.
    torch.backends.cudnn.allow_tf32 = False
    if not arguments.directory.is_dir():
        raise ValueError(f"{arguments.directory} is no folder: give the one that holds the golden cases")
    passed = []
    for good, line in check_cases(arguments.directory, device):
        passed.append(good)
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    if not passed:
        sys.stderr.write(f"{arguments.directory} holds no golden case: NAME.json beside NAME.safetensors expected\n")
    sys.stdout.write(f"{sum(passed)} passed, {len(passed) - sum(passed)} failed\n")
    return 0 if passed and all(passed) else 1

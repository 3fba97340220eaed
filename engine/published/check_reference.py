"""`check-reference DIR`: holds the engine's modules against golden cases of the published model."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.loading.model import pick_device
from engine.published.check_perceptual import check_autoencoder, check_condition, check_renderer, check_sampler
from engine.published.check_semantic import check_planner, check_theia, check_tokenizer
from engine.published.check_tables import check_tables
from engine.published.reference_case import Case, load_case

CHECKS: dict[str, Callable[[Case], None]] = {
    "tokenizer": check_tokenizer,
    "lm": check_planner,
    "theia_extractor": check_theia,
    "dit_control": check_renderer,
    "condition_upsample": check_condition,
    "sampler": check_sampler,
    "vae_decoder": check_autoencoder,
    "tables": check_tables,
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a case."""

    name: str
    passed: bool
    text: str

    def __str__(self) -> str:
        return f"{'ok    ' if self.passed else 'FAILED'} {self.name}: {self.text}"


def check(case: Case) -> Verdict:
    """Runs a case in float32 where its tensors are. A tensor that no check knows fails it, as does an unknown kind."""
    if case.kind not in CHECKS:
        return Verdict(case.name, False, f"kind {case.kind!r} is unknown; known are {', '.join(CHECKS)}")
    with torch.inference_mode():
        CHECKS[case.kind](case)
    wrong = [comparison for comparison in case.comparisons if not comparison.passed]
    faults = [
        f"{fault.name}: {fault.error:.0f} entries differ" if fault.exact else f"{fault.name}: error {fault.error:.2e}"
        for fault in wrong
    ]
    if case.missing:
        faults.append(f"listed, but not there: {', '.join(case.missing)}")
    if case.unread:
        faults.append(f"no check knows {', '.join(case.unread)}")
    if not case.comparisons:
        faults.append("nothing to compare")
    close = [comparison for comparison in case.comparisons if not comparison.exact]
    worst = max(close, key=lambda comparison: comparison.error, default=None)
    error = f"error {worst.error:.2e} at {worst.name}" if worst else "no error to measure"
    exact = len(case.comparisons) - len(close)
    text = f"{case.kind}, {error}, {len(close)} results within tolerance, {exact} exact"
    return Verdict(case.name, not faults, "; ".join([f"{case.kind}, {error}", *faults]) if faults else text)


def check_file(path: Path, device: str) -> Verdict:
    """As `check`, for the case whose json this is; a case that cannot be read or run is a failed one."""
    try:
        return check(load_case(path, device))
    # One broken case, whatever is wrong with it, must not hide the others' results.
    except Exception as error:
        return Verdict(path.stem, False, " ".join(f"{type(error).__name__}: {error}".split()))


def main(argv: Sequence[str]) -> int:
    """Prints a line for each case and `N passed, M failed` last; 0 only if all of at least one passed."""
    parser = argparse.ArgumentParser(prog="python -m engine check-reference", description=__doc__)
    parser.add_argument("directory", type=Path, help="folder of golden cases, NAME.json beside NAME.safetensors")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the modules run (default: cpu)")
    arguments = parser.parse_args(argv)
    folder: Path = arguments.directory
    # The goldens come from MKL's code for any processor. Where it chooses by processor, exp() differs in the last bit,
    # which a sinusoid of time 999 shows. Read by MKL at its first call, so there is no way to ask for it later.
    os.environ["MKL_CBWR"] = "COMPATIBLE"
    try:
        device = pick_device(arguments.device).type
    except ValueError as error:
        parser.error(str(error))
    # Convolutions on CUDA would round float32 to 10 bits.
    torch.backends.cudnn.allow_tf32 = False
    if not folder.is_dir():
        sys.stderr.write(f"{folder} is no folder: give the one that holds the golden cases\n")
        return 2
    described = {path.with_suffix("") for path in folder.rglob("*.json")}
    alone = {path.with_suffix("") for path in folder.rglob("*.safetensors")} - described
    verdicts = []
    for stem in sorted(described | alone):
        if stem in alone:
            verdicts.append(Verdict(stem.name, False, f"{stem.name}.json is missing beside its tensors"))
        else:
            verdicts.append(check_file(stem.with_name(stem.name + ".json"), device))
        sys.stdout.write(f"{verdicts[-1]}\n")
        sys.stdout.flush()
    passed = sum(verdict.passed for verdict in verdicts)
    if not verdicts:
        sys.stderr.write(f"{folder} holds no golden case: NAME.json beside NAME.safetensors are looked for\n")
    sys.stdout.write(f"{passed} passed, {len(verdicts) - passed} failed\n")
    return 0 if passed and passed == len(verdicts) else 1

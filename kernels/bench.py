"""Proves every operation against its reference, then measures it.

`python -m kernels.bench --json F`: on CUDA, medians and spread beside eager torch and torch.compile, GB/s and the share
of the measured copy bandwidth. Without a device, correctness under Triton's interpreter at small shapes, and no speed.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.wire.files import check_target, write_atomically
from kernels.tools.memo import device_key

if TYPE_CHECKING:
    from kernels.tools.cases import KernelCase

SEED = 0
WARM_UPS, REPEATS = 10, 50
COPY_BYTES = 2**30  # far beyond any cache
# Many times the largest L2, and long enough to fill that the host has started what follows before the device is done.
FLUSH_BYTES = 2**30
# A fused result is rounded once, but Triton's interpreter truncates to bf16, which doubles that.
ALLOWED_RATIO = 2.5
FLOOR = 2e-6  # float32 sums in another order differ by this much, relative


def widened(operand: Any) -> Any:
    """An operand in float32, as far as it is a float tensor or says what a result's type shall be."""
    if isinstance(operand, torch.dtype):
        return torch.float32
    return operand.float() if isinstance(operand, Tensor) and operand.is_floating_point() else operand


def relative_error(result: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of what was expected; the share that differs for integers."""
    if not expected.is_floating_point():
        apart = (result.long() - expected.long()).abs()
        return float((apart > (1 if expected.dtype == torch.uint8 else 0)).float().mean())
    wide, truth = result.double(), expected.double()
    return float((wide - truth).pow(2).mean().sqrt() / truth.pow(2).mean().sqrt().clamp_min(1e-30))


def check(case: "KernelCase", shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> float:
    """The worst relative error of a case's results against its reference in float32.

    Raises:
        ArithmeticError: the error is larger than a rounding to the result's type allows, or not a number.
    """
    torch.manual_seed(SEED)
    operands = case.make(shape, device, dtype)
    results, exact = case.run(*operands, backend="triton"), case.plain(*map(widened, operands))
    worst = 0.0
    for result, truth in zip(results, exact, strict=True) if isinstance(results, tuple) else ((results, exact),):
        error = relative_error(result, truth)
        allowed = max(ALLOWED_RATIO * relative_error(truth.to(result.dtype), truth), FLOOR)
        if not error <= allowed:
            raise ArithmeticError(f"{case.name} at {shape}, {dtype}: relative error {error:.2e}, allowed {allowed:.2e}")
        worst = max(worst, error)
    return worst


def measure(function: Callable[[], Any]) -> dict[str, float]:
    """Median and middle half's width of a function's times on the current CUDA device, caches cold, in microseconds."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    for _ in range(WARM_UPS):
        function()
    event: Callable[..., Any] = torch.cuda.Event
    spans = [(event(enable_timing=True), event(enable_timing=True)) for _ in range(REPEATS)]
    for begin, end in spans:
        flush.zero_()
        begin.record()
        function()
        end.record()
    torch.cuda.synchronize()
    low, median, high = statistics.quantiles((begin.elapsed_time(end) * 1e3 for begin, end in spans), n=4)
    return {"median_us": median, "spread_us": high - low}


def speed(case: "KernelCase", device: torch.device, copy_gb_s: float) -> dict[str, Any]:
    """Times of one case at production shapes in bf16, beside torch, and its share of a copy's bandwidth."""
    operands = case.make(case.production, device, torch.bfloat16)
    functions = {"fused": case.run, "eager": case.plain, "compiled": torch.compile(case.plain, dynamic=False)}
    times = {name: measure(partial(function, *operands)) for name, function in functions.items()}
    bound = case.bound(*operands)
    rate = bound.bytes / times["fused"]["median_us"] / 1e3
    return {**times, "gb_s": rate, "share_of_copy": rate / copy_gb_s, "bytes": bound.bytes, "flops": bound.flops}


def bench(device: torch.device, cases: Sequence["KernelCase"] | None = None) -> dict[str, Any]:
    """Checks every case, then measures those that are right on CUDA; one line each on standard output."""
    from kernels.tools.cases import CASES

    on_cuda = device.type == "cuda"
    report: dict[str, Any] = {"device": device_key(device), "repeats": REPEATS * on_cuda, "kernels": {}, "failed": []}
    if on_cuda:
        # Read and written: the roof that kernels are held against.
        source, target = torch.empty(2, COPY_BYTES, dtype=torch.uint8, device=device)
        report["copy_gb_s"] = 2 * COPY_BYTES / measure(partial(target.copy_, source))["median_us"] / 1e3
    for case in cases or CASES:
        shape = case.production if on_cuda else case.small
        try:
            exact, rounded = (check(case, shape, device, dtype) for dtype in (torch.float32, torch.bfloat16))
        except (ArithmeticError, ValueError) as error:
            report["failed"].append(str(error))
            line = f"WRONG: {error}"
        else:
            entry: dict[str, Any] = {"shape": shape, "error_float32": exact, "error_bfloat16": rounded}
            line = f"right, {exact:.1e} in float32, {rounded:.1e} in bfloat16"
            if on_cuda:
                entry |= speed(case, device, report["copy_gb_s"])
                fused, eager, compiled = (entry[name]["median_us"] for name in ("fused", "eager", "compiled"))
                line += f"; {fused:.1f} µs, eager {eager:.1f}, compiled {compiled:.1f}; "
                line += f"{entry['share_of_copy']:.0%} of a copy's bandwidth"
            report["kernels"][case.name] = entry
        sys.stdout.write(f"{case.name:24}{line}\n")
        sys.stdout.flush()
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line, returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="F", help="write the figures there")
    target: Path | None = parser.parse_args(argv).json
    try:
        if target is not None:
            check_target(target)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        # Before Triton is imported: kernels are bound to the interpreter when they are decorated.
        os.environ["TRITON_INTERPRET"] = "1"
        sys.stdout.write("no device to measure: correctness only\n")
    report = bench(device)
    sys.stdout.write(f"{len(report['kernels'])} right, {len(report['failed'])} wrong\n")
    try:
        if target is not None:
            write_atomically(target, lambda part: part.write_text(json.dumps(report, indent=2) + "\n"))
    except OSError as error:
        sys.stderr.write(f"bench: {error}\n")
        return 2
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())

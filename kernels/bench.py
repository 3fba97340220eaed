"""Proves every operation against its reference, then measures it.

`python -m kernels.bench --json F`: on CUDA, medians and spread beside eager torch and torch.compile, GB/s and the share
of the measured copy bandwidth. Without a device, correctness under Triton's interpreter at small shapes, and no speed.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from kernels.tools.cases import Case

SEED = 0
WARM_UPS = 10
REPEATS = 50
COPY_BYTES = 2**30  # far beyond any cache
# Many times the largest L2, and long enough to fill that the host has started what follows before the device is done.
FLUSH_BYTES = 2**30
# A fused result is rounded once, as the reference's is, but Triton's interpreter truncates to bf16, which doubles that.
ALLOWED_RATIO = 2.5
FLOOR = 2e-6  # float32 sums in another order differ by this much, relative


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of one function on the device, in microseconds: median and the middle half's width."""

    median_us: float
    spread_us: float


def _tensors(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _widened(operand: Any) -> Any:
    """In float32, as far as it is a float tensor or says what a result's type shall be."""
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


def check(case: "Case", shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """The worst relative error of a case's results, and what was allowed.

    Raises:
        ArithmeticError: the error is larger than allowed, or not a number.
    """
    torch.manual_seed(SEED)
    operands = case.make(shape, device, dtype)
    results = _tensors(case.run(*operands, backend="triton"))
    exact, rounded = _tensors(case.plain(*map(_widened, operands))), _tensors(case.plain(*operands))
    pairs = list(zip(results, rounded, exact, strict=True))
    error = max(relative_error(result, truth) for result, _, truth in pairs)
    allowed = max(ALLOWED_RATIO * max(relative_error(near, truth) for _, near, truth in pairs), FLOOR)
    if not error <= allowed:
        raise ArithmeticError(f"{case.name} at {shape}, {dtype}: relative error {error:.2e}, allowed {allowed:.2e}")
    return error, allowed


def measure(function: Callable[[], Any], flush: Tensor) -> Timing:
    """Times a function on the current CUDA device, its caches cold, each run apart."""
    for _ in range(WARM_UPS):
        function()
    event: Callable[..., Any] = torch.cuda.Event
    begins, ends = ([event(enable_timing=True) for _ in range(REPEATS)] for _ in range(2))
    for begin, end in zip(begins, ends, strict=True):
        flush.zero_()
        begin.record()
        function()
        end.record()
    torch.cuda.synchronize()
    times = [begin.elapsed_time(end) * 1e3 for begin, end in zip(begins, ends, strict=True)]
    quarters = statistics.quantiles(times, n=4)
    return Timing(statistics.median(times), quarters[2] - quarters[0])


def copy_gb_s(device: torch.device, flush: Tensor) -> float:
    """What a plain copy reaches, bytes read and written, in GB/s: the roof that kernels are held against."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / measure(lambda: target.copy_(source), flush).median_us / 1e3


def speed(case: "Case", device: torch.device, roof_gb_s: float, flush: Tensor) -> dict[str, Any]:
    """Times of one case at production shapes in bf16, beside torch, and its share of the roof."""
    torch.manual_seed(SEED)
    operands = case.make(case.production, device, torch.bfloat16)
    compiled = torch.compile(case.plain, dynamic=False)
    fused = measure(lambda: case.run(*operands, backend="triton"), flush)
    eager = measure(lambda: case.plain(*operands), flush)
    inductor = measure(lambda: compiled(*operands), flush)
    bound = case.bound(*operands)
    rate = bound.bytes / fused.median_us / 1e3
    return {
        "fused": asdict(fused),
        "eager": asdict(eager),
        "compiled": asdict(inductor),
        "gb_s": rate,
        "share_of_copy": rate / roof_gb_s,
        "tflop_s": bound.flops / fused.median_us / 1e6,
        **asdict(bound),
    }


def _conditions(device: torch.device) -> dict[str, Any]:
    on_cuda = device.type == "cuda"
    try:
        triton_version = version("triton")
    except PackageNotFoundError:
        triton_version = "none"
    return {
        "device": torch.cuda.get_device_name(device) if on_cuda else "none: Triton's interpreter on the CPU",
        "torch": torch.__version__,
        "triton": triton_version,
        "dtype": "bfloat16",
        "repeats": REPEATS if on_cuda else 0,
    }


def bench(device: torch.device) -> dict[str, Any]:
    """Checks every case, then measures those that are right; one line each on standard output."""
    from kernels.tools.cases import CASES

    on_cuda = device.type == "cuda"
    report: dict[str, Any] = {"conditions": _conditions(device), "kernels": {}, "failed": []}
    flush = torch.empty(FLUSH_BYTES if on_cuda else 0, dtype=torch.uint8, device=device)
    if on_cuda:
        report["copy_gb_s"] = copy_gb_s(device, flush)
    for place, case in enumerate(CASES, 1):
        line = f"{place:2}/{len(CASES)} {case.name:24}"
        shape = case.production if on_cuda else case.small
        try:
            entry: dict[str, Any] = {"shape": shape}
            for dtype in (torch.float32, torch.bfloat16):
                entry[f"error_{str(dtype).removeprefix('torch.')}"], _ = check(case, shape, device, dtype)
        except (ArithmeticError, ValueError) as error:
            report["failed"].append(str(error))
            sys.stdout.write(f"{line}WRONG: {error}\n")
            continue
        line += f"right, {entry['error_float32']:.1e} in float32, {entry['error_bfloat16']:.1e} in bfloat16"
        if on_cuda:
            entry |= speed(case, device, report["copy_gb_s"], flush)
            line += (
                f"; {entry['fused']['median_us']:.1f} ± {entry['fused']['spread_us']:.1f} µs, eager "
                f"{entry['eager']['median_us']:.1f}, compiled {entry['compiled']['median_us']:.1f}; "
                f"{entry['gb_s']:.0f} GB/s, {entry['share_of_copy']:.0%} of a copy"
            )
        report["kernels"][case.name] = entry
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    return report


def main() -> int:
    """Reads the command line, returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="F", help="write the figures there")
    target: Path | None = parser.parse_args().json
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        # Before Triton is imported: kernels are bound to the interpreter when they are decorated.
        os.environ["TRITON_INTERPRET"] = "1"
    report = bench(device)
    if device.type == "cpu":
        sys.stdout.write("no device to measure: correctness only\n")
    if target is not None:
        target.write_text(json.dumps(report, indent=2) + "\n")
    sys.stdout.write(f"{len(report['kernels'])} right, {len(report['failed'])} wrong\n")
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())

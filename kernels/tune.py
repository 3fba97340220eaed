"""Finds the fastest block sizes of every kernel on this machine's device and keeps them on disk.

`python -m kernels.tune` needs a CUDA device and takes some minutes; later processes read what it found. Without it the
kernels run at their usual block sizes. A kernel's sums may differ in their last bits from one block size to another,
so a video made before tuning is not the same bit for bit afterwards.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from kernels import bench
from kernels.tools import memo
from kernels.tools.tiles import SUBJECT, Tile, measured, trying

if TYPE_CHECKING:
    from kernels.tools.cases import Case

Timer = Callable[[Callable[[], Any]], float]  # of one call, in microseconds

WARP = 32  # threads
# Elements of each operand a thread holds: fewer leave loads narrow, more spill.
FEWEST, MOST = 4, 64
CANDIDATES = tuple(
    Tile(elements, warps)
    for elements in (512, 1024, 2048, 4096, 8192)
    for warps in (1, 2, 4, 8, 16)
    if FEWEST <= elements // (WARP * warps) <= MOST
)
WORTH = 0.98  # another block size must take at most this share of the usual one's time


def tune_case(
    case: "Case", shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, time: Timer
) -> dict[str, Tile]:
    """The tile that made one case fastest, for each kernel and size class in it that has a choice.

    Empty where the usual one is as good. A tile that a kernel cannot have on this device is passed over.

    Raises:
        ArithmeticError: the fastest gives wrong results.
    """
    operands = case.make(shape, device, dtype)

    def run() -> Any:
        return case.run(*operands, backend="triton")

    best, fastest, asked = None, time(run) * WORTH, set[str]()
    for tile in CANDIDATES:
        with trying(tile) as trial:
            try:
                took = time(run)
            except ValueError:
                continue
            asked |= trial.asked
            if not asked:
                return {}
            if took < fastest:
                best, fastest = tile, took
    if best is None:
        return {}
    with trying(best):
        bench.check(case, shape, device, dtype)
    return dict.fromkeys(sorted(asked), best)


def keep(device: torch.device, found: Mapping[str, Tile]) -> None:
    """Writes tiles to disk, from where this process takes them too."""
    memo.remember(SUBJECT, device, {key: asdict(tile) for key, tile in found.items()})
    measured.cache_clear()


def tune(device: torch.device, time: Timer) -> int:
    """Tunes every case at production shapes in bf16, one line each; returns the number of those that failed."""
    from kernels.tools.cases import CASES

    failed = 0
    for place, case in enumerate(CASES, 1):
        line = f"{place:2}/{len(CASES)} {case.name:24}"
        try:
            found = tune_case(case, case.production, device, torch.bfloat16, time)
        except (ArithmeticError, ValueError) as error:
            failed += 1
            sys.stdout.write(f"{line}failed: {error}\n")
            continue
        keep(device, found)
        chosen = ", ".join(f"{key}: {tile.elements} elements, {tile.warps} warps" for key, tile in found.items())
        sys.stdout.write(f"{line}{chosen or 'as usual'}\n")
        sys.stdout.flush()
    return failed


def main() -> int:
    """Reads the command line, returns the exit status."""
    argparse.ArgumentParser(prog="python -m kernels.tune", description=__doc__).parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write("there is no CUDA device to tune for; elsewhere the references run, which have no tiles\n")
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    flush = torch.empty(bench.FLUSH_BYTES, dtype=torch.uint8, device=device)
    failed = tune(device, lambda function: bench.measure(function, flush).median_us)
    sys.stdout.write(f"kept in {memo.folder() / f'{SUBJECT}.json'}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

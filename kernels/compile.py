"""Compiles every kernel ahead of time, at the block sizes chosen for the published model; needs no GPU.

`python -m kernels.compile --arch 80 90 100` prints registers, spilled bytes and shared memory of each, and fails if one
does not compile or spills.
"""

import argparse
import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from kernels.tools.cases import CASES
from kernels.tools.launch import Launch, recording

ARCHITECTURES = (80, 86, 89, 90, 100, 103, 120)  # compute capabilities times ten that the kernels are made for
ALIGNMENT = 16  # bytes for pointers, a factor for integers: what Triton specialises on
WARP = 32
Usage = tuple[int, int, int]  # registers and spilled bytes a thread, shared bytes a program
UsageOf = Callable[[Launch, int], Usage]


def launches() -> Iterator[tuple[str, Launch]]:
    """Every kernel start of every case at production shapes in bfloat16, with the case's name."""
    for case in CASES:
        operands = case.make(case.production, torch.device("meta"), torch.bfloat16)
        with recording() as started:
            case.run(*operands, backend="triton")
        yield from ((case.name, launch) for launch in started)


def signature(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], list[list[Any]]]]:
    """Types, constants and divisibility of a start's arguments, as Triton would specialise them."""
    from triton.runtime.jit import mangle_type

    types: dict[str, str] = dict.fromkeys(launch.constants, "constexpr")
    constants: dict[str, Any] = dict(launch.constants)
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for place, (name, value) in enumerate(zip(launch.kernel.arg_names, launch.arguments, strict=False)):
        types[name] = mangle_type(value, specialize=True)
        if types[name] == "constexpr":
            constants[name] = value
        elif isinstance(value, Tensor) or (isinstance(value, int) and value % ALIGNMENT == 0):
            attributes[(place,)] = [["tt.divisibility", ALIGNMENT]]
    return types, constants, attributes


def compile_launch(launch: Launch, architecture: int) -> Usage:
    """Compiles one start for compute capability architecture / 10.

    Raises:
        RuntimeError: the assembler's log does not say what was used.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source, log = ASTSource(launch.kernel, *signature(launch)), io.StringIO()
    with triton.knobs.nvidia.scope(), triton.knobs.compilation.scope(), contextlib.redirect_stdout(log):
        # The assembler's log is the only place that tells spills, and a cached kernel has none.
        triton.knobs.nvidia.dump_ptxas_log = True
        triton.knobs.compilation.always_compile = True
        options = {"num_warps": launch.warps, "enable_fp_fusion": True}
        compiled = triton.compile(source, target=GPUTarget("cuda", architecture, WARP), options=options)
    pattern = r"(\d+) bytes spill stores, (\d+) bytes spill loads.*Used (\d+) registers"
    used = re.search(pattern, log.getvalue(), re.DOTALL)
    if used is None:
        raise RuntimeError(f"the assembler did not report registers and spills:\n{log.getvalue()}")
    return int(used[3]), int(used[1]) + int(used[2]), compiled.metadata.shared


def report(starts: Iterable[tuple[str, Launch]], architectures: list[int], usage_of: UsageOf = compile_launch) -> int:
    """Compiles all starts, writes one line a kernel, returns the number of kernels that failed or spilled."""
    bad = 0
    sys.stdout.write(f"{'operation':24}{'kernel':26}{'sm':>4}{'warps':>6}{'regs':>6}{'spilled':>9}{'shared':>8}\n")
    for name, launch in starts:
        for architecture in architectures:
            line = f"{name:24}{launch.kernel.__name__:26}{architecture:>4}{launch.warps:>6}"
            try:
                registers, spilled, shared = usage_of(launch, architecture)
                bad += spilled > 0
                line += f"{registers:>6}{spilled:>9}{shared:>8}"
            except Exception as error:  # any stage of the compiler may fail, each in its own way
                bad += 1
                line += f"  failed: {error}"
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
    return bad


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line, returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m kernels.compile", description=__doc__)
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90, 100], choices=ARCHITECTURES)
    architectures = parser.parse_args(argv).arch
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.stderr.write("TRITON_INTERPRET=1 is set, so kernels are bound to the interpreter: unset it and try again\n")
        return 2
    bad = report(launches(), architectures)
    sys.stdout.write(f"{bad} kernels failed or spilled\n" if bad else "all kernels compiled, none spills\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

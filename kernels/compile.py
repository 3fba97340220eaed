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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.tools.cases import CASES
from kernels.tools.launch import Launch, recording

TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}
ARCHITECTURES = (80, 86, 89, 90, 100, 103, 120)  # compute capabilities times ten that the kernels are made for
ALIGNMENT = 16  # bytes for pointers, a factor for integers: what Triton specialises on
LARGEST_INT32 = 2**31 - 1
WARP = 32


@dataclass(frozen=True, slots=True)
class Usage:
    """What one compiled kernel takes of a processor."""

    registers: int  # a thread
    spilled_bytes: int  # stores and loads, a thread
    shared_bytes: int  # a program


def launches(dtype: torch.dtype) -> Iterator[tuple[str, Launch]]:
    """Every kernel start of every case at production shapes, with the case's name."""
    for case in CASES:
        operands = case.make(case.production, torch.device("meta"), dtype)
        with recording() as started:
            case.run(*operands, backend="triton")
        for launch in started:
            yield case.name, launch


def signature(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], list[list[Any]]]]:
    """Types, constants and divisibility of a start's arguments, as Triton would specialise them."""
    types: dict[str, str] = {}
    constants: dict[str, Any] = dict(launch.constants)
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for place, (name, value) in enumerate(zip(launch.kernel.arg_names, launch.arguments, strict=False)):
        if value is None or (isinstance(value, int) and value == 1):
            constants[name] = value
        elif isinstance(value, Tensor):
            types[name] = TYPES[value.dtype]
            attributes[(place,)] = [["tt.divisibility", ALIGNMENT]]
        elif isinstance(value, float):
            types[name] = "fp32"
        else:
            types[name] = "i64" if abs(value) > LARGEST_INT32 else "i32"
            if value % ALIGNMENT == 0:
                attributes[(place,)] = [["tt.divisibility", ALIGNMENT]]
    return types | {name: "constexpr" for name in constants}, constants, attributes


def compile_launch(launch: Launch, architecture: int) -> Usage:
    """Compiles one start for compute capability architecture / 10.

    Raises:
        RuntimeError: the assembler's log does not say what was used.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types, constants, attributes = signature(launch)
    source = ASTSource(launch.kernel, types, constants, attributes)
    log = io.StringIO()
    with triton.knobs.nvidia.scope(), triton.knobs.compilation.scope(), contextlib.redirect_stdout(log):
        # The assembler's log is the only place that tells spills, and a cached kernel has none.
        triton.knobs.nvidia.dump_ptxas_log = True
        triton.knobs.compilation.always_compile = True
        compiled = triton.compile(
            source,
            target=GPUTarget("cuda", architecture, WARP),
            options={"num_warps": launch.warps, "enable_fp_fusion": True},
        )
    text = log.getvalue()
    registers = re.search(r"Used (\d+) registers", text)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", text)
    if registers is None or spills is None:
        raise RuntimeError(f"the assembler did not report registers and spills:\n{text}")
    return Usage(int(registers[1]), int(spills[1]) + int(spills[2]), compiled.metadata.shared)


def report(architectures: list[int], dtype: torch.dtype) -> int:
    """Compiles everything, writes one line a kernel, returns the number of kernels that failed or spilled."""
    bad = 0
    sys.stdout.write(f"{'operation':24}{'kernel':26}{'sm':>4}{'warps':>6}{'regs':>6}{'spilled':>9}{'shared':>8}\n")
    for name, launch in launches(dtype):
        for architecture in architectures:
            label = f"{name:24}{launch.kernel.__name__:26}{architecture:>4}{launch.warps:>6}"
            try:
                usage = compile_launch(launch, architecture)
            except Exception as error:  # any stage of the compiler may fail, each in its own way
                bad += 1
                sys.stdout.write(f"{label}  failed: {error}\n")
                continue
            bad += usage.spilled_bytes > 0
            sys.stdout.write(f"{label}{usage.registers:>6}{usage.spilled_bytes:>9}{usage.shared_bytes:>8}\n")
            sys.stdout.flush()
    return bad


def main() -> int:
    """Reads the command line, returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m kernels.compile", description=__doc__)
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90, 100], choices=ARCHITECTURES)
    architectures = parser.parse_args().arch
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.stderr.write("TRITON_INTERPRET=1 is set, so kernels are bound to the interpreter: unset it and try again\n")
        return 2
    bad = report(architectures, torch.bfloat16)
    sys.stdout.write(f"{bad} kernels failed or spilled\n" if bad else "all kernels compiled, none spills\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

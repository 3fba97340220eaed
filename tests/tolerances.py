"""How far a kernel may be from its float32 reference: one table, and the helpers that hold results against it.

Imported before `kernels` by every test of a kernel, since kernels are bound to Triton's interpreter or compiler when
they are decorated.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Relative root mean square. A rounding costs 0.0017 in bf16, 0.0002 in fp16; the interpreter truncates, twice that.
TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 4.5e-3, torch.float16: 6e-4}


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """New memory inside is filled with NaN, or with the largest integer, so that what a kernel leaves out shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan().all(), "torch.empty is not poisoned"
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def fused(operation: Callable[..., Any], *operands: Any) -> Any:
    """The result of the Triton kernel behind `operation`, in poisoned memory; an error if the kernel cannot run."""
    with poisoned():
        return operation(*operands, backend="triton")


def widened(*operands: Any) -> tuple[Any, ...]:
    """The operands with every float tensor in float32."""
    return tuple(
        value.float() if isinstance(value, Tensor) and value.is_floating_point() else value for value in operands
    )


def relative_rms(result: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of what was expected; NaN where any result is."""
    wide, truth = result.double(), expected.double()
    return float((wide - truth).pow(2).mean().sqrt() / truth.pow(2).mean().sqrt())


def assert_close(result: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Fails unless the result has the dtype, the shape and, within the table, the values."""
    assert result.dtype == dtype
    assert result.shape == expected.shape
    error = relative_rms(result, expected)
    assert error <= TOLERANCES[dtype], f"relative RMS error {error:.2e} > {TOLERANCES[dtype]:.0e}"


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal numbers that depend on the seed and the shape alone."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)

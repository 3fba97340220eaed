"""The table of operations that are compiled and measured."""

import pytest
import torch
from tolerances import DEVICE

from kernels.tools.cases import CASES, KernelCase

META = torch.device("meta")


def test_names_are_unique() -> None:
    """Every case can be named in a report."""
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bounds_count_every_operand_once(case: KernelCase) -> None:
    """At production shapes the bound's traffic is operands and results once, but for what is known to differ."""
    operands = case.make(case.production, META, torch.bfloat16)
    results = case.plain(*operands)
    moved = [*operands, *(results if isinstance(results, tuple) else (results,))]
    expected = sum(value.nbytes for value in moved if isinstance(value, torch.Tensor))
    if case.name == "spatial_norm_silu":
        # Statistics need all of x before the first result.
        expected += operands[0].nbytes
    bound = case.bound(*operands)
    assert bound.bytes == pytest.approx(expected, rel=0.02)
    assert bound.flops >= sum(result.numel() for result in moved[len(operands) :])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_operands_are_accepted_on_any_device(case: KernelCase) -> None:
    """Small operands made on the tests' device run through the checked wrapper."""
    operands = case.make(case.small, DEVICE, torch.float16)
    results = case.run(*operands, backend="reference")
    for result in results if isinstance(results, tuple) else (results,):
        assert not result.isnan().any()

"""Choice of the code that runs an operation, and the start of kernels."""

import logging
import os
import subprocess
import sys

import pytest
import torch
from tolerances import DEVICE, normal

from kernels import launch, rmsnorm


def plain(x: torch.Tensor) -> str:
    return "plain"


def fused(x: torch.Tensor) -> str:
    return "fused"


def uncovered(x: torch.Tensor) -> str:
    raise launch.Uncovered("too wide")


def run_python(code: str, **environment: str) -> str:
    """Runs code in a process whose Triton is not bound to the interpreter; returns what it writes."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment
    result = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True, timeout=60
    )
    return result.stdout


def test_auto_takes_the_reference_on_the_cpu() -> None:
    """The interpreter is never chosen by itself, however slow the reference may be."""
    assert launch.dispatch("auto", fused, plain, torch.zeros(1)) == "plain"
    assert launch.dispatch("reference", fused, plain, normal(1)) == "plain"


def test_an_order_is_obeyed_or_refused() -> None:
    """'triton' runs where it can, and elsewhere the error says why and what can."""
    assert launch.dispatch("triton", fused, plain, normal(1)) == "fused"
    with pytest.raises(ValueError, match="cannot run plain: there are no kernels for device type 'meta'; 'reference'"):
        launch.dispatch("triton", fused, plain, torch.zeros(1, device="meta"))
    with pytest.raises(ValueError, match="cannot run plain: too wide"):
        launch.dispatch("triton", uncovered, plain, normal(1))
    with pytest.raises(ValueError, match="backend must be"):
        launch.dispatch("xformers", fused, plain, normal(1))  # type: ignore[arg-type]


def test_falls_back_with_one_warning(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shape that no kernel covers runs the reference, and the reason is logged once."""
    monkeypatch.setattr(launch, "obstacle", lambda device: None)
    launch._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="kernels.launch"):
        for _ in range(3):
            assert launch.dispatch("auto", uncovered, plain, torch.zeros(1, device="meta")) == "plain"
    assert [record.getMessage() for record in caplog.records] == ["plain runs its reference, slower: too wide"]


def test_a_device_without_kernels_falls_back_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Tensors of an unknown device run the reference, and the warning names the device."""
    launch._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="kernels.launch"):
        assert launch.dispatch("auto", fused, plain, torch.zeros(1, device="meta")) == "plain"
    assert "device type 'meta'" in caplog.text


def test_gradients_are_never_lost() -> None:
    """An operand that learns gets its gradient from the reference; an order for Triton is refused, not obeyed."""
    weight = normal(8).requires_grad_()
    rmsnorm.rms_norm(normal(3, 8), weight, 1e-5).sum().backward()
    assert weight.grad is not None
    with pytest.raises(ValueError, match="requires a gradient"):
        rmsnorm.rms_norm(normal(3, 8), weight, 1e-5, backend="triton")
    with torch.no_grad():
        rmsnorm.rms_norm(normal(3, 8), weight, 1e-5, backend="triton")


def test_recording_lists_starts_and_runs_nothing() -> None:
    """Inside recording an operation on the meta device lists its kernel; afterwards kernels run again."""
    x = torch.empty(63, 100, device="meta")
    with launch.recording() as launches:
        rmsnorm.rms_norm(x, torch.empty(100, device="meta"), 1e-5, backend="triton")
    assert [started.kernel.__name__ for started in launches] == ["rms_kernel"]
    assert launches[0].constants["BLOCK"] == 128
    assert not rmsnorm.rms_norm(normal(3, 8), normal(8), 1e-5, backend="triton").isnan().any()
    assert len(launches) == 1


def test_without_triton_everything_imports_and_runs() -> None:
    """Where Triton is not installed the references run, and an order for Triton says that it is missing."""
    code = """
import sys; sys.modules["triton"] = None
import torch
from kernels import cases
for case in cases.CASES:
    operands = case.make(case.small, torch.device("cpu"), torch.float32)
    case.run(*operands)
try:
    case.run(*operands, backend="triton")
except ValueError as error:
    sys.stdout.write(str(error))
"""
    assert "Triton is not installed; 'reference' can" in run_python(code)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="there is a driver here")
def test_an_order_on_the_cpu_needs_the_interpreter() -> None:
    """Kernels bound to the compiler refuse CPU tensors instead of failing inside Triton."""
    code = """
import sys, torch
from kernels import rmsnorm
try:
    rmsnorm.rms_norm(torch.zeros(3, 8), torch.zeros(8), 1e-5, backend="triton")
except ValueError as error:
    sys.stdout.write(str(error))
"""
    assert "TRITON_INTERPRET=1 was not set" in run_python(code)


def test_the_package_imports_nothing() -> None:
    """`import kernels`, which transformers may do, loads neither torch nor Triton."""
    code = "import sys, kernels; sys.stdout.write(str({'torch', 'triton'} & set(sys.modules)))"
    assert run_python(code) == "set()"

"""Choice of the code that runs an operation, and the start of kernels."""

import logging
import os
import subprocess
import sys

import pytest
import torch
from tolerances import DEVICE, normal
from triton.runtime.errors import OutOfResources

from kernels import rmsnorm
from kernels.tools import launch


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
    with pytest.raises(ValueError, match="cannot run fused: there are no kernels for device type 'meta'; 'reference'"):
        launch.dispatch("triton", fused, plain, torch.zeros(1, device="meta"))
    with pytest.raises(ValueError, match="cannot run uncovered: too wide"):
        launch.dispatch("triton", uncovered, plain, normal(1))
    with pytest.raises(ValueError, match="backend must be"):
        launch.dispatch("xformers", fused, plain, normal(1))  # type: ignore[arg-type]


def test_falls_back_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    """A shape that no kernel covers runs the reference, and the reason is logged once."""
    launch._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="kernels.tools.launch"), launch.preferring("triton"):
        for _ in range(3):
            assert launch.dispatch("auto", uncovered, plain, normal(1)) == "plain"
    assert [record.getMessage() for record in caplog.records] == ["uncovered runs its reference, slower: too wide"]


def test_too_little_shared_memory_falls_back(caplog: pytest.LogCaptureFixture) -> None:
    """What a device has too little of, or its compiler does not know, is the warning; other errors are not hidden."""

    def too_large(x: torch.Tensor) -> str:
        raise OutOfResources(300_000, 232_448, "shared memory")

    def broken(x: torch.Tensor) -> str:
        raise RuntimeError("illegal address")

    launch._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="kernels.tools.launch"), launch.preferring("triton"):
        assert launch.dispatch("auto", too_large, plain, normal(1)) == "plain"
        assert "out of resource: shared memory, Required: 300000" in caplog.text
        with pytest.raises(RuntimeError, match="illegal address"):
            launch.dispatch("auto", broken, plain, normal(1))


def test_gradients_are_never_lost() -> None:
    """An operand that learns gets its gradient from the reference; an order for Triton is refused, not obeyed."""
    weight = normal(8).requires_grad_()
    rmsnorm.rms_norm(normal(3, 8), weight, 1e-5).sum().backward()
    assert weight.grad is not None
    with pytest.raises(ValueError, match="requires a gradient"):
        rmsnorm.rms_norm(normal(3, 8), weight, 1e-5, backend="triton")
    with torch.no_grad():
        rmsnorm.rms_norm(normal(3, 8), weight, 1e-5, backend="triton")


@pytest.mark.skipif(DEVICE.type == "cuda", reason="kernels are compiled here, for tensors on CUDA alone")
def test_a_preference_stands_for_auto() -> None:
    """By itself a CPU has no kernels; ordered they are used, but never where an operand learns."""
    x = torch.zeros(1)
    with launch.preferring("triton"):
        assert launch.interpreting()
        assert launch.dispatch("auto", fused, plain, x) == "fused"
        assert launch.dispatch("auto", fused, plain, torch.zeros(1, requires_grad=True)) == "plain"
        assert launch.dispatch("reference", fused, plain, x) == "plain"
        with pytest.raises(ValueError, match="LANDIFF_KERNELS=triton cannot run: there are no kernels for device type"):
            launch.dispatch("auto", fused, plain, torch.zeros(1, device="meta"))
    with launch.preferring("reference"):
        assert launch.dispatch("auto", fused, plain, x) == "plain"
    assert not launch.interpreting()


def test_a_device_that_should_have_kernels_warns_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A CUDA device that Triton cannot use computes in torch, whatever the operation; one warning says why."""

    class OnCuda(torch.Tensor):
        is_cuda, device = True, torch.device("cuda", 0)

    def unknown(device: torch.device) -> None:
        raise RuntimeError("ptxas fatal: Value 'sm_190' is not defined")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (19, 0))
    monkeypatch.setattr(launch, "_try_out", unknown)
    launch.unsupported_reason.cache_clear()
    launch._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="kernels.tools.launch"):
        assert {launch.dispatch("auto", run, plain, OnCuda()) for run in (fused, uncovered)} == {"plain"}
    with launch.preferring("triton"), pytest.raises(ValueError, match="LANDIFF_KERNELS=triton cannot run.*sm_190"):
        launch.dispatch("auto", fused, plain, OnCuda())
    launch.unsupported_reason.cache_clear()
    assert len(caplog.records) == 1
    assert "every operation runs its reference" in caplog.text and "sm_190" in caplog.text


def test_an_old_device_is_named() -> None:
    """Below the lowest capability the reason says both numbers."""
    code = """
import sys, torch, triton
from kernels.tools import launch
torch.cuda.get_device_capability = lambda device: (7, 5)
sys.stdout.write(launch.unsupported_reason(torch.device("cuda", 0)))
"""
    assert run_python(code) == "the device has compute capability (7, 5), the kernels need (8, 0)"


def test_the_environment_switches_kernels_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """LANDIFF_KERNELS=reference is what operations do; a misspelt value is an error that names the right ones."""
    code = "import sys; from kernels.tools import launch; sys.stdout.write(launch._preferred.get())"
    assert run_python(code, LANDIFF_KERNELS="reference") == "reference"
    monkeypatch.setenv(launch.PREFERENCE, "off")
    with pytest.raises(ValueError, match="LANDIFF_KERNELS must be 'auto' or 'triton' or 'reference', not 'off'"):
        launch._from_environment()


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
from kernels.tools import cases
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


@pytest.mark.skipif(DEVICE.type == "cuda", reason="kernels are for CUDA")
def test_triton_is_loaded_where_something_can_use_it() -> None:
    """Not on a CPU, where it takes a third of the engine's memory; but where it is ordered, or loaded before."""
    code = "import sys; {}from kernels.tools import launch; sys.stdout.write(str(launch.triton is not None))"
    assert run_python(code.format("")) == "False"
    assert run_python(code.format(""), LANDIFF_KERNELS="triton") == "True"
    assert run_python(code.format(""), TRITON_INTERPRET="1") == "True"
    assert run_python(code.format("import triton; ")) == "True"

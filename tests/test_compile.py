"""Compiling ahead of time, without a device."""

import os
import subprocess
import sys

import pytest
from tolerances import normal

from kernels import compile
from kernels.tools import cases, launch


def test_every_kernel_compiles_without_spills() -> None:
    """The command compiles every kernel, says what each uses, and succeeds."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "kernels.compile", "--arch", "90"]
    result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=110)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert lines[-1] == "all kernels compiled, none spills"
    for case in cases.CASES:
        assert any(line.startswith(case.name + " ") for line in lines), case.name


def test_an_interpreted_process_is_refused() -> None:
    """Where kernels are bound to the interpreter the command says what to unset, and fails."""
    result = subprocess.run(
        [sys.executable, "-m", "kernels.compile", "--arch", "90"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 2
    assert "unset it" in result.stderr


def test_spills_and_failures_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """A kernel that spills and one that does not compile are both reported as bad."""
    outcomes = iter([(255, 8, 0), RuntimeError("no such instruction"), (32, 0, 16)])

    def outcome(started: launch.Launch, architecture: int) -> compile.Usage:
        usage = next(outcomes)
        if isinstance(usage, Exception):
            raise usage
        return usage

    listed = list(compile.launches())[:1]
    assert compile.report(listed, [80, 90, 100], outcome) == 2
    assert "no such instruction" in capsys.readouterr().out


def test_signature_specialises_as_triton_does() -> None:
    """Missing operands and ones become constants, multiples of 16 are marked, long integers are wide."""

    class Kernel:
        arg_names = ("x", "gap", "one", "even", "odd", "long", "eps", "BLOCK")

    started = launch.Launch(Kernel(), (normal(3), None, 1, 32, 33, 2**40, 0.5), {"BLOCK": 64}, 4)
    types, constants, attributes = compile.signature(started)
    assert types == {
        **{"x": "*fp32", "even": "i32", "odd": "i32", "long": "i64", "eps": "fp32"},
        **{"gap": "constexpr", "one": "constexpr", "BLOCK": "constexpr"},
    }
    assert constants == {"gap": None, "one": 1, "BLOCK": 64}
    assert set(attributes) == {(0,), (3,), (5,)}

"""Our networks beside torch.compile of them, with a stand-in for the compiler where it would take long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import tiny_model

from engine.bench import compiled, rounds
from engine.bench.compiled import measure_compiled
from engine.bench.rounds import Clock

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "WARM_UPS", 0)


def _compiles_to(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    """torch.compile gives the function changed so."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: change(function))


def test_both_networks_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where compiling works and is right, both are timed; plain layers with our weights give our results."""
    _compiles_to(monkeypatch, lambda function: function)
    entries = measure_compiled(tiny_model(), 2, 3, Clock(CPU))
    assert list(entries) == ["denoising step", "planned codes"]
    for entry in entries.values():
        assert entry["obstacle"] is None and entry["error"] < 1e-5
        assert len(entry["ours_s"]) == len(entry["compiled_s"]) == entry["ours"]["rounds"] == 3
        assert min(entry["ours_s"] + entry["compiled_s"]) > 0


def test_no_compiler_is_a_stated_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is raised and nothing timed; both entries say what is missing."""

    def missing(function: Any, **options: Any) -> Any:
        raise RuntimeError("Failed to find C++ compiler.\nSet CXX")

    monkeypatch.setattr(torch, "compile", missing)
    monkeypatch.setattr(compiled, "race", lambda *arguments: pytest.fail("it was timed"))
    entries = measure_compiled(tiny_model(), 2, 1, Clock(CPU))
    assert {entry["obstacle"] for entry in entries.values()} == {"RuntimeError: Failed to find C++ compiler. Set CXX"}


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled module that answers something else is an obstacle that says by how much."""
    _compiles_to(monkeypatch, lambda function: lambda *operands: 1.1 * function(*operands))
    monkeypatch.setattr(compiled, "race", lambda *arguments: pytest.fail("it was timed"))
    entries = measure_compiled(tiny_model(), 2, 1, Clock(CPU))
    assert all("results are off by 1.0e-01" in entry["obstacle"] for entry in entries.values())


def test_a_module_that_cannot_be_compiled_leaves_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure at the first call belongs to that module alone."""

    def fails(*operands: Any) -> Any:
        raise RuntimeError("no such operator")

    _compiles_to(monkeypatch, lambda function: fails if "denoise" in repr(function) else function)
    entries = measure_compiled(tiny_model(), 2, 1, Clock(CPU))
    assert entries["denoising step"] == {"obstacle": "RuntimeError: no such operator"}
    assert entries["planned codes"]["obstacle"] is None


def test_a_compiler_sees_operations_of_torch() -> None:
    """Choosing kernels does not break a traced graph in two: it is told no, whatever was preferred."""
    from kernels.tools.launch import dispatch, fuses

    def plain(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    def asked(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if fuses(x) else dispatch("auto", lambda y: y * 3, plain, x)

    traced = torch.compile(asked, backend="eager", fullgraph=True)
    with torch.inference_mode():
        torch.testing.assert_close(traced(torch.ones(3)), torch.full((3,), 2.0))

"""The benchmark of kernels: correctness first."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tolerances import DEVICE

from kernels import bench
from kernels.tools import cases


@pytest.mark.skipif(DEVICE.type == "cuda", reason="there is a device to measure here")
def test_without_a_device_it_checks_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """On the CPU every case is checked, no speed is reported, and the output says why."""
    monkeypatch.setattr(cases, "CASES", cases.CASES[:4])
    assert bench.main(["--json", str(tmp_path / "f.json")]) == 0
    report = json.loads((tmp_path / "f.json").read_text())
    assert list(report["kernels"]) == [case.name for case in cases.CASES]
    assert not any("fused" in entry for entry in report["kernels"].values())
    assert "no device to measure" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", "missing/f.json", "x" * 256])
def test_a_place_that_cannot_be_written_is_refused(name: str, tmp_path: Path) -> None:
    """Before anything is checked."""
    with pytest.raises(SystemExit) as caught:
        bench.main(["--json", str(tmp_path / name)])
    assert caught.value.code == 2


@pytest.mark.skipif(DEVICE.type == "cuda", reason="production shapes are measured on a device")
def test_a_wrong_kernel_is_not_measured_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """A result that is off by a thousandth, or NaN, is named as wrong and left out of the figures."""
    right = next(case for case in cases.CASES if case.name == "rms_norm")

    def slightly_off(*operands: torch.Tensor, backend: str) -> torch.Tensor:
        return right.plain(*operands) * 1.001

    def missing(*operands: torch.Tensor, backend: str) -> torch.Tensor:
        return right.plain(*operands) * torch.nan

    broken = (dataclasses.replace(right, run=slightly_off), dataclasses.replace(right, run=missing), right)
    report = bench.bench(DEVICE, broken)
    assert len(report["failed"]) == 2
    assert list(report["kernels"]) == ["rms_norm"]
    assert "WRONG" in capsys.readouterr().out


def test_relative_error_of_integers_is_a_share() -> None:
    """Indices must be equal; bytes may be one step apart."""
    ids = torch.tensor([1, 2, 3, 4])
    assert bench.relative_error(ids + torch.tensor([0, 1, 0, 0]), ids) == 0.25
    pixels = torch.tensor([10, 20], dtype=torch.uint8)
    assert bench.relative_error(pixels + torch.tensor([1, 2], dtype=torch.uint8), pixels) == 0.5

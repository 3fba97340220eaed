"""Convolutions in several runtimes: all are right before any is timed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from engine.bench import runtimes


def shifted(blocks: nn.Module) -> Callable[[Tensor], Tensor]:
    """Wrong by a little."""
    return lambda x: blocks(x) * 1.0001


def missing(blocks: nn.Module) -> Callable[[Tensor], Tensor]:
    raise ImportError("No module named 'missing'")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "PLACES", {"decoder": (1, 72, 8, 8)})
    monkeypatch.setattr(runtimes, "PAUSE_S", 0.0)


def test_each_is_measured_beside_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is missing is said in a line, and the rest measured."""
    monkeypatch.setattr(runtimes, "RUNTIMES", (runtimes.ours, runtimes.direct, runtimes.channels_last, missing))
    target = tmp_path / "f.json"
    assert runtimes.main(["--rounds", "2", "--json", str(target)]) == 0
    report = json.loads(target.read_text())
    assert json.loads(capsys.readouterr().out) == report
    assert list(report["places"]["decoder"]) == ["ours", "direct", "channels_last"]
    assert report["places"]["decoder"]["ours"]["times_ours"]["median"] == 1.0
    assert all(one["ms"]["median"] > 0 for one in report["places"]["decoder"].values())
    assert report["not_measured"] == ["decoder: No module named 'missing'"]


def test_a_wrong_answer_is_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is timed then."""
    monkeypatch.setattr(runtimes, "RUNTIMES", (runtimes.ours, shifted))
    assert runtimes.main(["--rounds", "1"]) == 1
    assert "shifted differs by 1.0e-04" in capsys.readouterr().err


@pytest.mark.parametrize("runtime", [runtimes.onnx_runtime, runtimes.openvino])
def test_other_runtimes_compute_the_same(runtime: Callable[[nn.Module], Callable[[Tensor], Tensor]]) -> None:
    """Where they are installed."""
    for module in ("onnx", runtime.__name__.replace("_", "")):
        pytest.importorskip(module)
    blocks = nn.Sequential(*(runtimes.TinyVAEBlock(8) for _ in range(2))).requires_grad_(False)
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(runtime(blocks)(x), blocks(x), rtol=1e-5, atol=1e-5)


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    """No rounds, and a file of another kind."""
    with pytest.raises(SystemExit):
        runtimes.main(["--rounds", "0"])
    assert runtimes.main(["--json", str(tmp_path / "f.txt")]) == 2

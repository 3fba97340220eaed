"""Weights on disk."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from engine.weights import load_component, save_component


def module() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    made[1].running_mean.fill_(0.1)
    return made


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """Parameters come back in bfloat16 precision, buffers exactly."""
    saved, loaded = module(), nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    save_component(tmp_path, "part", saved)
    load_component(tmp_path, "part", loaded)
    assert torch.equal(loaded[0].weight, saved[0].weight.bfloat16().float())
    assert torch.equal(loaded[1].running_mean, saved[1].running_mean)
    assert [path.name for path in tmp_path.iterdir()] == ["part.safetensors"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The error names the file and the cure."""
    with pytest.raises(ValueError, match=r"part.safetensors is missing: give a folder"):
        load_component(tmp_path, "part", module())


@pytest.mark.parametrize("length", [0, 5, 60, 200])
def test_a_file_cut_short_is_refused(tmp_path: Path, length: int) -> None:
    """A half-copied file is an error, not a crash."""
    save_component(tmp_path, "part", module())
    path = tmp_path / "part.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="cut short"):
        load_component(tmp_path, "part", module())


def test_every_fault_is_listed_and_nothing_loaded(tmp_path: Path) -> None:
    """Missing, surplus, mis-shaped and non-finite tensors are all named at once."""
    save_component(tmp_path, "part", module())
    path = tmp_path / "part.safetensors"
    tensors = load_file(path)
    tensors["0.weight"] = torch.zeros(3, 5)
    tensors["0.bias"] = torch.tensor([0.0, float("nan"), 0.0])
    tensors["extra"] = tensors.pop("1.bias")
    save_file(tensors, path)
    target = module()
    before = target[0].weight.clone()
    with pytest.raises(ValueError) as error:
        load_component(tmp_path, "part", target)
    for word in ("0.weight is [3, 5], expected [3, 2]", "0.bias holds", "extra is not part", "1.bias is missing"):
        assert word in str(error.value)
    assert torch.equal(target[0].weight, before)

"""Reading files of tensors, good and bad ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from engine.tensor_files import is_finite, open_tensors, place

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


class Harmful:
    """Runs code when it is unpickled carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("old", [False, True])
def test_pickles_of_tensors_are_read(tmp_path: Path, old: bool) -> None:
    """Both of PyTorch's formats give shapes and tensors, from an inner table if asked."""
    path = tmp_path / "model.pt"
    torch.save({"module": TENSORS, "step": 3}, path, _use_new_zipfile_serialization=not old)
    file = open_tensors(path, "module")
    assert file.shapes == {"a.weight": [2, 3], "b": [4]}
    assert all(torch.equal(file.read(key), value) for key, value in TENSORS.items())
    with pytest.raises(ValueError, match="no table of tensors under 'state_dict'"):
        open_tensors(path, "state_dict")


def test_safetensors_are_read(tmp_path: Path) -> None:
    """Shapes and tensors are those that were written."""
    save_file(TENSORS, tmp_path / "m.safetensors")
    file = open_tensors(tmp_path / "m.safetensors")
    assert file.shapes == {"a.weight": [2, 3], "b": [4]}
    assert all(torch.equal(file.read(key), value) for key, value in TENSORS.items())


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt"])
@pytest.mark.parametrize("kept", [0, 5, 100, -10])
def test_short_files_are_refused(tmp_path: Path, name: str, kept: int) -> None:
    """A file cut anywhere raises with its name and says to download it again."""
    path = tmp_path / name
    if name.endswith("pt"):
        torch.save(TENSORS, path)
    else:
        save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=rf"{name} is cut short.*download it again"):
        open_tensors(path)


def test_code_is_refused_and_not_run(tmp_path: Path) -> None:
    """A pickle that holds code raises, and the code leaves no trace."""
    torch.save({"module": {"a": torch.zeros(1), "b": Harmful(tmp_path / "ran")}}, tmp_path / "m.pt")
    with pytest.raises(ValueError, match="holds more than tensors"):
        open_tensors(tmp_path / "m.pt", "module")
    assert not (tmp_path / "ran").exists()


def test_missing_files_and_pointers_are_told_apart(tmp_path: Path) -> None:
    """A missing file and a git-lfs pointer each name their cure."""
    with pytest.raises(ValueError, match="is missing"):
        open_tensors(tmp_path / "m.pt")
    (tmp_path / "m.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        open_tensors(tmp_path / "m.pt")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite(number: float, dtype: torch.dtype) -> None:
    """One bad number anywhere is found; whole numbers and empty tensors are finite."""
    tensor = torch.zeros(1000, dtype=dtype)
    assert is_finite(tensor)
    tensor[777] = number
    assert not is_finite(tensor)
    assert is_finite(torch.ones(3, dtype=torch.int64)) and is_finite(torch.zeros(0))


def test_place_keeps_parameters_and_buffers_apart() -> None:
    """A tensor replaces what the module has under that name, as the same kind."""
    with torch.device("meta"):
        module = nn.Sequential(nn.BatchNorm1d(2))
    place(module, "0.weight", torch.ones(2))
    place(module, "0.running_mean", torch.ones(2))
    assert isinstance(module[0].weight, nn.Parameter) and not module[0].weight.requires_grad
    assert not isinstance(module[0].running_mean, nn.Parameter)
    assert torch.equal(module.state_dict()["0.running_mean"], torch.ones(2))
    assert module.state_dict()["0.running_var"].is_meta

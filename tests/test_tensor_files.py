"""Reading files of tensors, good and bad ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.loading.tensor_files import is_finite, open_tensors, write_safetensors

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


@pytest.mark.parametrize("old", [False, True])
def test_code_is_refused_and_not_run(tmp_path: Path, old: bool) -> None:
    """A pickle that holds code raises, in either of PyTorch's formats, and the code leaves no trace."""
    harmful = {"module": {"a": torch.zeros(1), "b": Harmful(tmp_path / "ran")}}
    torch.save(harmful, tmp_path / "m.pt", _use_new_zipfile_serialization=not old)
    with pytest.raises(ValueError, match="holds more than tensors"):
        open_tensors(tmp_path / "m.pt", "module")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kept", [60, 200, 300, -4])
def test_short_files_of_the_old_format_are_refused(tmp_path: Path, kept: int) -> None:
    """Wherever PyTorch's older format is cut, the error is the same."""
    torch.save(TENSORS, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "m.pt").write_bytes((tmp_path / "m.pt").read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"m.pt is cut short.*download it again"):
        open_tensors(tmp_path / "m.pt")


@pytest.mark.parametrize("content", [b"hello there " * 9, b"<!DOCTYPE html><html>", b"{}", b"\x80\x02}q\x00."])
def test_pages_and_texts_are_no_weights(tmp_path: Path, content: bytes) -> None:
    """What a failed download may leave under the file's name is refused with the name and the cure."""
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"m.pt (is|holds) .*download it again"):
        open_tensors(tmp_path / "m.pt", "module")


def test_odd_tensors_are_refused(tmp_path: Path) -> None:
    """Sparse tensors are no weights."""
    torch.save({"a": torch.ones(2, 2).to_sparse()}, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"m.pt holds sparse or quantized tensors \(a\)"):
        open_tensors(tmp_path / "m.pt")


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


def test_unfinished_downloads_are_named(tmp_path: Path) -> None:
    """Where only the part of a file lies that was downloaded so far, the message says so."""
    (tmp_path / "m.safetensors.incomplete").write_bytes(b"123")
    with pytest.raises(ValueError, match=r"m.safetensors is missing, its download was not finished"):
        open_tensors(tmp_path / "m.safetensors")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Tensors of every type, shape and stride come back, by this engine and by the library; files are not replaced."""
    tensors = TENSORS | {
        "scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), "turned": torch.arange(6.0).view(2, 3).T,
        "long": torch.arange(1 << 20), "half": torch.ones(3, dtype=torch.float16), "flag": torch.tensor([True, False]),
    }  # fmt: skip
    path = tmp_path / "m.safetensors"
    assert write_safetensors(path, tensors) == []
    file, other = open_tensors(path), load_file(path)
    assert file.shapes.keys() == other.keys() == tensors.keys()
    for key, value in tensors.items():
        assert torch.equal(file.read(key), value) and torch.equal(other[key], value)
        assert file.read(key).dtype == value.dtype
    with pytest.raises(FileExistsError):
        write_safetensors(path, tensors)


def test_writing_names_every_bad_tensor(tmp_path: Path) -> None:
    """Tensors with NaN or infinities anywhere are reported by key."""
    tensors = {name: torch.zeros(1 << 20) for name in "abc"}
    tensors["a"][-1], tensors["c"][5] = float("nan"), float("-inf")
    assert write_safetensors(tmp_path / "m.safetensors", tensors) == ["a", "c"]


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt"])
def test_a_closed_file_opens_itself_again(tmp_path: Path, name: str) -> None:
    """Reading after `close` gives the same tensors."""
    path = tmp_path / name
    if name.endswith("pt"):
        torch.save(TENSORS, path)
    else:
        save_file(TENSORS, path)
    file = open_tensors(path)
    file.close()
    assert all(torch.equal(file.read(key), value) for key, value in TENSORS.items())


def test_large_numbers_are_finite() -> None:
    """A tensor whose sum overflows is finite all the same."""
    assert is_finite(torch.full((100,), 3e38)) and is_finite(torch.full((100,), 6e4, dtype=torch.float16))

"""Reading files of tensors, good and bad ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.loading.tensor_files import is_finite, open_tensors, write_safetensors

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
KINDS = ("safetensors", "new", "old")  # the last two are PyTorch's


class Harmful:
    """Runs code when it is unpickled carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def write(folder: Path, kind: str, content: object = TENSORS) -> Path:
    path = folder / ("m.safetensors" if kind == "safetensors" else "m.pt")
    if kind == "safetensors":
        save_file(content, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "new")
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_are_read(tmp_path: Path, kind: str) -> None:
    """Every format gives shapes and tensors, and opens itself again after it was closed."""
    file = open_tensors(write(tmp_path, kind))
    for _ in range(2):
        assert file.shapes == {"a.weight": [2, 3], "b": [4]}
        assert all(torch.equal(file.read(key), value) for key, value in TENSORS.items())
        file.close()


@pytest.mark.parametrize("kind", KINDS[1:])
def test_inner_tables_are_read(tmp_path: Path, kind: str) -> None:
    """A pickle's inner table is read if asked for; another name is refused."""
    path = write(tmp_path, kind, {"module": TENSORS, "step": 3})
    assert open_tensors(path, "module").shapes == {"a.weight": [2, 3], "b": [4]}
    with pytest.raises(ValueError, match="no table of tensors under 'state_dict'"):
        open_tensors(path, "state_dict")


@pytest.mark.parametrize(("kind", "kept"), [
    *((kind, kept) for kind in KINDS[:2] for kept in (0, 5, 100, -10)), *(("old", kept) for kept in (60, 200, 300, -4))
])  # fmt: skip
def test_short_files_are_refused(tmp_path: Path, kind: str, kept: int) -> None:
    """A file cut anywhere raises with its name and says to download it again."""
    path = write(tmp_path, kind)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=rf"{path.name} is cut short.*download it again"):
        open_tensors(path)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_code_is_refused_and_not_run(tmp_path: Path, kind: str) -> None:
    """A pickle that holds code raises, and the code leaves no trace."""
    path = write(tmp_path, kind, {"module": {"a": torch.zeros(1), "b": Harmful(tmp_path / "ran")}})
    with pytest.raises(ValueError, match="holds more than tensors"):
        open_tensors(path, "module")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"hello there " * 9, b"<!DOCTYPE html><html>", b"{}", b"\x80\x02}q\x00."])
def test_pages_and_texts_are_no_weights(tmp_path: Path, content: bytes) -> None:
    """What a failed download may leave under the file's name is refused with the name and the cure."""
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"m.pt (is|holds) .*download it again"):
        open_tensors(tmp_path / "m.pt", "module")


def test_odd_and_missing_files_are_told_apart(tmp_path: Path) -> None:
    """Sparse tensors, a git-lfs pointer, an unfinished download and a missing file each name their cure."""
    with pytest.raises(ValueError, match="m.pt is missing: give"):
        open_tensors(tmp_path / "m.pt")
    (tmp_path / "m.pt.incomplete").write_bytes(b"123")
    with pytest.raises(ValueError, match=r"m.pt is missing, its download was not finished"):
        open_tensors(tmp_path / "m.pt")
    (tmp_path / "m.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        open_tensors(tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"m.pt holds sparse or quantized tensors \(a\)"):
        open_tensors(write(tmp_path, "new", {"a": torch.ones(2, 2).to_sparse()}))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite(number: float, dtype: torch.dtype) -> None:
    """One bad number anywhere is found; sums that overflow, whole numbers and empty tensors are finite."""
    tensor = torch.zeros(1000, dtype=dtype)
    assert is_finite(tensor)
    tensor[777] = number
    assert not is_finite(tensor)
    assert is_finite(torch.full((100,), torch.finfo(dtype).max / 2, dtype=dtype))
    assert is_finite(torch.ones(3, dtype=torch.int64)) and is_finite(torch.zeros(0))


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

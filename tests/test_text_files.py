"""Folders of published text encoders, good and bad ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.loading.text_files import read_text_model, text_bytes
from engine.loading.weights import text_folders

TENSOR = "encoder.block.1.layer.1.DenseReluDense.wo.weight"


@pytest.fixture
def good(published_folder: Path) -> Path:
    return text_folders(published_folder)[0]


def without_weights(path: Path) -> None:
    path.unlink()


def as_pickle(path: Path) -> None:
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()


def without_vocabulary(path: Path) -> None:
    path.with_name("spiece.model").unlink()


def cut_at(kept: int) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[:kept]) and None


def without_a_tensor(path: Path) -> None:
    tensors = load_file(path)
    del tensors[TENSOR]
    save_file(tensors, path, {"format": "pt"})


def with_number(number: float) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        tensors = load_file(path)
        tensors[TENSOR].view(-1)[-1] = number
        save_file(tensors, path, {"format": "pt"})

    return edit


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (without_weights, "holds no complete T5 encoder"),
        (as_pickle, r"holds no complete T5 encoder .*model\.safetensors"),
        (without_vocabulary, "spiece.model is missing: download"),
        *((cut_at(kept), r"t5 holds no complete T5 encoder .*: download it anew") for kept in (5, 500, -500)),
        (without_a_tensor, f"lacks {TENSOR}: download it anew"),
        *((with_number(float(bad)), f"holds NaN or infinite numbers in {TENSOR}") for bad in ("nan", "inf")),
    ],
)
def test_bad_folders_are_named(tmp_path: Path, good: Path, edit: Callable[[Path], None], said: str) -> None:
    """Lacking, cut, pickled or not finite: the folder and the fault are said before the encoder is used."""
    edit(shutil.copytree(good, tmp_path / "t5") / "model.safetensors")
    with pytest.raises(ValueError, match=said):
        read_text_model(tmp_path / "t5")


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_weights_of_one_number_format_are_found(tmp_path: Path, good: Path, variant: str) -> None:
    """An encoder whose only file is `model.fp16.safetensors` and the like is read."""
    folder = shutil.copytree(good, tmp_path / "t5")
    (folder / "model.safetensors").rename(folder / f"model.{variant}.safetensors")
    found, expected = read_text_model(folder).encoder.state_dict(), read_text_model(good).encoder.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_size_is_known_before_loading(tmp_path: Path, good: Path) -> None:
    """Bytes are those of the loaded encoder; another width and a missing description are refused."""
    encoder = read_text_model(good).encoder
    assert text_bytes(good, 16) == sum(value.nbytes for value in encoder.parameters())
    with pytest.raises(ValueError, match="a text encoder of width 16, expected 4096: download it anew"):
        text_bytes(good, 4096)
    with pytest.raises(ValueError, match="config.json is missing: download"):
        text_bytes(tmp_path, 16)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="holds no complete T5 encoder"):
        text_bytes(tmp_path, 16)

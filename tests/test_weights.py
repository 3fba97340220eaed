"""Weights on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from engine.loading.weights import (
    has_component,
    load_component,
    load_weights,
    save_component,
    text_folders,
    write_description,
)

CPU = torch.device("cpu")


def module() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    made[1].running_mean.fill_(0.1)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_component(tmp_path, "part", module())
    return tmp_path


def test_what_is_saved_is_loaded(folder: Path) -> None:
    """Parameters come back in bfloat16 precision, buffers exactly."""
    saved, loaded = module(), nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    load_component(folder, "part", loaded)
    assert torch.equal(loaded[0].weight, saved[0].weight.bfloat16().float())
    assert torch.equal(loaded[1].running_mean, saved[1].running_mean)
    assert [path.name for path in folder.iterdir()] == ["part.safetensors"]


def test_large_components_are_in_several_files(folder: Path) -> None:
    """None above the limit; those of an earlier save are gone."""
    other = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    save_component(folder, "part", other, file_bytes=20)
    files = sorted(path.name for path in folder.iterdir())
    assert files == [f"part-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    loaded = module()
    load_component(folder, "part", loaded)
    assert len(files) > 2 and torch.equal(loaded[0].weight, other[0].weight.bfloat16().float())
    save_component(folder, "part", other)
    assert [path.name for path in folder.iterdir()] == ["part.safetensors"]


@pytest.mark.parametrize(
    "names",
    [
        ["part.fp16.safetensors"],
        ["part.fp16-00001-of-00002.safetensors", "part.fp16-00002-of-00002.safetensors"],
        ["part-00001-of-00002.bf16.safetensors", "part-00002-of-00002.bf16.safetensors"],
    ],
)
def test_files_of_one_number_format_are_found(folder: Path, names: list[str]) -> None:
    """Whole or in shards, as diffusers and transformers name them."""
    tensors = load_file(folder / "part.safetensors")
    (folder / "part.safetensors").unlink()
    keys = sorted(tensors)
    for number, name in enumerate(names):
        save_file({key: tensors[key] for key in keys[number :: len(names)]}, folder / name)
    loaded = module().requires_grad_(False)
    for value in loaded.parameters():
        value.zero_()
    load_component(folder, "part", loaded)
    assert torch.equal(loaded[0].weight, module()[0].weight.bfloat16().float())
    assert has_component(folder, "part")


@pytest.mark.parametrize("length", [None, 0, 5, 60, 200])
def test_missing_and_short_files_are_refused(folder: Path, length: int | None) -> None:
    """A missing file and a half-copied one are errors that name it and the cure."""
    path = folder / "part.safetensors"
    content = path.read_bytes()
    path.unlink()
    if length is not None:
        path.write_bytes(content[:length])
    with pytest.raises(ValueError, match=r"part.safetensors is (missing: give a folder|cut short)"):
        load_component(folder, "part", module())


def test_every_fault_is_listed_and_nothing_loaded(folder: Path) -> None:
    """Missing, surplus, mis-shaped and non-finite tensors are all named at once."""
    path = folder / "part.safetensors"
    tensors = load_file(path)
    tensors["0.weight"] = torch.zeros(3, 5)
    tensors["0.bias"] = torch.tensor([0.0, float("nan"), 0.0])
    tensors["extra"] = tensors.pop("1.bias")
    save_file(tensors, path)
    target = module()
    before = target[0].weight.clone()
    with pytest.raises(ValueError) as error:
        load_component(folder, "part", target)
    for word in ("0.weight is [3, 5], expected [3, 2]", "0.bias holds", "extra [3] is not part", "1.bias is missing"):
        assert word in str(error.value)
    assert torch.equal(target[0].weight, before)


def test_a_described_folder_fills_modules_without_memory(folder: Path) -> None:
    """Modules on the meta device are filled, one component or several, and know their kind of tensor."""
    save_component(folder, "other", module())
    write_description(folder, "mini", "a test")
    with torch.device("meta"):
        made = {"part": module(), "other": module()}
    load_weights(folder, made, "mini", CPU)
    for filled in made.values():
        assert torch.equal(filled[0].weight, module()[0].weight.bfloat16().float())
        assert isinstance(filled[0].weight, nn.Parameter) and not filled[0].weight.requires_grad


@pytest.mark.parametrize(
    ("facts", "message"),
    [(None, "config.json is missing"), ('{"format": 1, "preset": "landiff"}', "preset 'landiff', not 'mini'"),
     ('{"format": 7, "preset": "mini"}', "format 7"), ("{", "damaged"), ("[]", "damaged"), ("\xff", "damaged")],
)  # fmt: skip
def test_another_description_is_refused(folder: Path, facts: str | None, message: str) -> None:
    """A folder of another preset or format, or without a readable description, is not loaded."""
    if facts is not None:
        (folder / "config.json").write_bytes(facts.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        load_weights(folder, {"part": module()}, "mini", CPU)


def test_text_encoders_lie_where_the_layout_says(folder: Path, tmp_path: Path) -> None:
    """Our own layout and the published one have folders of their own for the two encoders."""
    assert [path.name for path in text_folders(folder)] == ["planner_text", "renderer_text"]
    assert [path.name for path in text_folders(tmp_path / "published")] == ["flan-t5-xxl", "t5-v1_1-xxl"]

"""Weights on disk."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from engine.loading.weights import load_component, load_weights, save_component, text_folders, write_description
from engine.training import __main__ as command


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
    for word in ("0.weight is [3, 5], expected [3, 2]", "0.bias holds", "extra [3] is not part", "1.bias is missing"):
        assert word in str(error.value)
    assert torch.equal(target[0].weight, before)


def folder_of(path: Path) -> Path:
    save_component(path, "part", module())
    write_description(path, "mini", "a test")
    return path


def test_a_described_folder_fills_modules_without_memory(tmp_path: Path) -> None:
    """Modules on the meta device are filled, one component or several, and know their kind of tensor."""
    save_component(folder_of(tmp_path), "other", module())
    with torch.device("meta"):
        made = {"part": module(), "other": module()}
    load_weights(tmp_path, made, "mini", torch.device("cpu"))
    for filled in made.values():
        assert torch.equal(filled[0].weight, module()[0].weight.bfloat16().float())
        assert isinstance(filled[0].weight, nn.Parameter) and not filled[0].weight.requires_grad


@pytest.mark.parametrize(
    ("facts", "message"),
    [(None, "config.json is missing"), ('{"format": 1, "preset": "landiff"}', "preset 'landiff', not 'mini'"),
     ('{"format": 7, "preset": "mini"}', "format 7"), ("{", "damaged"), ("[]", "damaged"), ("\xff", "damaged")],
)  # fmt: skip
def test_another_description_is_refused(tmp_path: Path, facts: str | None, message: str) -> None:
    """A folder of another preset or format, or without a readable description, is not loaded."""
    (folder_of(tmp_path) / "config.json").unlink()
    if facts is not None:
        (tmp_path / "config.json").write_bytes(facts.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        load_weights(tmp_path, {"part": module()}, "mini", torch.device("cpu"))


def test_text_encoders_lie_where_the_layout_says(tmp_path: Path) -> None:
    """Our own layout and the published one have folders of their own for the two encoders."""
    assert [path.name for path in text_folders(tmp_path)] == ["flan-t5-xxl", "t5-v1_1-xxl"]
    assert [path.name for path in text_folders(folder_of(tmp_path))] == ["planner_text", "renderer_text"]


def test_training_says_what_its_weights_are_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that trains writes the description beside the weights."""
    monkeypatch.setattr(command, "train", lambda stage, config: None)
    assert command.main(["extractor", "--folder", str(tmp_path / "run"), "--weights", str(tmp_path / "weights")]) == 0
    facts = json.loads((tmp_path / "weights" / "config.json").read_text())
    assert facts == {"format": 1, "preset": "mini", "made_by": "python -m engine.training"}

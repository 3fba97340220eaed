"""The published layout: names of every tensor, precedence, strictness."""

from __future__ import annotations

import json
from pathlib import Path

import checkpoint
import pytest
import torch

from engine.landiff import LandiffConfig, build, load
from engine.published import FILES, check_memory, fill, open_published

CPU = torch.device("cpu")
LISTING = json.loads((Path(__file__).parent / "data" / "checkpoint_keys.json").read_text())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoint.make_folder(tmp_path)
    return tmp_path


def read(folder: Path) -> dict[str, torch.Tensor]:
    """COMPONENT.NAME -> tensor of a folder, loaded."""
    modules = load(folder, checkpoint.TINY, CPU, torch.float32)
    return {f"{part}.{name}": value for part, module in modules.items() for name, value in module.state_dict().items()}


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        load(folder, checkpoint.TINY, CPU, torch.float32)
    return str(caught.value)


def test_every_published_tensor_has_one_place() -> None:
    """At full size each key of each file is one parameter or buffer of the same shape, and none is left over."""
    modules = build(LandiffConfig())
    filled = set()
    for file in FILES:
        listed = {key: value[0] for key, value in LISTING[file.name].items() if not key.startswith("__")}
        ours = file.keys(modules)
        shapes = {
            f"{part}.{name}": list(value.shape) for part, m in modules.items() for name, value in m.state_dict().items()
        }
        assert {key: shapes[target] for key, target in ours.items()} == listed
        assert len(set(ours.values())) == len(ours)
        filled |= set(ours.values())
    assert filled == set(shapes)
    extra = next(file for file in FILES if file.name == checkpoint.DIFFUSION).keys(modules, required=False)
    assert set(LISTING[checkpoint.DIFFUSION]["__optional__"]) <= set(extra)


def test_modules_are_filled_with_what_the_files_hold(tmp_path: Path) -> None:
    """Every tensor is that of its file; of the tokenizer's two copies the one in the diffusion file counts."""
    contents = checkpoint.make_folder(tmp_path)
    loaded = read(tmp_path)
    for file in FILES:
        for key, target in file.keys(checkpoint.MODULES).items():
            if file.name != checkpoint.TOKENIZER:
                assert torch.equal(loaded[target], contents[file.name][key]), target
    assert not any(value.is_meta for value in loaded.values())


def test_the_diffusion_file_overrides(folder: Path) -> None:
    """Tensors of the base network and the autoencoder that it holds beside its own come before the other files'."""
    file = next(file for file in FILES if file.name == checkpoint.DIFFUSION)
    extra = checkpoint.published_tensors(file, 50, required=False)
    own = checkpoint.published_tensors(file, 51)
    checkpoint.write(folder, checkpoint.DIFFUSION, own | extra | {"conditioner.embedders.0.x": torch.zeros(1)})
    loaded = read(folder)
    for key, target in file.keys(checkpoint.MODULES, required=False).items():
        assert torch.equal(loaded[target], extra[key]), key


def test_latest_names_the_checkpoint(folder: Path) -> None:
    """Another number in `latest` is followed; one that is no folder's name is refused."""
    (folder / "diffusion/1").rename(folder / "diffusion/2")
    assert "diffusion/1/" in refusal(folder)
    (folder / "diffusion/latest").write_text("2")
    read(folder)
    (folder / "diffusion/latest").write_text("../../etc")
    assert "expected the name of the folder" in refusal(folder)


def test_frozen_parts_in_the_files_are_passed_over(folder: Path) -> None:
    """Copies of tokenizer and text encoder in the planner's file, and losses in the autoencoder's, do no harm."""
    for name, key in ((checkpoint.PLANNER, "cond_model.text_encoder.x"), (checkpoint.VAE, "loss.logvar")):
        file = next(file for file in FILES if file.name == name)
        checkpoint.write(folder, name, checkpoint.published_tensors(file, 3) | {key: torch.zeros(2)})
    read(folder)


@pytest.mark.parametrize("name", [file.name for file in FILES])
def test_all_faults_are_listed(folder: Path, name: str) -> None:
    """Missing, surplus and mis-shaped tensors of a file are named at once, with what was expected."""
    file = next(file for file in FILES if file.name == name)
    tensors = checkpoint.published_tensors(file, 3)
    gone, wrong, *_ = sorted(key for key in tensors if key.endswith(".weight"))
    shape = list(tensors[gone].shape)
    del tensors[gone]
    tensors[wrong] = torch.zeros(3, 3, 3)
    tensors["surprise.weight"] = torch.zeros(2)
    checkpoint.write(folder, name, tensors)
    said = refusal(folder)
    assert f"{name}: {gone} is missing, expected {shape}" in said
    assert f"{name}: {wrong} is [3, 3, 3], expected [" in said
    assert f"{name}: surprise.weight [2] is not part of the model" in said


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_must_be_finite(folder: Path, number: float) -> None:
    """Every tensor with NaN or infinity is named."""
    bad = []
    for name in (checkpoint.PLANNER, checkpoint.VAE):
        file = next(file for file in FILES if file.name == name)
        tensors = checkpoint.published_tensors(file, 3)
        bad.append((name, sorted(tensors)[5]))
        tensors[bad[-1][1]].view(-1)[-1] = number
        checkpoint.write(folder, name, tensors)
    said = refusal(folder)
    assert all(f"{name}: {key} holds NaN or infinite" in said for name, key in bad)


def test_missing_files_are_all_named(folder: Path) -> None:
    """A folder that lacks files names each; an empty one names all."""
    (folder / checkpoint.VAE).unlink()
    (folder / checkpoint.PLANNER).unlink()
    said = refusal(folder)
    assert f"{checkpoint.VAE} is missing" in said and f"{checkpoint.PLANNER} is missing" in said
    assert checkpoint.TOKENIZER not in said
    assert "is no folder" in refusal(folder / "nothing")


def test_swapped_files_are_refused(folder: Path) -> None:
    """The planner's weights in the tokenizer's place do not fit, and the message says where."""
    (folder / checkpoint.TOKENIZER).write_bytes((folder / checkpoint.PLANNER).read_bytes())
    said = refusal(folder)
    assert f"{checkpoint.TOKENIZER}: encoder.IFrame_latent_tokens is missing" in said
    assert f"{checkpoint.TOKENIZER}: transformer.head.weight" in said


def test_nothing_is_placed_when_names_are_wrong(folder: Path) -> None:
    """Modules stay on the meta device if any file has a fault."""
    file = next(file for file in FILES if file.name == checkpoint.VAE)
    tensors = checkpoint.published_tensors(file, 3)
    del tensors[sorted(tensors)[0]]
    checkpoint.write(folder, checkpoint.VAE, tensors)
    modules = build(checkpoint.TINY)
    with pytest.raises(ValueError):
        fill(modules, open_published(folder, modules), CPU)
    assert all(value.is_meta for module in modules.values() for value in module.state_dict().values())


def test_dtype_and_progress(folder: Path) -> None:
    """Floating tensors take the asked type, and progress ends at its total."""
    steps: list[tuple[int, int]] = []
    modules = load(folder, checkpoint.TINY, CPU, torch.bfloat16, lambda done, total: steps.append((done, total)))
    assert all(value.dtype == torch.bfloat16 for module in modules.values() for value in module.state_dict().values())
    assert steps[-1][0] == steps[-1][1] == len(steps)


def test_too_little_memory_is_said_with_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """At full size in float32 a small host is refused before anything is read."""

    class Host:
        available = 8_000_000_000

    monkeypatch.setattr("engine.published.psutil.virtual_memory", lambda: Host)
    with pytest.raises(ValueError, match=r"need 21\.\d GB in float32.*only 8\.0 GB free"):
        check_memory(build(LandiffConfig()), CPU, torch.float32)

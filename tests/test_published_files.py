"""The published layout: names of every tensor, precedence, strictness."""

from __future__ import annotations

import json
import os
from pathlib import Path

import checkpoint
import pytest
import torch
from checkpoint import DIFFUSION, PLANNER, TOKENIZER, VAE

from engine.config import preset
from engine.loading.filling import fill, shapes_of
from engine.loading.modules import build
from engine.loading.published_files import EXTRACTOR, FILES, open_published
from engine.loading.published_names_semantic import THEIA_SPELLINGS, to_ours
from engine.loading.weights import SHIPPED, load_weights
from engine.semantic.theia import Theia
from engine.semantic.tokenizer import SemanticTokenizer

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoint.make_folder(tmp_path / "published")
    return tmp_path / "published"


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        checkpoint.read(folder)
    return str(caught.value)


def test_every_tensor_has_one_place() -> None:
    """At full size each parameter and buffer comes from one file, or from two that both have the tokenizer."""
    modules = build(preset("landiff"))
    sources = [target for file in FILES for target in file.keys(modules).values()]
    assert set(sources) == set(shapes_of(modules))
    twice = {target for target in sources if sources.count(target) > 1}
    assert twice == set(shapes_of({"tokenizer": modules["tokenizer"]}))
    listing = json.loads((Path(__file__).parent / "data" / "checkpoint_keys.json").read_text())
    optional = checkpoint.published_file(DIFFUSION).keys(modules, required=False)
    assert set(listing[DIFFUSION]["__optional__"]) <= set(optional)


def test_modules_are_filled_with_what_the_files_hold(tmp_path: Path) -> None:
    """Every tensor is that of its file; of the tokenizer's two copies the one in the diffusion file counts."""
    contents = checkpoint.make_folder(tmp_path)
    loaded = checkpoint.read(tmp_path)
    for file in FILES:
        for key, target in file.keys(checkpoint.MODULES).items():
            if file.name != TOKENIZER:
                assert torch.equal(loaded[target], contents[file.name][key]), target
    assert not any(value.is_meta for value in loaded.values())


def test_the_diffusion_file_overrides(folder: Path) -> None:
    """Tensors of the base network and the autoencoder that it holds beside its own come before the other files'."""
    extra = checkpoint.published_tensors(DIFFUSION, 50, required=False)
    own = checkpoint.published_tensors(DIFFUSION, 51)
    checkpoint.write(folder, DIFFUSION, own | extra | {"conditioner.embedders.0.x": torch.zeros(1)})
    loaded = checkpoint.read(folder)
    for key, target in checkpoint.published_file(DIFFUSION).keys(checkpoint.MODULES, required=False).items():
        assert torch.equal(loaded[target], extra[key]), key


def test_latest_names_the_checkpoint(folder: Path) -> None:
    """Another number in `latest` is followed; one that is no folder's name is refused."""
    (folder / "diffusion/1").rename(folder / "diffusion/2")
    assert "diffusion/1/" in refusal(folder)
    (folder / "diffusion/latest").write_text("2")
    checkpoint.read(folder)
    (folder / "diffusion/latest").write_text("../../etc")
    assert "expected the name of the folder" in refusal(folder)


def test_frozen_parts_in_the_files_are_passed_over(folder: Path) -> None:
    """Copies of tokenizer and text encoder in the planner's file, and losses in the autoencoder's, do no harm."""
    for name, key in ((PLANNER, "cond_model.text_encoder.x"), (VAE, "loss.logvar")):
        checkpoint.edit(folder, name, lambda tensors, key=key: tensors.update({key: torch.zeros(2)}))
    checkpoint.read(folder)


@pytest.mark.parametrize("name", [file.name for file in FILES])
def test_all_faults_are_listed(folder: Path, name: str) -> None:
    """Missing, surplus and mis-shaped tensors are named at once, with what was expected; nothing is placed."""
    tensors = checkpoint.stored(folder, name)
    gone, wrong, *_ = sorted(key for key in tensors if key.endswith(".weight"))
    shape = list(tensors.pop(gone).shape)
    tensors |= {wrong: torch.zeros(3, 3, 3), "surprise.weight": torch.zeros(2)}
    checkpoint.write(folder, name, tensors)
    modules = build(checkpoint.TINY)
    with pytest.raises(ValueError) as caught:
        fill(modules, open_published(folder, modules), CPU)
    assert f"{name}: {gone} is missing, expected {shape}" in str(caught.value)
    assert f"{name}: {wrong} is [3, 3, 3], expected [" in str(caught.value)
    assert f"{name}: surprise.weight [2] is not part of the model" in str(caught.value)
    assert all(value.is_meta for module in modules.values() for value in module.state_dict().values())


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_must_be_finite(folder: Path, number: float) -> None:
    """Every tensor with NaN or infinity is named."""
    bad = []
    for name in (PLANNER, VAE):
        tensors = checkpoint.stored(folder, name)
        bad.append((name, sorted(tensors)[5]))
        tensors[bad[-1][1]].view(-1)[-1] = number
        checkpoint.write(folder, name, tensors)
    said = refusal(folder)
    assert all(f"{name}: {key} holds NaN or infinite" in said for name, key in bad)


def test_missing_and_swapped_files_are_named(folder: Path) -> None:
    """Each missing file is named; the planner's weights do not fit the tokenizer, and the message says where."""
    planner = (folder / PLANNER).read_bytes()
    for name in (VAE, PLANNER):
        (folder / name).unlink()
    said = refusal(folder)
    assert f"{VAE} is missing" in said and f"{PLANNER} is missing" in said and TOKENIZER not in said
    assert "is no folder" in refusal(folder / "nothing")
    checkpoint.make_folder(folder)
    (folder / TOKENIZER).write_bytes(planner)
    said = refusal(folder)
    assert f"{TOKENIZER}: encoder.IFrame_latent_tokens is missing" in said
    assert f"{TOKENIZER}: transformer.head.weight" in said


def test_dtype_and_progress(folder: Path) -> None:
    """Floating tensors take the asked type, and progress ends at its total."""
    steps: list[tuple[int, int]] = []
    modules = build(checkpoint.TINY)
    dtypes = dict.fromkeys(checkpoint.SHAPES, torch.bfloat16)
    load_weights(folder, modules, "landiff", CPU, dtypes, lambda done, total: steps.append((done, total)))
    assert all(value.dtype == torch.bfloat16 for module in modules.values() for value in module.state_dict().values())
    assert steps[-1][0] == steps[-1][1] and len(steps) == len(checkpoint.SHAPES)


@pytest.mark.parametrize("spelling", range(len(THEIA_SPELLINGS)))
def test_the_extractor_is_filled_by_any_spelling(tmp_path: Path, spelling: int) -> None:
    """Theia's file fills the module, whichever version of transformers wrote its names; its heads are passed over."""
    expected = checkpoint.make_extractor(tmp_path, spelling)
    with torch.device("meta"):
        theia = Theia(checkpoint.TINY.theia)
    load_weights(tmp_path, {"theia": theia}, "landiff", CPU)
    assert all(torch.equal(value, expected[name]) for name, value in theia.state_dict().items())


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("embeddings.patch_embeddings.projection.bias", "patch_embed.bias"),
        ("encoder.layer.11.attention.attention.key.weight", "blocks.11.key.weight"),
        ("encoder.layer.3.attention.output.dense.bias", "blocks.3.out.bias"),
        ("encoder.layer.0.output.dense.weight", "blocks.0.down.weight"),
        ("layernorm.weight", "norm.weight"),
    ],
)
def test_released_names_of_the_extractor(name: str, ours: str) -> None:
    """The names that transformers 4 wrote for a vision transformer lead to ours."""
    assert to_ours(f"backbone.model.{name}", THEIA_SPELLINGS[0]) == ours


def test_a_lack_of_the_extractor_is_named(folder: Path) -> None:
    """The file is only asked for when the extractor is, and a wrong one says what is missing."""
    theia = {"theia": Theia(checkpoint.TINY.theia)}
    with pytest.raises(ValueError, match=f"{EXTRACTOR} is missing, .* the file from theiainstitute/theia-base"):
        load_weights(folder, theia, "landiff", CPU)
    (folder / EXTRACTOR).parent.mkdir()
    (folder / EXTRACTOR).write_bytes((folder / TOKENIZER).read_bytes())
    with pytest.raises(ValueError, match=r"backbone.model.embeddings.cls_token is missing, expected \[1, 1, 6\]"):
        load_weights(folder, theia, "landiff", CPU)


def test_some_components_alone(folder: Path) -> None:
    """The tokenizer alone is read from its two files, the rest of which is passed over; a stranger's key is not."""
    (folder / PLANNER).unlink()
    alone = {"tokenizer": SemanticTokenizer(checkpoint.TINY.tokenizer)}
    load_weights(folder, alone, "landiff", CPU)
    key = "model.control_model.diffusion_model.semantic_conditioner.semantic_model.model.mean"
    assert torch.equal(alone["tokenizer"].get_buffer("mean"), checkpoint.stored(folder, DIFFUSION)[key])
    checkpoint.edit(folder, DIFFUSION, lambda tensors: tensors.update({"model.control_model.other": torch.zeros(1)}))
    with pytest.raises(ValueError, match=r"a fault.*\n.*model.control_model.other \[1\] is not part"):
        load_weights(folder, alone, "landiff", CPU)


class Harmful:
    """Runs code when it is unpickled carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_bad_folders_are_told_apart(folder: Path, tmp_path: Path) -> None:
    """Empty folders, files cut short, half downloaded or with code, and other models' folders each have their word."""
    empty, vae = tmp_path / "empty", folder / VAE
    empty.mkdir()
    assert "empty holds no weights: give the folder of the published files, a download of yin" in refusal(empty)
    (empty / "llm").mkdir()
    assert all(f"{file.name} is missing" in refusal(empty) for file in FILES)
    vae.write_bytes(vae.read_bytes()[:-1000])
    assert f"{VAE} is cut short" in refusal(folder)
    vae.rename(vae.with_name(vae.name + ".incomplete"))
    assert "its download was not finished" in refusal(folder)
    checkpoint.write(folder, VAE, {"code": Harmful(tmp_path / "ran")})  # type: ignore[dict-item]
    assert "holds more than tensors, perhaps code; it was not run" in refusal(folder)
    assert not (tmp_path / "ran").exists()
    assert "preset 'mini', not 'landiff'" in refusal(SHIPPED / "mini")
    with pytest.raises(ValueError, match="holds published files, which are of preset 'landiff', not 'mini'"):
        load_weights(folder, {}, "mini", CPU)

"""Published weights written anew in our own layout."""

from __future__ import annotations

import json
from pathlib import Path

import checkpoint
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.__main__ import main
from engine.loading.convert import check_folder, convert
from engine.loading.weights import load_weights, text_folders
from engine.semantic.theia import Theia

CPU = torch.device("cpu")
SHARD_BYTES = 40_000


@pytest.fixture
def published(tmp_path: Path) -> Path:
    checkpoint.make_folder(tmp_path / "published")
    return tmp_path / "published"


@pytest.fixture
def out(published: Path, tmp_path: Path) -> Path:
    convert(published, tmp_path / "out", checkpoint.TINY, shard_bytes=SHARD_BYTES)
    return tmp_path / "out"


def test_what_is_converted_loads_the_same(published: Path, out: Path, tmp_path: Path) -> None:
    """Every tensor equals the published one, also after converting again; components are cut into shards."""
    convert(out, tmp_path / "again", checkpoint.TINY)
    theirs = checkpoint.read(published)
    for folder in (out, tmp_path / "again"):
        ours = checkpoint.read(folder)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert {path.name.split("-")[0].split(".")[0] for path in folder.iterdir()} == {
            "tokenizer", "planner", "renderer", "vae", "config",
        }  # fmt: skip
        facts = json.loads((folder / "config.json").read_text())
        assert facts == {"format": 1, "preset": "landiff", "made_by": "python -m engine convert"}
    assert len(list(out.glob("renderer-*-of-*.safetensors"))) > 1
    assert (tmp_path / "again" / "renderer.safetensors").is_file()


def test_types_and_progress(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file in bfloat16 is converted in bfloat16; the bar tells that all bytes are written."""
    path = published / checkpoint.PLANNER
    save_file({key: value.bfloat16() for key, value in load_file(path).items()}, path)
    convert(published, tmp_path / "out", checkpoint.TINY)
    assert {value.dtype for value in load_file(tmp_path / "out" / "planner.safetensors").values()} == {torch.bfloat16}
    assert torch.float32 in {value.dtype for value in load_file(tmp_path / "out" / "vae.safetensors").values()}
    assert "out: 100%" in capsys.readouterr().err


def test_wrong_shards_are_named(out: Path) -> None:
    """A shard without a tensor, a missing one, and another component's file each raise with the file."""
    shard = sorted(out.glob("renderer-*"))[1]
    content = load_file(shard)
    gone = sorted(content)[0]
    save_file({key: value for key, value in content.items() if key != gone}, shard)
    with pytest.raises(ValueError, match=rf"renderer.*{gone} is missing"):
        checkpoint.read(out)
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name} is missing"):
        checkpoint.read(out)
    save_file(content, shard)
    for path in out.glob("tokenizer*"):
        path.unlink()
    (out / "tokenizer.safetensors").write_bytes(next(out.glob("planner*")).read_bytes())
    with pytest.raises(ValueError, match=r"tokenizer.safetensors: encoder.*is missing"):
        checkpoint.read(out)


def test_a_fault_leaves_nothing_behind(published: Path, tmp_path: Path) -> None:
    """Every tensor with NaN, in several files, and names that do not fit are named; no part of a folder is left."""
    bad = []
    for name in (checkpoint.PLANNER, checkpoint.VAE, checkpoint.DIFFUSION):
        tensors = checkpoint.stored(published, name)
        for key in sorted(tensors)[-2:]:
            tensors[key].view(-1)[-1] = float("nan")
            bad.append((name, key))
        checkpoint.write(published, name, tensors)
    with pytest.raises(ValueError, match=f"{len(bad)} faults") as caught:
        convert(published, tmp_path / "out", checkpoint.TINY)
    assert all(f"{name}: {key} holds NaN" in str(caught.value) for name, key in bad)
    checkpoint.edit(published, checkpoint.VAE, lambda tensors: tensors.popitem())
    with pytest.raises(ValueError, match="is missing, expected"):
        convert(published, tmp_path / "out", checkpoint.TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["published"]


def test_what_is_there_is_not_touched(published: Path, tmp_path: Path) -> None:
    """A folder that holds something, and what an interrupted conversion left, are refused and kept."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        convert(published, tmp_path / "out", checkpoint.TINY)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
    (tmp_path / "other.part").mkdir()
    with pytest.raises(ValueError, match=r"other.part is left of a conversion"):
        convert(published, tmp_path / "other", checkpoint.TINY)
    assert (tmp_path / "other.part").is_dir()


def test_the_folder_of_the_work_is_one(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty one is taken under whatever name it has."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    check_folder(Path())
    (tmp_path / "here" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="here is not empty"):
        check_folder(Path())


def test_a_folder_that_cannot_be_made_is_refused(published: Path, tmp_path: Path) -> None:
    """Before any weights are looked at, with what is wrong and a cure."""
    (tmp_path / "file").write_text("mine")
    for out, said in ((tmp_path / ("x" * 255), "too long.*shorter"), (tmp_path / "file" / "out", "Not a directory")):
        with pytest.raises(OSError, match=said):
            convert(published, out, checkpoint.TINY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "published"]


def test_the_command_names_faults(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights of another size, a source that is none, and with --md5 other files end with status 2 and the reason."""
    out = str(tmp_path / "out")
    for arguments, said in (
        ([str(published), out], ("faults in the weights", "expected [2055, 2048]")),
        (["no such/place/here", out], ("neither a folder nor a hub id",)),
        ([str(published), out, "--md5"], ("llm/model.safetensors has md5", "db87f2939b0e0a0f4bc74ac8a04ce920")),
    ):
        assert main(["convert", *arguments]) == 2
        error = capsys.readouterr().err
        assert all(words in error for words in said)


def test_extractor_and_text_come_along(published: Path, tmp_path: Path) -> None:
    """Theia and the text encoders are in the new folder if the old one has them; other frameworks' files are not."""
    expected = checkpoint.make_extractor(published)
    for text in text_folders(published):
        text.mkdir(parents=True)
        (text / "config.json").write_text("{}")
        (text / "tf_model.h5").write_text("x")
    convert(published, tmp_path / "out", checkpoint.TINY)
    convert(tmp_path / "out", tmp_path / "again", checkpoint.TINY)
    for folder in (tmp_path / "out", tmp_path / "again"):
        with torch.device("meta"):
            theia = Theia(checkpoint.TINY.theia)
        load_weights(folder, {"theia": theia}, "landiff", CPU)
        assert all(torch.equal(value, expected[name]) for name, value in theia.state_dict().items())
        assert all([path.name for path in text.iterdir()] == ["config.json"] for text in text_folders(folder))

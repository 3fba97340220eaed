"""Published weights written anew in our own layout."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import checkpoint
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.loading import convert as converter
from engine.loading.convert import convert, main
from engine.loading.published_files import FILES
from engine.loading.weights import load_weights, text_folders
from engine.semantic.theia import Theia

CPU = torch.device("cpu")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    checkpoint.make_folder(tmp_path / "published")
    return tmp_path / "published"


@pytest.fixture
def out(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(converter, "SHARD_BYTES", 40_000)
    convert(published, tmp_path / "out", checkpoint.TINY)
    return tmp_path / "out"


def test_what_is_converted_loads_the_same(published: Path, out: Path) -> None:
    """Every tensor equals the one loaded from the published files, and components are cut into shards."""
    ours, theirs = checkpoint.read(out), checkpoint.read(published)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert len(list(out.glob("renderer-*-of-*.safetensors"))) > 1
    assert {path.name.split("-")[0].split(".")[0] for path in out.iterdir()} == {
        "tokenizer", "planner", "renderer", "vae", "config",
    }  # fmt: skip


def test_what_is_converted_can_be_converted(out: Path, tmp_path: Path) -> None:
    """Our own layout is a source like any other; without shards each component is one file."""
    convert(out, tmp_path / "again", checkpoint.TINY)
    first, again = checkpoint.read(out), checkpoint.read(tmp_path / "again")
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_types_stay_as_stored(published: Path, tmp_path: Path) -> None:
    """A file in bfloat16 is converted in bfloat16."""
    path = published / checkpoint.PLANNER
    save_file({key: value.bfloat16() for key, value in load_file(path).items()}, path)
    convert(published, tmp_path / "out", checkpoint.TINY)
    assert {value.dtype for value in load_file(tmp_path / "out" / "planner.safetensors").values()} == {torch.bfloat16}
    assert torch.float32 in {value.dtype for value in load_file(tmp_path / "out" / "vae.safetensors").values()}


def test_a_lost_shard_is_named(out: Path) -> None:
    """A missing shard, and one whose tensors are gone, each raise with the file."""
    shard = sorted(out.glob("renderer-*"))[1]
    content = load_file(shard)
    gone = sorted(content)[0]
    kept = {key: value for key, value in content.items() if key != gone}
    save_file(kept, shard)
    with pytest.raises(ValueError, match=rf"renderer.*{gone} is missing"):
        checkpoint.read(out)
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name} is missing"):
        checkpoint.read(out)


def test_progress_ends_at_its_total(published: Path, tmp_path: Path) -> None:
    """What is written and what there is to write agree, shard by shard."""
    steps: list[tuple[int, int]] = []
    convert(published, tmp_path / "out", checkpoint.TINY, lambda done, total: steps.append((done, total)))
    assert len(steps) == 4 and steps[-1][0] == steps[-1][1] and len({total for _, total in steps}) == 1
    assert all(earlier[0] < later[0] for earlier, later in itertools.pairwise(steps))


def test_a_fault_leaves_nothing_behind(published: Path, tmp_path: Path) -> None:
    """NaN late in the files, or names that do not fit, leave neither the folder nor a part of it."""
    for broken in (torch.tensor(float("nan")), None):
        file = next(file for file in FILES if file.name == checkpoint.VAE)
        tensors = checkpoint.published_tensors(file, 3)
        key = sorted(tensors)[-1]
        if broken is None:
            del tensors[key]
        else:
            tensors[key].fill_(float(broken))
        checkpoint.write(published, checkpoint.VAE, tensors)
        with pytest.raises(ValueError, match=key):
            convert(published, tmp_path / "out", checkpoint.TINY)
        assert [path.name for path in tmp_path.iterdir()] == ["published"]


def test_a_full_folder_is_not_touched(published: Path, tmp_path: Path) -> None:
    """An output folder that holds something is refused and keeps it."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        convert(published, tmp_path / "out", checkpoint.TINY)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_command_reports_faults(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights of another size end with status 2, each fault on a line of its own."""
    assert main([str(published), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "faults in the weights" in said and "expected [2055, 2048]" in said
    assert main(["no such/place/here", str(tmp_path / "out")]) == 2
    assert "neither a folder nor a hub id" in capsys.readouterr().err


def test_description_says_what_is_there(out: Path) -> None:
    """The description names preset and components."""
    facts = json.loads((out / "config.json").read_text())
    assert facts == {"format": 1, "preset": "landiff", "made_by": "python -m engine convert"}


def test_every_bad_number_is_named(published: Path, tmp_path: Path) -> None:
    """NaN in several files and components are all listed, and nothing is left."""
    bad = []
    for name in (checkpoint.PLANNER, checkpoint.VAE, checkpoint.DIFFUSION):
        tensors = checkpoint.stored(published, name)
        for key in sorted(tensors)[3:5]:
            tensors[key].view(-1)[-1] = float("nan")
            bad.append((name, key))
        checkpoint.write(published, name, tensors)
    with pytest.raises(ValueError, match=f"{len(bad)} faults") as caught:
        convert(published, tmp_path / "out", checkpoint.TINY)
    assert all(f"{name}: {key} holds NaN" in str(caught.value) for name, key in bad)
    assert [path.name for path in tmp_path.iterdir()] == ["published"]


def test_extractor_and_text_are_taken_along(published: Path, tmp_path: Path) -> None:
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


def test_a_conversion_that_was_cut_off_is_named(published: Path, tmp_path: Path) -> None:
    """What an interrupted conversion left is neither used nor deleted unasked."""
    (tmp_path / "out.part").mkdir()
    with pytest.raises(ValueError, match=r"out.part is left of a conversion"):
        convert(published, tmp_path / "out", checkpoint.TINY)
    assert (tmp_path / "out.part").is_dir()


def test_swapped_components_are_refused(out: Path) -> None:
    """The planner's file in the place of the tokenizer's does not fit."""
    for path in out.glob("tokenizer*"):
        path.unlink()
    (out / "tokenizer.safetensors").write_bytes(next(out.glob("planner*")).read_bytes())
    with pytest.raises(ValueError, match=r"tokenizer.safetensors: encoder.*is missing"):
        checkpoint.read(out)


def test_published_md5_are_compared_if_asked(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --md5 a folder's files must be the published ones."""
    assert main([str(published), str(tmp_path / "out"), "--md5"]) == 2
    said = capsys.readouterr().err
    assert "llm/model.safetensors has md5" in said and "the published one db87f2939b0e0a0f4bc74ac8a04ce920" in said

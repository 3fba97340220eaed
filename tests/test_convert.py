"""Published weights written anew in our own layout."""

from __future__ import annotations

import json
from pathlib import Path

import checkpoint
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import convert as converter
from engine.convert import convert, main
from engine.landiff import load
from engine.published import FILES

CPU = torch.device("cpu")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    modules = load(folder, checkpoint.TINY, CPU, torch.float32)
    return {f"{part}.{name}": value for part, module in modules.items() for name, value in module.state_dict().items()}


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
    ours, theirs = weights(out), weights(published)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert len(list(out.glob("renderer-*-of-*.safetensors"))) > 1
    assert {path.name.split("-")[0].split(".")[0] for path in out.iterdir()} == {
        "tokenizer", "planner", "renderer", "vae", "config",
    }  # fmt: skip


def test_what_is_converted_can_be_converted(out: Path, tmp_path: Path) -> None:
    """Our own layout is a source like any other; without shards each component is one file."""
    convert(out, tmp_path / "again", checkpoint.TINY)
    first, again = weights(out), weights(tmp_path / "again")
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
        weights(out)
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name} is missing"):
        weights(out)


@pytest.mark.parametrize(
    ("facts", "message"),
    [('{"format": 1, "preset": "mini"}', "preset 'mini', not 'landiff'"), ('{"format": 9, "preset": "landiff"}', "9"),
     ("{", "damaged"), ("[]", "damaged")],
)  # fmt: skip
def test_another_description_is_refused(out: Path, facts: str, message: str) -> None:
    """Weights of another preset or format, or with a broken description, are not loaded."""
    (out / "config.json").write_text(facts)
    with pytest.raises(ValueError, match=message):
        weights(out)


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
    assert facts == {"format": 1, "preset": "landiff", "components": ["tokenizer", "planner", "renderer", "vae"]}

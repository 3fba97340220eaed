"""A hub's cache folders, and files of one number format."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config import preset
from engine.loading.download import fetch
from engine.loading.hub_names import snapshot_of, variant_of
from engine.loading.options import weights_folder


def cached(cache: Path, name: str, snapshots: tuple[str, ...] = ("abc",), main: str | None = "abc") -> Path:
    """A cached repository as huggingface_hub lays it out: blobs, refs, and snapshots of links."""
    model = cache / f"models--{name.replace('/', '--')}"
    (model / "blobs").mkdir(parents=True)
    for snapshot in snapshots:
        (model / "snapshots" / snapshot).mkdir(parents=True)
    if main is not None:
        (model / "refs").mkdir()
        (model / "refs" / "main").write_text(main)
    return model


def test_a_cached_repository_stands_for_its_snapshot(tmp_path: Path) -> None:
    """Cache, repository and snapshot are the same folder of files, for `mini`, the release and hub ids alike."""
    model = cached(tmp_path / "hub", "someone/mini", ("abc", "old"))
    snapshot = model / "snapshots" / "abc"
    for given in (tmp_path, tmp_path / "hub", model, snapshot):
        assert snapshot_of(given) == snapshot
        assert weights_folder(preset("mini"), str(given)) == snapshot
        assert fetch(str(given)) == snapshot


def test_one_snapshot_needs_no_name(tmp_path: Path) -> None:
    """Where nothing says which is the newest, a single snapshot is meant."""
    model = cached(tmp_path, "a/b", main=None)
    assert snapshot_of(model).name == "abc"


def test_what_is_not_clear_is_named(tmp_path: Path) -> None:
    """Several models, several snapshots, and none are refused with the folders to choose from."""
    model = cached(tmp_path / "one", "a/b", ("x", "y"), main=None)
    with pytest.raises(ValueError, match=r"with 2 snapshots: give one of .*/x, .*/y"):
        snapshot_of(model)
    cached(tmp_path / "one", "c/d")
    with pytest.raises(ValueError, match=r"cache of several models: give one of .*models--a--b, .*models--c--d"):
        snapshot_of(tmp_path / "one")
    with pytest.raises(ValueError, match="holds no snapshot, its download was not finished"):
        snapshot_of(cached(tmp_path / "two", "a/b", ()))


def test_other_folders_stay_as_they_are(tmp_path: Path) -> None:
    """A folder of files, and one that is not there, mean themselves."""
    assert snapshot_of(tmp_path) == tmp_path
    assert snapshot_of(tmp_path / "missing") == tmp_path / "missing"


def test_the_plain_file_goes_before_its_variants(tmp_path: Path) -> None:
    """Then the most exact number format; a file that is nowhere keeps its name, which errors say."""
    path = tmp_path / "model.safetensors"
    assert variant_of(path) == path
    for name in ("model.fp16.safetensors", "model.bf16.safetensors", "model.safetensors"):
        (tmp_path / name).touch()
        assert variant_of(path).name == name

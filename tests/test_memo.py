"""Choices kept on disk."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from kernels.tools import memo

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(memo.FOLDER, str(tmp_path / "cache"))


def test_remembers_across_readings_and_keeps_other_entries() -> None:
    """What was kept is found again; new entries join old ones and replace those of the same key."""
    assert memo.recall("tiles", CPU) == {}
    memo.remember("tiles", CPU, {"a": 1, "b": 2})
    path = memo.remember("tiles", CPU, {"b": 3})
    assert memo.recall("tiles", CPU) == {"a": 1, "b": 3}
    assert path is not None and [file.name for file in path.parent.iterdir()] == ["tiles.json"]


def test_devices_do_not_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another device, or the same under another version of torch, finds nothing, and overwrites nothing."""
    memo.remember("tiles", CPU, {"a": 1})
    monkeypatch.setattr(memo, "device_key", lambda device: "another")
    assert memo.recall("tiles", CPU) == {}
    path = memo.remember("tiles", CPU, {"a": 2})
    assert path is not None and len(json.loads(path.read_text())) == 2


@pytest.mark.parametrize("content", ["{", "[1]", '{"cpu": 3}', "\x00"])
def test_a_broken_file_is_passed_over(content: str) -> None:
    """A file cut short or of another kind counts as empty, and the next entry replaces it."""
    memo.folder().mkdir()
    (memo.folder() / "tiles.json").write_text(content)
    assert memo.recall("tiles", CPU) == {}
    memo.remember("tiles", CPU, {"a": 1})
    assert memo.recall("tiles", CPU) == {"a": 1}


def test_a_folder_that_cannot_be_made_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nothing can be written the process goes on and says that it will measure again."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(memo.FOLDER, str(tmp_path / "file" / "below"))
    with caplog.at_level(logging.WARNING):
        assert memo.remember("tiles", CPU, {"a": 1}) is None
    assert "the next process will measure again" in caplog.text


def test_without_a_variable_the_users_cache_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The cache folder of the desktop standard comes before the one in the home folder."""
    monkeypatch.delenv(memo.FOLDER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert memo.folder() == tmp_path / "landiff-live"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert memo.folder() == tmp_path / "home" / ".cache" / "landiff-live"

"""Finding and checking weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import huggingface_hub
import pytest

from engine.loading import download
from engine.loading.download import CHECKSUMS, HUB_ID, fetch, verify, verify_once
from engine.loading.published_files import FILES


def fake_hub(monkeypatch: pytest.MonkeyPatch, folder: Path, contents: dict[str, bytes]) -> list[str]:
    """A hub that writes these files; returns the ids it is asked for."""
    asked: list[str] = []

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked.append(name)
        for path, content in contents.items():
            assert path in allow_patterns
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return asked


def test_every_weight_file_has_a_checksum() -> None:
    """The checksums cover the files of weights, which are 32 hexadecimal digits each."""
    assert {file.name for file in FILES} < set(CHECKSUMS)
    assert all(len(value) == 32 and set(value) <= set("0123456789abcdef") for value in CHECKSUMS.values())


def test_a_hub_id_is_downloaded_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files with the right md5 pass; a half-downloaded one and a missing one are both named."""
    contents = {"a/x.bin": b"1234", "b.bin": b"5678"}
    sums = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(download, "CHECKSUMS", sums)
    asked = fake_hub(monkeypatch, tmp_path, contents)
    assert fetch(HUB_ID) == tmp_path and asked == [HUB_ID]
    (tmp_path / "a/x.bin").write_bytes(b"12")
    (tmp_path / "b.bin").unlink()
    with pytest.raises(ValueError, match=r"b.bin is missing\n.*a/x.bin has md5"):
        verify(tmp_path, sums)


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    """No network is asked for a folder that exists."""
    assert fetch(str(tmp_path)) == tmp_path


def test_what_cannot_be_had_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something that is neither folder nor id, and a hub that does not answer, raise with the cure."""
    with pytest.raises(ValueError, match="neither a folder nor a hub id"):
        fetch("/no/such/folder")

    def refuse(name: str, allow_patterns: list[str]) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ValueError, match="no route to host.*or give a folder"):
        fetch("someone/something")


def test_md5_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download that has passed is not read again, until a file is changed or gone."""
    (tmp_path / "a.bin").write_bytes(b"1234")
    sums = {"a.bin": hashlib.md5(b"1234").hexdigest()}
    verify_once(tmp_path, sums)
    monkeypatch.setattr(download, "verify", lambda folder, checksums: pytest.fail("read again"))
    verify_once(tmp_path, sums)
    monkeypatch.undo()
    (tmp_path / "a.bin").write_bytes(b"123")
    with pytest.raises(ValueError, match="a.bin has md5"):
        verify_once(tmp_path, sums)
    (tmp_path / "a.bin").unlink()
    with pytest.raises(ValueError, match="a.bin is missing"):
        verify_once(tmp_path, sums)

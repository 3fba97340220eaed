"""Files that are whole or not there."""

from pathlib import Path

import pytest

from engine.runtime.files import write_atomically


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """An error while writing keeps what was there and leaves no part behind."""
    path = tmp_path / "file"
    path.write_text("old")

    def fail(part: Path) -> None:
        part.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]

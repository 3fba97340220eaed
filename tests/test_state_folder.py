"""The server's state folder: of one server at a time, and of one preset."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from test_kept_state import KEPT

from engine.wire.state_folder import LOCK, STATE, channel_folder, remove_abandoned, taken


def keep(state: Path, channel: str = "main", **others: object) -> Path:
    folder = channel_folder(state, channel)
    folder.mkdir(parents=True)
    (folder / STATE).write_bytes(replace(KEPT, channel=channel, **others).to_json())  # type: ignore[arg-type]
    return folder / STATE


def test_a_folder_has_one_server(tmp_path: Path) -> None:
    """It is made where it is not there; a second server is refused until the first one ends."""
    state = tmp_path / "new" / "state"
    with taken(state, "mini") as left:
        assert left == []
        with pytest.raises(ValueError, match="another server has the state folder"), taken(state, "mini"):
            pass
    with taken(state, "mini"):
        pass


def test_channels_that_were_left_are_found(tmp_path: Path) -> None:
    """By their ids, whatever these are; folders that were set aside or copied are none."""
    keep(tmp_path)
    keep(tmp_path, "a/b.c")
    aside = keep(tmp_path, "old")
    aside.parent.rename(tmp_path / "old.20260101-000000-000000")
    with taken(tmp_path, "mini") as left:
        assert {one.channel for one in left} == {"main", "a/b.c"}


def test_states_of_others_are_refused(tmp_path: Path) -> None:
    """Another preset and another format are named in one line, and nothing is changed."""
    path = keep(tmp_path)
    with (
        pytest.raises(ValueError, match="preset 'mini', not 'landiff': give --preset mini"),
        taken(tmp_path, "landiff"),
    ):
        pass
    with pytest.raises(ValueError, match="of small pictures: give --picture small"), taken(tmp_path, "mini", "large"):
        pass
    with taken(tmp_path, "mini", "small") as left:
        assert left[0].picture == "small"
    for text in (KEPT.to_json().replace(b'"format": 1', b'"format": 2'), b"{"):
        path.write_bytes(text)
        with pytest.raises(ValueError, match="give another --state, or remove that file") as caught:
            with taken(tmp_path, "mini"):
                pass
        assert "\n" not in str(caught.value) and path.read_bytes() == text
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match="cannot be read"), taken(tmp_path, "mini"):
        pass


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a place that nobody can write to")
def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """One line says so; a file in its place too."""
    (tmp_path / "file").touch()
    for place in (Path("/proc/nothing"), tmp_path / "file", Path(os.devnull)):
        with pytest.raises(ValueError, match="cannot be written .*: give another --state"), taken(place, "mini"):
            pass


@contextmanager
def somebody_else() -> Iterator[None]:
    """For whom root's folders are read-only."""
    own = os.geteuid()
    if own == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(own)


def test_a_folder_that_is_read_only_is_refused() -> None:
    """Also with a lock of another time, which can be opened."""
    with TemporaryDirectory() as folder:
        state = Path(folder)
        (state / LOCK).touch()
        (state / LOCK).chmod(0o666)
        state.chmod(0o555)
        with somebody_else(), pytest.raises(ValueError, match="cannot be written .*: give another --state"):
            with taken(state, "mini"):
                pass
        assert [path.name for path in state.iterdir()] == [LOCK]
        state.chmod(0o755)
        with taken(state, "mini"):
            assert [path.name for path in state.iterdir()] == [LOCK]


def test_folders_of_servers_that_are_gone_are_removed(tmp_path: Path) -> None:
    """Those that nobody holds; not one that a server has, one that is new, or one that is no state folder."""
    names = ("gone", "held", "new", "other")
    for name in names:
        (tmp_path / name / "main").mkdir(parents=True)
        if name != "other":
            (tmp_path / name / LOCK).touch()
        if name in ("gone", "held"):
            os.utime(tmp_path / name / LOCK, (0, 0))
    with taken(tmp_path / "held", "mini"):
        os.utime(tmp_path / "held" / LOCK, (0, 0))
        remove_abandoned(tmp_path / name for name in names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["held", "new", "other"]

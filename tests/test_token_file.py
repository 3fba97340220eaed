import dataclasses
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from engine.video.token_file import TokenFile, TokenGroup, TokenHeader, TokenWriter

HEADER = TokenHeader(
    preset="mini", fps=8.0, height_px=128, width_px=192, frames=61, i_tokens=32, p_tokens=8, group_frames=13,
    codebook_size=1024,
)  # fmt: skip
PLAIN = [(0, 13), (13, 3)]  # start and frames of each group: 61 video frames are 16 semantic ones
OVERLAPPING = [(0, 13), (10, 6)]


def _groups(layout: list[tuple[int, int]]) -> list[TokenGroup]:
    rng = np.random.default_rng(0)
    return [
        TokenGroup(start, frames, rng.integers(0, 1024, 32 + 8 * (frames - 1)).astype(np.uint16))
        for start, frames in layout
    ]


def _write(path: Path, groups: list[TokenGroup], header: TokenHeader = HEADER) -> None:
    with TokenWriter(path) as file:
        for group in groups:
            file.write(group)
        file.finish(header)


@pytest.mark.parametrize("layout", [PLAIN, OVERLAPPING])
def test_what_is_written_is_read(tmp_path: Path, layout: list[tuple[int, int]]) -> None:
    """Header and groups come back as they were; the same tokens make the same bytes."""
    groups = _groups(layout)
    _write(tmp_path / "t.npz", groups)
    _write(tmp_path / "again.npz", groups)
    assert (tmp_path / "t.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    file = TokenFile(tmp_path / "t.npz")
    assert file.header == HEADER
    for _ in range(2):
        for given, read in zip(groups, file.groups(), strict=True):
            assert (given.start, given.frames, given.codes.tolist()) == (read.start, read.frames, read.codes.tolist())


def test_numpy_reads_the_file(tmp_path: Path) -> None:
    """The file is a plain .npz without pickles, as its documentation says."""
    groups = _groups(OVERLAPPING)
    _write(tmp_path / "t.npz", groups)
    with np.load(tmp_path / "t.npz", allow_pickle=False) as arrays:
        assert {name: arrays[name].item() for name in dataclasses.asdict(HEADER)} == dataclasses.asdict(HEADER)
        assert arrays["starts"].tolist() == [0, 10]
        first, second = np.split(arrays["codes"], arrays["offsets"][1:-1])
        assert first.tolist() == groups[0].codes.tolist() and second.tolist() == groups[1].codes.tolist()


def test_unfinished_files_leave_nothing(tmp_path: Path) -> None:
    """Without `finish`, or when writing fails, the folder stays as it was."""
    (tmp_path / "t.npz").write_bytes(b"before")
    with TokenWriter(tmp_path / "t.npz") as file:
        file.write(_groups(PLAIN)[0])
    with pytest.raises(RuntimeError), TokenWriter(tmp_path / "t.npz") as file:
        file.write(_groups(PLAIN)[0])
        raise RuntimeError
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("t.npz", b"before")]


@pytest.mark.parametrize(("name", "words"), [("t.txt", "npz"), ("missing/t.npz", "does not exist")])
def test_places_that_cannot_be_written_are_refused(tmp_path: Path, name: str, words: str) -> None:
    """Other formats and missing folders raise ValueError at once."""
    with pytest.raises(ValueError, match=words):
        TokenWriter(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_codes(tmp_path: Path) -> None:
    """Hundred times the codes take, to write and to read, no more memory than their index of 16 bytes a group."""

    def peak(count: int) -> int:
        groups = [TokenGroup(13 * number, 13, np.zeros(128, np.uint16)) for number in range(count)]
        header = dataclasses.replace(HEADER, frames=1 + 4 * (13 * count - 1))
        tracemalloc.start()
        _write(tmp_path / "t.npz", groups, header)
        assert sum(len(group.codes) for group in TokenFile(tmp_path / "t.npz").groups()) == 128 * count
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(10)
    assert peak(4000) - peak(40) < 4000 * 256 / 2


def _changed(tmp_path: Path, **changes: object) -> Path:
    """A file with other arrays under some names, or without them."""
    _write(tmp_path / "t.npz", _groups(PLAIN))
    with np.load(tmp_path / "t.npz") as arrays:
        values = {name: arrays[name] for name in arrays} | changes
    np.savez(tmp_path / "t.npz", **{name: value for name, value in values.items() if value is not None})
    return tmp_path / "t.npz"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": np.asarray(2)}, "format 2, this version reads 1"),
        ({"preset": None}, "no preset"),
        ({"codes": None}, "no codes"),
        ({"preset": np.asarray(["mini", None], object)}, "pickle"),
        ({"preset": np.asarray(["mini"])}, "preset is <U4 with 1 dim"),
        ({"fps": np.asarray(8)}, "fps is int64"),
        ({"frames": np.asarray(0)}, "frames is 0"),
        ({"frames": np.asarray(57)}, "end at frame 16, 57 video frames need 15"),
        ({"p_tokens": np.asarray(0)}, "p_tokens is 0"),
        ({"starts": np.asarray([0])}, "1 starts and 3 offsets"),
        ({"starts": np.asarray([1, 13])}, "make no groups"),
        ({"starts": np.asarray([0, 14])}, "gap"),
        ({"starts": np.asarray([0, 9])}, "out of order"),
        ({"offsets": np.asarray([0, 127, 176])}, "whole number of frames"),
        ({"offsets": np.asarray([0, 24, 80])}, "whole number of frames"),
        ({"codes": np.zeros(175, np.uint16)}, "expected uint16"),
        ({"codes": np.zeros(176, np.int64)}, "expected uint16"),
        ({"codes": np.full(176, 1024, np.uint16)}, "code 1024 is not in a codebook of 1024"),
    ],
    ids=str,
)
def test_contradictions_are_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    """A file that lacks something, has pickles or contradicts itself is refused at once, with what is wrong."""
    path = _changed(tmp_path, **changes)
    with pytest.raises(ValueError, match=rf"t\.npz cannot be read .*{words}"):
        TokenFile(path)


def test_damage_is_refused(tmp_path: Path) -> None:
    """A missing file, an empty one, another kind, one cut short anywhere and one with a changed byte are refused."""
    path = tmp_path / "t.npz"
    with pytest.raises(ValueError, match="no file"):
        TokenFile(path)
    _write(path, _groups(PLAIN))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    at = whole.index(_groups(PLAIN)[0].codes.tobytes())
    flipped[at + 40] ^= 1
    contents = [b"", b"words" * 99, bytes(flipped), *(whole[: len(whole) * tenth // 10] for tenth in range(1, 10))]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"t\.npz cannot be read"):
            TokenFile(path)


def test_a_huge_index_is_refused_unread(tmp_path: Path) -> None:
    """Members that would unpack to far more than any index are not unpacked."""
    _write(tmp_path / "t.npz", _groups(PLAIN))
    with zipfile.ZipFile(tmp_path / "t.npz") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "t.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content if name != "starts.npy" else bytes(70 << 20))
    with pytest.raises(ValueError, match="starts has 73400320 bytes"):
        TokenFile(tmp_path / "t.npz")


@pytest.mark.parametrize(("frames", "semantic"), [(1, 1), (2, 2), (5, 2), (6, 3), (49, 13), (50, 14)])
def test_semantic_frames(frames: int, semantic: int) -> None:
    """Every video frame is covered, four by each semantic frame but the first."""
    assert dataclasses.replace(HEADER, frames=frames).semantic_frames == semantic


def test_codes_must_fit() -> None:
    """A codebook that 16 bits cannot number is refused."""
    with pytest.raises(ValueError, match="65537 does not fit 16 bits"):
        dataclasses.replace(HEADER, codebook_size=65537)

import tracemalloc
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from engine.config import preset
from engine.video.token_file import TokenFile, TokenGOP

HEADER = {
    "format": 2, "preset": "mini", "fps": 8.0, "height_px": 128, "width_px": 192, "frames": 61, "i_tokens": 32,
    "p_tokens": 8, "gop_frames": 13, "codebook_size": 1024,
}  # fmt: skip
PLAIN = [(0, 13), (13, 3)]  # start and frames of each GOP: 61 video frames are 16 semantic ones
OVERLAPPING = [(0, 13), (10, 6)]


def _gops(layout: list[tuple[int, int]]) -> list[TokenGOP]:
    rng = np.random.default_rng(0)
    return [
        TokenGOP(start, frames, rng.integers(0, 1024, 32 + 8 * (frames - 1)).astype(np.uint16))
        for start, frames in layout
    ]


def _write(path: Path, gops: list[TokenGOP], frames: int = 61) -> None:
    TokenFile(preset("mini"), frames, tuple(gops)).write(path)


@pytest.mark.parametrize("layout", [PLAIN, OVERLAPPING])
def test_what_is_written_is_read(tmp_path: Path, layout: list[tuple[int, int]]) -> None:
    """Header and GOPs come back as they were; the same tokens make the same bytes."""
    gops = _gops(layout)
    _write(tmp_path / "t.npz", gops)
    _write(tmp_path / "again.npz", gops)
    assert (tmp_path / "t.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    file = TokenFile.read(tmp_path / "t.npz")
    assert (file.config, file.frames) == (preset("mini"), 61)
    for given, read in zip(gops, file.gops, strict=True):
        assert (given.start, given.frames, given.tokens.tolist()) == (read.start, read.frames, read.tokens.tolist())


def test_numpy_reads_the_file(tmp_path: Path) -> None:
    """The file is a plain .npz without pickles, as its documentation says."""
    gops = _gops(OVERLAPPING)
    _write(tmp_path / "t.npz", gops)
    with np.load(tmp_path / "t.npz", allow_pickle=False) as arrays:
        assert {name: arrays[name].item() for name in HEADER} == HEADER
        assert arrays["starts"].tolist() == [0, 10]
        first, second = np.split(arrays["tokens"], arrays["offsets"][1:-1])
        assert first.tolist() == gops[0].tokens.tolist() and second.tolist() == gops[1].tokens.tolist()


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When writing fails half-way, the folder stays as it was."""
    (tmp_path / "t.npz").write_bytes(b"before")

    def fail(file: IO[bytes], **arrays: object) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        _write(tmp_path / "t.npz", _gops(PLAIN))
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("t.npz", b"before")]


def test_memory_is_a_few_times_that_of_the_tokens(tmp_path: Path) -> None:
    """An hour of video has 130 kB of tokens; to write and to read them takes less than 2 MB."""
    count = 554
    gops = [TokenGOP(13 * number, 13, np.zeros(128, np.uint16)) for number in range(count)]
    tracemalloc.start()
    _write(tmp_path / "t.npz", gops, frames=1 + 4 * (13 * count - 1))
    assert sum(len(gop.tokens) for gop in TokenFile.read(tmp_path / "t.npz").gops) == 128 * count
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20


def _changed(tmp_path: Path, **changes: object) -> Path:
    """A file with other arrays under some names, or without them."""
    _write(tmp_path / "t.npz", _gops(PLAIN))
    with np.load(tmp_path / "t.npz") as arrays:
        values = {name: arrays[name] for name in arrays} | changes
    np.savez(tmp_path / "t.npz", **{name: value for name, value in values.items() if value is not None})
    return tmp_path / "t.npz"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": np.asarray(1)}, "format 1, not 2.*tokenize"),
        ({"preset": None}, "preset is not a file"),
        ({"tokens": None}, "tokens is not a file"),
        ({"preset": np.asarray(["mini", None], object)}, "pickle"),
        ({"preset": np.asarray("huge")}, "no preset 'huge'"),
        ({"fps": np.asarray(4.0)}, "fps 4.0, not 8"),
        ({"frames": np.asarray(0)}, "end at frame 16, 0 video frames"),
        ({"frames": np.asarray(57)}, "end at frame 16, 57 video frames need 15"),
        ({"frames": np.asarray(60.5)}, "frames 60.5, not 60"),
        ({"p_tokens": np.asarray(0)}, "p_tokens 0, not 8"),
        ({"starts": np.asarray([0])}, "1 starts, 3 offsets"),
        ({"starts": np.asarray([[0], [13]])}, ""),
        ({"starts": np.asarray([1, 13])}, "begin behind frame 0"),
        ({"starts": np.asarray([], int), "offsets": np.asarray([0]), "tokens": np.zeros(0, np.uint16)}, "begin behind"),
        ({"starts": np.asarray([0, 14])}, "gap"),
        ({"starts": np.asarray([0, 9])}, "out of order"),
        ({"offsets": np.asarray([0, 127, 176])}, "127 tokens do not make whole frames"),
        ({"offsets": np.asarray([0, 24, 176])}, "24 tokens do not make whole frames"),
        ({"tokens": np.zeros(175, np.uint16)}, "175 tokens make no GOPs"),
        ({"tokens": np.zeros(176, np.uint64)}, "uint64 up to 0 are not uint16"),
        ({"tokens": np.full(176, 1024, np.uint16)}, "up to 1024 are not uint16 in a codebook of 1024"),
    ],
    ids=str,
)
def test_contradictions_are_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    """A file that lacks something, has pickles or contradicts itself is refused at once, with what is wrong."""
    path = _changed(tmp_path, **changes)
    with pytest.raises(ValueError, match=rf"t\.npz cannot be read .*{words}"):
        TokenFile.read(path)


def test_damage_is_refused(tmp_path: Path) -> None:
    """A missing file, an empty one, another kind, one cut short anywhere and one with a changed byte are refused."""
    path = tmp_path / "t.npz"
    with pytest.raises(ValueError, match="No such file"):
        TokenFile.read(path)
    _write(path, _gops(PLAIN))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    at = whole.index(_gops(PLAIN)[0].tokens.tobytes())
    flipped[at + 40] ^= 1
    contents = [b"", b"words" * 99, bytes(flipped), *(whole[: len(whole) * tenth // 10] for tenth in range(1, 10))]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"t\.npz cannot be read"):
            TokenFile.read(path)


@pytest.mark.parametrize(("frames", "semantic"), [(1, 1), (2, 2), (5, 2), (6, 3), (45, 12), (46, 13), (49, 13)])
def test_semantic_frames(frames: int, semantic: int) -> None:
    """Every video frame is covered, four by each semantic frame but the first."""
    assert TokenFile(preset("mini"), frames, tuple(_gops([(0, semantic)]))).frames == frames
    with pytest.raises(ValueError, match=f"need {semantic}"):
        TokenFile(preset("mini"), frames, tuple(_gops([(0, semantic + 1)])))

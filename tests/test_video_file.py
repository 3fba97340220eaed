import os
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from test_files import limited

from engine.video.video_file import VideoFile

WIDTH, HEIGHT = 64, 48


def _planes(luma: int, count: int) -> npt.NDArray[np.uint8]:
    i420 = np.full((count, HEIGHT * 3 // 2, WIDTH), 128, np.uint8)
    i420[:, :HEIGHT] = luma
    i420[:, :HEIGHT, : WIDTH // 2] = luma // 2
    return i420


def test_file_plays_what_was_written(tmp_path: Path) -> None:
    """The file is H.264 in mp4, yuv420p of BT.601 and limited range, with every frame at its time and in its place."""
    path = tmp_path / "video.mp4"
    with VideoFile(path, WIDTH, HEIGHT, 8.0) as file:
        for luma in (60, 120, 180):
            file.write(_planes(luma, 4))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt, context.width, context.height) == ("h264", "yuv420p", WIDTH, HEIGHT)
        frames = list(container.decode(stream))
        assert stream.average_rate == 8 and float(stream.duration * stream.time_base) == pytest.approx(1.5)
    assert [frame.time for frame in frames] == pytest.approx([index / 8 for index in range(12)])
    assert [int(frame.color_range) for frame in frames] == [1] * 12
    assert [int(frame.colorspace) for frame in frames] == [5] * 12
    assert {(int(frame.color_primaries), int(frame.color_trc)) for frame in frames} == {(6, 6)}
    assert b"colrnclx" in path.read_bytes()
    for index, frame in enumerate(frames):
        planes = frame.to_ndarray()
        luma = (60, 120, 180)[index // 4]
        assert abs(int(planes[HEIGHT // 2, 3 * WIDTH // 4]) - luma) <= 3
        assert abs(int(planes[HEIGHT // 2, WIDTH // 4]) - luma // 2) <= 3
        assert abs(planes[HEIGHT:].astype(int) - 128).max() <= 3


def test_the_same_frames_make_the_same_file(tmp_path: Path) -> None:
    """Frames decide every byte of the file, whatever memory the encoder gets."""
    x, y = np.arange(192), np.arange(192)[:, None]
    ground = 60 + x // 4 + y // 8
    video = [np.where(((x - 3 * i) % 80 < 30) & ((y + 2 * i) % 60 < 25), 200, ground) for i in range(48)]
    files = set()
    for _ in range(6):
        with VideoFile(tmp_path / "video.mp4", 192, 128, 8.0) as file:
            file.write(np.stack(video).astype(np.uint8))
        files.add((tmp_path / "video.mp4").read_bytes())
    assert len(files) == 1


def test_a_lossless_file_keeps_every_value(tmp_path: Path) -> None:
    """Noise comes back as it was."""
    video = np.random.default_rng(0).integers(0, 256, (6, HEIGHT * 3 // 2, WIDTH), np.uint8)
    with VideoFile(tmp_path / "video.mp4", WIDTH, HEIGHT, 8.0, lossless=True) as file:
        file.write(video)
    with av.open(str(tmp_path / "video.mp4")) as container:
        assert (np.stack([frame.to_ndarray() for frame in container.decode(video=0)]) == video).all()


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    """An error inside the block, before or after the first frame, leaves the folder as it was."""
    path = tmp_path / "video.mp4"
    path.write_bytes(b"before")
    for frames in (0, 3):
        with pytest.raises(RuntimeError), VideoFile(path, WIDTH, HEIGHT, 8.0) as file:
            file.write(_planes(100, frames))
            raise RuntimeError
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("video.mp4", b"before")]


def test_unfinished_file_is_not_in_place(tmp_path: Path) -> None:
    """Until the block ends, the name does not exist."""
    with VideoFile(tmp_path / "video.mp4", WIDTH, HEIGHT, 8.0) as file:
        file.write(_planes(100, 3))
        assert not (tmp_path / "video.mp4").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["video.mp4"]


@pytest.mark.parametrize("name", ["a:b.mp4", "file:v.mp4", "-v.mp4", "%03d.mp4", "x" * 251 + ".mp4", "V.MP4"])
def test_any_name_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A name is none of a protocol, and may be as long as the disk allows."""
    monkeypatch.chdir(tmp_path)
    with VideoFile(Path(name), WIDTH, HEIGHT, 8.0) as file:
        file.write(_planes(100, 3))
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    with av.open(f"file:{name}") as container:
        assert len(list(container.decode(video=0))) == 3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("video.avi", "mp4"),
        ("missing/video.mp4", "does not exist"),
        ("folder.mp4", "is a folder"),
        ("pipe.mp4", "is a device or a pipe"),
        ("null.mp4", "is a device or a pipe"),
        ("x" * 252 + ".mp4", "too long"),
    ],
)
def test_places_that_cannot_be_written_are_refused(tmp_path: Path, name: str, words: str) -> None:
    """Other formats, missing folders, and what is no file, are refused at once and stay as they are."""
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "null.mp4").symlink_to(os.devnull)
    with pytest.raises((ValueError, OSError), match=words):
        VideoFile(tmp_path / name, WIDTH, HEIGHT, 8.0)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder.mp4", "null.mp4", "pipe.mp4"]


def _noise(count: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, (count, HEIGHT * 3 // 2, WIDTH), np.uint8)


def test_a_disk_that_gets_full_leaves_nothing(tmp_path: Path) -> None:
    """Wherever the room ends, at the first byte or the last, it is one line with a cure and no file."""
    path = tmp_path / "video.mp4"
    with VideoFile(path, WIDTH, HEIGHT, 8.0) as file:
        file.write(_noise(4))
    whole = path.read_bytes()
    for room in (0, 4096, len(whole) // 2, len(whole) - 600, len(whole) - 1, len(whole)):
        path.unlink(missing_ok=True)
        try:
            with limited(room), VideoFile(path, WIDTH, HEIGHT, 8.0) as file:
                file.write(_noise(4))
        except OSError as error:
            assert str(error).startswith(f"{path} cannot be written (File too large): ") and room < len(whole)
            assert not list(tmp_path.iterdir())
        else:
            assert path.read_bytes() == whole and room == len(whole)

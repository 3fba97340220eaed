"""Folders of captioned videos: written, read, and refused when something is wrong with them."""

import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from test_clip import numbered, write

from engine.training import __main__ as command
from engine.training.sources import folder as dataset
from engine.training.sources.folder import VideoFolder, read_caption
from engine.training.world import drawing as world
from engine.training.world.captions import random_label
from engine.video.video_file import VideoFile


def grey(path: Path, levels: list[int], height: int = 32, width: int = 48, fps: float = 8.0) -> None:
    """A video of even grey pictures."""
    with VideoFile(path, width, height, fps) as file:
        for level in levels:
            frame = np.full((1, height * 3 // 2, width), 128, np.uint8)
            frame[:, :height] = level
            file.write(frame)


def sound(path: Path) -> None:
    """A file with sound and no pictures."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.sample_rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
        frame.planes[0].update(bytes(4096))
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_the_world_is_written_and_read_again(tmp_path: Path) -> None:
    """Videos show what is drawn, captions are the grammar's, and the same seed draws the same again."""
    for name in ("a", "b"):
        words = ["dataset", "--out", str(tmp_path / name), "--clips", "2", "--frames", "9", "--seed", "3"]
        assert command.main(words) == 0
    names = ["000000.mp4", "000000.txt", "000001.mp4", "000001.txt"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    first, second = ([(tmp_path / run / name).read_bytes() for name in names] for run in ("a", "b"))
    assert first == second and first[0] != first[2]
    videos = VideoFolder(tmp_path / "a", 128, 192, 8.0, 9)
    rng = random.Random("dataset 3 1")
    label = random_label(rng)
    drawn = world.draw(world.sample([label], rng), torch.arange(9)[None])[0]
    read, caption = videos.read(1, 0, 9), videos.captions[1]
    assert label.colour in caption and not label.held_out
    assert read.dtype == torch.uint8 and read.shape == drawn.shape
    assert (read.float() - drawn.float()).abs().mean() < 4


@pytest.mark.parametrize("kind", ["ts", "mp4"])
def test_what_is_not_in_a_file_is_not_trained_on(tmp_path: Path, kind: str) -> None:
    """A clip that begins between key frames, or whose clock jumps, is as long as what can be read of it."""
    path, times_s = tmp_path / f"a.{kind}", [n / 8 for n in range(24)]
    write(path, numbered(24), times_s, dropped=2)
    if kind == "ts":
        later = tmp_path / "later.ts"
        write(later, numbered(24), [50_000 + time_s for time_s in times_s])
        (tmp_path / "a.mp4").write_bytes(path.read_bytes() + later.read_bytes())
        later.unlink()
    (tmp_path / "a.txt").write_text("a grey ramp")
    videos = VideoFolder(tmp_path, 16, 24, 8.0, 5)
    assert videos.lengths == [40 if kind == "ts" else 16]
    assert len(videos.read(0, videos.lengths[0] - 5, 5)) == 5


@pytest.mark.parametrize("most_bytes", [0, 1 << 20])
def test_stretches_are_anywhere_and_repeatable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_bytes: int
) -> None:
    """The place says which pictures; they are scaled, cut and resampled to what is asked for."""
    monkeypatch.setattr(dataset, "MOST_BYTES", most_bytes)  # read each time, or once
    grey(tmp_path / "a.mp4", list(range(40, 200, 4)), 50, 70, fps=16.0)
    (tmp_path / "a.txt").write_text("a grey\n  ramp\n")
    videos = VideoFolder(tmp_path, 16, 24, 8.0, 5)
    assert videos.lengths == [20]
    first, again, other = (videos.read(0, start, 5) for start in (3, 3, 11))
    assert videos.captions[0] == "a grey ramp"
    assert first.shape == (5, 3, 16, 24)
    assert torch.equal(first, again) and not torch.equal(first, other)
    steps = first.float().mean((1, 2, 3)).diff()
    assert steps.min() > 6 and steps.max() < 13  # two frames of the file, 4 levels of luma each, over 219/255


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "it has no caption: write a.txt"),
        (b"", "the prompt is empty"),
        (b"  \n ", "the prompt is empty"),
        (b"caf\xe9", "a.txt is not UTF-8"),
        (b"a\x00b", "control characters"),
    ],
)
def test_bad_captions_are_named(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    """Missing, empty and undecodable captions."""
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        read_caption(tmp_path / "a.txt")


def test_bad_videos_are_named_all_at_once(tmp_path: Path) -> None:
    """Broken, empty, silent, too short: one error lists them; odd sizes and missing sound are no fault."""
    grey(tmp_path / "good.mp4", [90] * 8)
    grey(tmp_path / "single.mp4", [90])
    sound(tmp_path / "sound.mp4")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "broken.mp4").write_bytes((tmp_path / "good.mp4").read_bytes()[:300])
    (tmp_path / "noise.mkv").write_bytes(random.Random(0).randbytes(3000))
    for path in list(tmp_path.iterdir()):
        path.with_suffix(".txt").write_text("a video")
    with pytest.raises(ValueError, match="cannot be used") as caught:
        VideoFolder(tmp_path, 32, 48, 8.0, 5)
    for name in ("it has 1 frames", "sound.mp4 has no video", "empty.mp4 is no video", "broken.mp4", "noise.mkv"):
        assert name in str(caught.value)
    assert "good.mp4" not in str(caught.value)


def test_a_folder_without_videos_is_refused(tmp_path: Path) -> None:
    """Nothing to learn from, or no folder at all."""
    with pytest.raises(ValueError, match="there are no videos"):
        VideoFolder(tmp_path, 32, 48, 8.0, 5)
    with pytest.raises(ValueError, match="is no folder"):
        VideoFolder(tmp_path / "none", 32, 48, 8.0, 5)


def test_many_faults_are_cut_short(tmp_path: Path) -> None:
    """An error stays readable."""
    for number in range(dataset.SHOWN_FAULTS + 5):
        (tmp_path / f"{number:03d}.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"and 5 more") as caught:
        VideoFolder(tmp_path, 32, 48, 8.0, 5)
    assert len(str(caught.value).splitlines()) == dataset.SHOWN_FAULTS + 2


def test_a_dataset_of_nothing_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Zero clips are a mistake."""
    assert command.main(["dataset", "--out", str(tmp_path), "--clips", "0"]) == 2
    assert "must be at least 1" in caplog.text

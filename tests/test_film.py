"""Which pictures of a file are its film, at which times, and what is refused."""

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image
from test_clip import numbered, numbers, write

from engine.video.clip import Clip
from engine.video.film import Film

POSTER_LUMA = 235
SECOND = [n / 8 for n in range(8)]


def _count(path: Path) -> tuple[int, int]:
    """Frames of the film, and pictures at 8 a second."""
    with Film(path) as film, Clip(path, 16, 24, 8.0) as clip:
        return len(list(film.frames())), len(list(clip.pictures()))


def _joined(path: Path, later_s: float, b_frames: int = 0, **options: str) -> list[int]:
    """What a clip shows of two seconds of video in a transport stream, the second one put behind the first."""
    pictures = numbered(16)
    parts = [path.with_name(f"{number}.ts") for number in range(2)]
    times = [[start_s + 3 + time_s for time_s in SECOND] for start_s in (0, later_s)]
    write(parts[0], pictures[:8], times[0], b_frames=b_frames)
    write(parts[1], pictures[8:], times[1], b_frames=b_frames, **options)
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return numbers(path)


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("options", [{}, {"mpegts_flags": "initial_discontinuity"}])
@pytest.mark.parametrize("later_s", [50_000, 90_000, 12, 1, 0.5, 0, -2])
def test_a_clock_that_jumps_makes_no_gap(
    tmp_path: Path, later_s: float, options: dict[str, str], b_frames: int
) -> None:
    """Ahead by hours, on time, back, or started again, marked or not: every picture is shown once, in order."""
    assert _joined(tmp_path / "v.ts", later_s, b_frames, **options) == list(range(16))


def test_a_pause_is_a_pause(tmp_path: Path) -> None:
    """Up to ten seconds without a new picture the last one stands, and in files without jumps for hours."""
    assert _joined(tmp_path / "v.ts", 6) == [0, 1, 2, 3, 4, 5, 6] + [7] * 41 + list(range(8, 16))
    write(tmp_path / "v.mp4", numbered(3), [0.0, 1000.0, 1000.125])
    assert numbers(tmp_path / "v.mp4") == [0] * 8000 + [1, 2]


def test_a_clock_that_jumps_is_taken_out_of_the_stated_length(tmp_path: Path) -> None:
    """What a progress bar counts to is right as soon as the jump is read."""
    _joined(tmp_path / "v.ts", 50_000)
    with Clip(tmp_path / "v.ts", 16, 24, 8.0) as clip:
        before = clip.frames_stated
        assert len(list(clip.pictures())) == 16
        assert before is not None and before > 400_000 and clip.frames_stated == 16


def test_matroska_that_starts_again_is_read_to_its_end(tmp_path: Path) -> None:
    """Two files put end to end are both read, also where the format has no word for it."""
    for number, pictures in enumerate((numbered(60)[:30], numbered(60)[30:])):
        write(tmp_path / f"{number}.mkv", pictures, [n / 8 for n in range(30)])
    content = b"".join((tmp_path / f"{number}.mkv").read_bytes() for number in range(2))
    (tmp_path / "v.mkv").write_bytes(content)
    assert numbers(tmp_path / "v.mkv") == list(range(60))


@pytest.mark.parametrize("kind", ["mkv", "mp4"])
def test_slow_pictures_out_of_order_are_no_jump(tmp_path: Path, kind: str) -> None:
    """At half a frame a second the times of B frames go back by seconds."""
    write(tmp_path / f"v.{kind}", numbered(12), [2.0 * n for n in range(12)], 2.0, b_frames=3)
    shown = numbers(tmp_path / f"v.{kind}")
    assert shown[:176] == [n for n in range(11) for _ in range(16)] and set(shown[176:]) == {11}


@pytest.mark.parametrize("kind", ["ts", "mp4", "mkv"])
def test_a_file_may_begin_between_key_frames(tmp_path: Path, kind: str) -> None:
    """What depends on a key frame that is not there is left out, and the rest is not cut short."""
    path = tmp_path / f"v.{kind}"
    write(path, numbered(24), [n / 8 for n in range(24)], dropped=2)
    assert numbers(path) == list(range(8, 24))


@pytest.mark.parametrize("kind", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("start_s", [-0.5, 0.0, 7.25])
def test_the_first_picture_is_picture_0(tmp_path: Path, kind: str, start_s: float) -> None:
    """Whenever a file's times begin, below 0 too, nothing is lost and nothing stands at its beginning."""
    path = tmp_path / f"v.{kind}"
    write(path, numbered(8), [start_s + time_s for time_s in SECOND], avoid_negative_ts="disabled")
    assert numbers(path) == list(range(0 if kind != "mp4" or start_s >= 0 else 4, 8))


def test_frames_without_times_follow_their_rate(tmp_path: Path) -> None:
    """Where no frame has a time, nor the file a rate, each lasts 1/25 s."""
    write(tmp_path / "v.h264", numbered(50), [n / 8 for n in range(50)])
    assert _count(tmp_path / "v.h264") == (50, 16)


def _write_tracks(path: Path, tracks: Sequence[tuple[str, int]], cover: bool = False) -> None:
    """Tracks of so many pictures in so many codecs; those of one picture are white posters, others are numbered."""
    with av.open(str(path), "w") as container:
        streams = []
        for codec, count in tracks:
            stream = container.add_stream(codec, rate=8)
            stream.width, stream.height = 24, 16
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            if cover and count == 1:
                stream.disposition = Disposition.attached_pic
            streams.append((stream, count))
        packets = []
        for stream, count in streams:
            pictures = numbered(count) if count > 1 else [np.full((16, 24, 3), POSTER_LUMA, np.uint8)]
            for number, picture in enumerate(pictures):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts = number
                packets += stream.encode(frame)
            packets += stream.encode()
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)


@pytest.mark.parametrize("kind", ["mp4", "mkv", "mov"])
@pytest.mark.parametrize(("poster", "cover"), [("mjpeg", False), ("mjpeg", True), ("libx264", False)])
@pytest.mark.parametrize("first", [True, False])
def test_a_poster_is_not_the_film(tmp_path: Path, kind: str, poster: str, cover: bool, first: bool) -> None:
    """A track of one picture, before the film or behind it, called a cover or not, in any coding, is not shown."""
    path, tracks = tmp_path / f"v.{kind}", [(poster, 1), ("libx264", 12)]
    _write_tracks(path, tracks if first else tracks[::-1], cover)
    assert numbers(path) == list(range(12))


def test_a_cover_beside_the_tracks_is_not_the_film(tmp_path: Path) -> None:
    """Nor is a picture that is attached to a Matroska file."""
    Image.new("RGB", (32, 32), "white").save(tmp_path / "cover.jpg")
    write(tmp_path / "film.mkv", numbered(8), SECOND)
    with av.open(str(tmp_path / "film.mkv")) as source, av.open(str(tmp_path / "v.mkv"), "w") as target:
        target.add_attachment("cover.jpg", "image/jpeg", (tmp_path / "cover.jpg").read_bytes())
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    assert numbers(tmp_path / "v.mkv") == list(range(8))


def test_of_two_films_the_first_is_read(tmp_path: Path) -> None:
    """And of two posters the first, as a video of one picture."""
    _write_tracks(tmp_path / "v.mkv", [("libx264", 8), ("mjpeg", 12)])
    assert _count(tmp_path / "v.mkv") == (8, 8)
    _write_tracks(tmp_path / "v.mp4", [("mjpeg", 1), ("libx264", 1)])
    assert _count(tmp_path / "v.mp4") == (1, 1)


@pytest.mark.parametrize("name", ["a:b.mp4", "file:v.mp4", "http:v.mp4", "-v.mp4", "%03d.mp4", "a b?#.mp4", "v"])
def test_a_name_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whatever it looks like, the file of that name is read."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "v.mp4", numbered(2), [0.0, 0.125])
    (tmp_path / "v.mp4").rename(name)
    assert numbers(Path(name)) == [0, 1]


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_high_dynamic_range_is_refused(tmp_path: Path, transfer: int, name: str, kind: str) -> None:
    """Before anything is read it is said which transfer a file has, and what to do."""
    write(tmp_path / f"v.{kind}", numbered(2), [0.0, 0.125], transfer=transfer)
    with pytest.raises(ValueError, match=rf"v\.{kind} is HDR \({name} transfer\).*convert it"):
        Film(tmp_path / f"v.{kind}")


def test_only_an_animated_webp_is_refused(tmp_path: Path) -> None:
    """Which is named with what to do; a still WebP is a video of one picture, a GIF of all of its own."""
    images = [Image.fromarray(picture) for picture in numbered(4)]
    for name in ("moving.webp", "moving.gif", "still.webp"):
        more = {} if name == "still.webp" else {"save_all": True, "append_images": images[1:], "duration": 250}
        images[0].save(tmp_path / name, **more)
    with pytest.raises(ValueError, match=r"moving\.webp is an animated WebP.*convert it"):
        Film(tmp_path / "moving.webp")
    assert _count(tmp_path / "still.webp") == (1, 1)
    assert _count(tmp_path / "moving.gif") == (4, 8)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    """With one line."""
    with pytest.raises(ValueError, match="is no video"):
        Film(tmp_path)

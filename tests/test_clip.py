import itertools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from engine.video.clip import Clip

FPS = 8.0
SPOT_RGB = np.array([220, 40, 40])
CLOCK_HZ = 12000  # ticks a second of the files' times


def write(
    path: Path,
    pictures: Sequence[npt.NDArray[np.uint8]],
    times_s: Sequence[float],
    duration_s: float = 1 / 8,
    matrix: Sequence[int] | None = None,
    pixel: Fraction | None = None,
    dropped: int = 0,
    b_frames: int = 0,
    transfer: int = 2,
    **options: str,
) -> None:
    """H.264 without loss, a key frame in eight: RGB pictures [H, W, 3] at their times.

    `matrix` is how to display them; `dropped` packets at the beginning are left out; `transfer` as colours are tagged.
    """
    with av.open(f"file:{path}", "w", options=options) as container:
        coding = {"crf": "0", "bf": str(b_frames), "g": "8", "sc_threshold": "0"}
        stream = container.add_stream("libx264", rate=8, options=coding)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv444p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, CLOCK_HZ)
        if pixel is not None:
            stream.codec_context.sample_aspect_ratio = pixel
        stream.codec_context.color_trc = transfer
        stream.set_display_matrix(matrix)
        packets = []
        for picture, start_s in zip(pictures, times_s, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(start_s * CLOCK_HZ), Fraction(1, CLOCK_HZ)
            packets += stream.encode(frame)
        packets += stream.encode()
        ends_s = [*times_s[1:], times_s[-1] + duration_s]
        for packet, start_s, end_s in list(zip(packets, times_s, ends_s, strict=True))[dropped:]:
            packet.duration = round((end_s - start_s) * CLOCK_HZ)
            container.mux(packet)


def numbered(count: int) -> list[npt.NDArray[np.uint8]]:
    """Pictures that are as bright as their numbers, up to 70."""
    return [np.full((16, 24, 3), 20 + 3 * (number % 70), np.uint8) for number in range(count)]


def numbers(path: Path, every: int = 1) -> list[int]:
    """Number of the frame that every picture of a clip shows."""
    with Clip(path, 16, 24, FPS) as clip:
        return [round((int(rgb.mean()) - 20) / 3) for rgb in clip.pictures(every)]


def spotted(height: int, width: int, at: tuple[float, float] = (0.5, 0.5), half_px: int = 6) -> npt.NDArray[np.uint8]:
    """A grey picture with a square of SPOT_RGB."""
    picture = np.full((height, width, 3), 120, np.uint8)
    row, column = round(at[0] * height), round(at[1] * width)
    picture[max(row - half_px, 0) : row + half_px, max(column - half_px, 0) : column + half_px] = SPOT_RGB
    return picture


def spot(path: Path, height: int, width: int) -> tuple[float, float, float, float]:
    """Height, width and middle (row, column) of the square in the first picture of a clip."""
    with Clip(path, height, width, FPS) as clip:
        rgb = next(clip.pictures())
    assert rgb.shape == (height, width, 3) and rgb.dtype == np.uint8
    share = (rgb[..., 0].astype(float) - 120) / (SPOT_RGB[0] - 120)
    rows, columns = share.sum(1), share.sum(0)
    middle = [float((line * (np.arange(len(line)) + 0.5)).sum() / line.sum()) for line in (rows, columns)]
    # Scaling overshoots near edges, so only what most lines say counts.
    high, wide = (float(np.median(line[line > line.max() / 2])) for line in (columns, rows))
    return high, wide, middle[0], middle[1]


@pytest.mark.parametrize(
    ("rate_hz", "count", "shown"),
    [
        (8, 7, [0, 1, 2, 3, 4, 5, 6]),
        (24, 20, [0, 3, 6, 9, 12, 15, 18]),
        (4, 3, [0, 0, 1, 1, 2, 2]),
        (5, 4, [0, 0, 1, 1, 2, 3, 3]),
        (30, 10, [0, 3, 7]),
    ],
)
def test_any_rate_becomes_one(tmp_path: Path, rate_hz: int, count: int, shown: list[int]) -> None:
    """Picture k is what is on show after k / fps seconds, for as long as the file lasts."""
    write(tmp_path / "v.mp4", numbered(count), [n / rate_hz for n in range(count)], 1 / rate_hz)
    assert numbers(tmp_path / "v.mp4") == shown
    with Clip(tmp_path / "v.mp4", 16, 24, FPS) as clip:
        assert clip.frames_stated == len(shown)


def test_variable_rate(tmp_path: Path) -> None:
    """Frames at uneven times, the first not at 0, show for as long as they are on show."""
    write(tmp_path / "v.mp4", numbered(6), [0.5, 0.52, 0.54, 1.0, 1.25, 1.9], 0.2)
    shown = [0, 2, 2, 2, 3, 3, 4, 4, 4, 4, 4, 4, 5]
    assert numbers(tmp_path / "v.mp4") == shown


@pytest.mark.parametrize(("count", "indices"), [(1, [0]), (2, [0, 1]), (5, [0, 4]), (8, [0, 4, 7]), (9, [0, 4, 8])])
def test_every_fourth_and_the_last(tmp_path: Path, count: int, indices: list[int]) -> None:
    """Of every fourth picture the right ones come, and the last one always; one frame is enough."""
    write(tmp_path / "v.mp4", numbered(count), [n / 8 for n in range(count)])
    assert numbers(tmp_path / "v.mp4", every=4) == indices


def test_a_short_flash_is_one_picture(tmp_path: Path) -> None:
    """A file shorter than one picture's time still gives one."""
    write(tmp_path / "v.mp4", numbered(1), [0.0], 0.01)
    assert numbers(tmp_path / "v.mp4") == [0]


@pytest.mark.parametrize(
    ("height", "width"), [(64, 96), (128, 96), (97, 61), (33, 151), (40, 60), (240, 427)], ids=lambda side: str(side)
)
def test_any_size_is_cut_in_the_middle(tmp_path: Path, height: int, width: int) -> None:
    """Landscape, portrait and odd sizes are scaled to cover the picture; the middle stays and keeps its shape."""
    half_px = min(height, width) // 6
    write(tmp_path / "v.mp4", [spotted(height, width, half_px=half_px)], [0.0])
    high, wide, row, column = spot(tmp_path / "v.mp4", 64, 96)
    side = 2 * half_px * max(64 / height, 96 / width)
    assert high == pytest.approx(side, rel=0.06) and wide == pytest.approx(side, rel=0.06)
    assert abs(row - 32) < max(1.0, side / 12) and abs(column - 48) < max(1.0, side / 12)


@pytest.mark.parametrize(
    ("matrix", "row", "column"),
    [
        ((1, 0, 0, 1), 12, 36),
        ((-1, 0, 0, 1), 12, 108),  # mirrored
        ((-1, 0, 0, -1), 84, 108),
        ((1, 0, 0, -1), 84, 36),
        ((0, 1, 1, 0), 24, 18),  # transposed
        ((0, 1, -1, 0), 24, 126),
        ((0, -1, -1, 0), 72, 126),
        ((0, -1, 1, 0), 72, 18),
        ((0.9, 0.3, -0.3, 0.9), 12, 36),  # about upright
        ((0, 0, 0, 0), 12, 36),
    ],
)
def test_pictures_are_shown_as_the_file_says(
    tmp_path: Path, matrix: tuple[float, ...], row: float, column: float
) -> None:
    """All eight orientations of a display matrix, and the nearest of them where it says another; zeros say nothing."""
    a, b, c, d = (round(number * 65536) for number in matrix)
    write(tmp_path / "v.mp4", [spotted(96, 144, (1 / 8, 1 / 4))], [0.0], matrix=(a, b, 0, c, d, 0, 0, 0, 1 << 30))
    turned = abs(b) > abs(a)
    height, width = (144, 96) if turned else (96, 144)
    if turned:
        row, column = row * 1.5, column / 1.5
    assert spot(tmp_path / "v.mp4", height, width)[2:] == pytest.approx((row, column), abs=1.0)


def test_wide_pixels_of_a_turned_picture_are_high(tmp_path: Path) -> None:
    """What is not square is turned with its picture."""
    sideways = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    write(tmp_path / "v.mp4", [spotted(96, 48)], [0.0], pixel=Fraction(2, 1), matrix=sideways)
    high, wide, _, _ = spot(tmp_path / "v.mp4", 96, 96)
    assert (high, wide) == pytest.approx((24, 12), rel=0.06)


def test_wide_pixels_are_shown_wide(tmp_path: Path) -> None:
    """Pixels that are not square are made so."""
    write(tmp_path / "v.mp4", [spotted(96, 48)], [0.0], pixel=Fraction(2, 1))
    high, wide, _, _ = spot(tmp_path / "v.mp4", 96, 96)
    assert (high, wide) == pytest.approx((12, 24), rel=0.06)


def test_equal_size_is_left_alone(tmp_path: Path) -> None:
    """A picture of the right size is neither cut nor blurred."""
    write(tmp_path / "v.mp4", [spotted(64, 96)], [0.0])
    with Clip(tmp_path / "v.mp4", 64, 96, FPS) as clip:
        assert abs(next(clip.pictures()).astype(int) - spotted(64, 96)).max() <= 3


def test_pictures_come_while_the_file_is_read(tmp_path: Path) -> None:
    """The first pictures of a file are there before its end, which is damaged, is looked at."""
    _write_noise(tmp_path / "v.mp4", movflags="faststart")
    content = (tmp_path / "v.mp4").read_bytes()
    (tmp_path / "v.mp4").write_bytes(content[: len(content) // 2])
    with Clip(tmp_path / "v.mp4", 16, 24, FPS) as clip:
        pictures = clip.pictures()
        assert len(list(itertools.islice(pictures, 4))) == 4
        with pytest.raises(ValueError, match=r"v\.mp4 .*cut short"):
            list(pictures)


def _write_noise(path: Path, **options: str) -> None:
    rng = np.random.default_rng(0)
    write(path, [rng.integers(0, 255, (32, 48, 3), np.uint8) for _ in range(24)], [n / 8 for n in range(24)], **options)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.97])
@pytest.mark.parametrize("flags", ["faststart", ""])
def test_files_cut_short_are_refused(tmp_path: Path, share: float, flags: str) -> None:
    """Wherever an mp4 ends too early, with its index in front or behind, it is said."""
    _write_noise(tmp_path / "v.mp4", **({"movflags": flags} if flags else {}))
    content = (tmp_path / "v.mp4").read_bytes()
    (tmp_path / "v.mp4").write_bytes(content[: round(share * len(content))])
    with pytest.raises(ValueError, match=r"v\.mp4 .*cut short"), Clip(tmp_path / "v.mp4", 16, 24, FPS) as clip:
        list(clip.pictures())


def _write_sound(path: Path, cover: bool) -> None:
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=16000)
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 16, 16, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
            container.mux(picture.encode(av.VideoFrame(16, 16, "yuvj420p")))
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.sample_rate, frame.pts = 16000, 0
        frame.planes[0].update(bytes(frame.planes[0].buffer_size))
        container.mux([*sound.encode(frame), *sound.encode()])


@pytest.mark.parametrize("cover", [False, True])
def test_sound_alone_is_refused(tmp_path: Path, cover: bool) -> None:
    """A file with sound only, or sound and a picture of its cover, has no video."""
    _write_sound(tmp_path / "v.mp4", cover)
    with pytest.raises(ValueError, match="has no video"):
        Clip(tmp_path / "v.mp4", 16, 24, FPS)


@pytest.mark.parametrize(("content", "words"), [(None, "No such file"), (b"", "no video"), (b"words" * 99, "no video")])
def test_what_is_no_video_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    """Missing, empty and other files are named with what is wrong."""
    if content is not None:
        (tmp_path / "v.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=rf"v\.mp4 .*{words}"):
        Clip(tmp_path / "v.mp4", 16, 24, FPS)

import weakref
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from test_clip import numbered, write
from tiny import randomize, tiny_config, tiny_model, write_weights

from engine.__main__ import main
from engine.config import PRESETS
from engine.loading.weights import save_component
from engine.semantic.theia import Theia
from engine.video.token_file import TokenFile, TokenGOP
from engine.video.tokenize_video import VideoTokenizer, group


@pytest.fixture(scope="module")
def stages() -> VideoTokenizer:
    return VideoTokenizer(_theia(), tiny_model().tokenizer, torch.device("cpu"), torch.float32)


def _theia() -> Theia:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theia = Theia(tiny_config().theia).requires_grad_(False).eval()
    randomize("theia", theia)
    return theia


def _pictures(count: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, (count, 32, 48, 3), np.uint8)


def _grouped(stages: VideoTokenizer, count: int, overlap: bool) -> list[TokenGOP]:
    return list(group(_pictures(count), stages, overlap))


@pytest.mark.parametrize(
    ("count", "overlap", "layout"),
    [
        (1, False, [(0, 1)]),
        (13, False, [(0, 13)]),
        (14, False, [(0, 13), (13, 1)]),
        (30, False, [(0, 13), (13, 13), (26, 4)]),
        (1, True, [(0, 1)]),
        (13, True, [(0, 13)]),
        (14, True, [(0, 13), (10, 4)]),
        (23, True, [(0, 13), (10, 13)]),
        (30, True, [(0, 13), (10, 13), (20, 10)]),
    ],
)
def test_gops_cover_the_video(stages: VideoTokenizer, count: int, overlap: bool, layout: list[tuple[int, int]]) -> None:
    """GOPs are full but the last; with an overlap each begins three frames, a fifth, before the last one's end."""
    gops = _grouped(stages, count, overlap)
    assert [(gop.start, gop.frames) for gop in gops] == layout
    for gop in gops:
        with torch.inference_mode():
            parts = [stages.features(rgb) for rgb in _pictures(count)[gop.start : gop.end]]
            expected = stages.tokenizer.encode(torch.cat(parts, dim=1))[0]
        assert gop.tokens.tolist() == expected.tolist()


def test_later_pictures_do_not_reach_back(stages: VideoTokenizer) -> None:
    """A longer video has the GOPs of a shorter one, up to the last token of the frames that both have."""
    short, long = _grouped(stages, 20, True), _grouped(stages, 40, True)
    assert short[0].tokens.tolist() == long[0].tokens.tolist()
    assert short[1].tokens.tolist() == long[1].tokens[: len(short[1].tokens)].tolist()


def test_features_are_of_the_picture(stages: VideoTokenizer) -> None:
    """A picture reaches the extractor upright, with its colours in order."""
    picture = _pictures(1)[0]
    with torch.inference_mode():
        expected = _theia()(torch.from_numpy(picture).permute(2, 0, 1)[None, None])
    assert torch.equal(stages.features(picture), expected)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tiny preset's weights, the extractor's too; `--preset tiny` works."""
    monkeypatch.setitem(PRESETS, "tiny", tiny_config)
    folder = tmp_path / "weights"
    write_weights(folder)
    save_component(folder, "theia", _theia())
    return folder


def _tokenize(video: Path, out: Path, weights: Path, *more: str) -> int:
    given = ["--out", str(out), "--preset", "tiny", "--weights", str(weights), "--device", "cpu"]
    return main(["tokenize", str(video), *given, *more])


@pytest.mark.parametrize("more", [[], ["--overlap"]])
def test_command_writes_the_tokens(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    """A video of another size and rate becomes tokens of the preset's size and rate, with a progress bar."""
    write(tmp_path / "v.mp4", numbered(160), [n / 24 for n in range(160)], 1 / 24)
    assert _tokenize(tmp_path / "v.mp4", tmp_path / "t.npz", weights, *more) == 0
    assert "54/54" in capsys.readouterr().err
    file = TokenFile.read(tmp_path / "t.npz")
    assert (file.config, file.frames) == (tiny_config(), 54)
    expected = [(0, 13), (10, 5)] if more else [(0, 13), (13, 2)]
    assert [(gop.start, gop.frames) for gop in file.gops] == expected


def test_one_frame_is_enough(tmp_path: Path, weights: Path) -> None:
    """A video of one frame is one GOP of one frame."""
    write(tmp_path / "v.mp4", numbered(1), [0.0])
    assert _tokenize(tmp_path / "v.mp4", tmp_path / "t.npz", weights) == 0
    file = TokenFile.read(tmp_path / "t.npz")
    assert [(gop.start, gop.frames) for gop in file.gops] == [(0, 1)] and file.frames == 1


def test_bad_input_leaves_nothing(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Videos and weights that cannot be read end the command with status 2 and one line, and leave no file."""
    video = tmp_path / "v.mp4"
    write(video, numbered(60), [n / 8 for n in range(60)], movflags="faststart")
    whole = video.read_bytes()
    out = tmp_path / "t.npz"
    for number, content in enumerate([b"", b"words" * 99, whole[: len(whole) // 2]]):
        video.write_bytes(content)
        assert _tokenize(video, out, weights) == 2, number
    video.write_bytes(whole)
    assert _tokenize(video, tmp_path / "t.txt", weights) == 2
    out.hardlink_to(video)
    assert _tokenize(video, out, weights) == 2
    out.unlink()
    assert _tokenize(tmp_path / "none.mp4", out, weights) == 2
    (weights / "theia.safetensors").unlink()
    assert _tokenize(video, out, weights) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tokenize: ") and "%" not in line]
    words = ["no video", "no video", "cut short", "npz", "t.npz is what is read", "No such file"]
    assert len(lines) == 7 and all(word in line for word, line in zip(words, lines, strict=False))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["v.mp4", "weights"]


def test_full_disks_are_named(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A device without room ends the command with status 2, its name and a cure; the device stays."""
    write(tmp_path / "v.mp4", numbered(1), [0.0])
    (tmp_path / "t.npz").symlink_to("/dev/full")
    assert _tokenize(tmp_path / "v.mp4", tmp_path / "t.npz", weights) == 2
    assert "t.npz cannot be written (No space left on device): make room" in capsys.readouterr().err.splitlines()[-1]
    assert Path("/dev/full").is_char_device()


def test_memory_holds_one_gop(stages: VideoTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pictures come, the features of one GOP at most are kept."""
    made: list[weakref.ref[torch.Tensor]] = []
    held = []

    def features(_: VideoTokenizer, rgb: npt.NDArray[np.uint8]) -> torch.Tensor:
        tensor = torch.zeros(1, 1, 6, 2, 3)
        held.append(sum(ref() is not None for ref in made))
        made.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(VideoTokenizer, "features", features)
    assert len(_grouped(stages, 52, overlap=True)) == 5
    assert max(held) <= 13 and held[-10:] == held[-20:-10]

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import av
import checkpoint
import numpy as np
import numpy.typing as npt
import pytest
import torch
from test_clip import numbered, write
from tiny import tiny_config, tiny_model, write_weights

from engine import config as presets
from engine.__main__ import main
from engine.live.generator import ChannelState, Generator
from engine.live.offline import generate_frames
from engine.loading.model import Model, load
from engine.perceptual.frames import to_host
from engine.semantic.theia import Theia
from engine.training.world import drawing
from engine.training.world.captions import Label
from engine.video import tokenize_video
from engine.video.reconstruct import load_without_text, read_features, reconstruct
from engine.video.token_file import TokenFile, TokenGOP
from engine.video.video_file import VideoFile

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


def _gops(layout: list[tuple[int, int]]) -> tuple[TokenGOP, ...]:
    rng = np.random.default_rng(0)
    tokens = tiny_config().tokenizer.tokens
    return tuple(TokenGOP(start, n, rng.integers(0, 32, tokens(n)).astype(np.uint16)) for start, n in layout)


def _features(model: Model, gop: TokenGOP) -> torch.Tensor:
    return model.tokenizer.decode(torch.tensor(gop.tokens.astype(np.int64))[None])


def _read(gops: Sequence[TokenGOP], model: Model, sizes: list[int]) -> torch.Tensor:
    """Features of reads of these sizes, end to end."""
    planned = list(read_features(gops, model, sizes))
    assert [part.start for part in planned] == [sum(sizes[:number]) for number in range(len(sizes))]
    assert [part.features.shape[1] for part in planned] == sizes
    return torch.cat([part.features for part in planned], dim=1)


@pytest.mark.parametrize("sizes", [[7, 6, 6, 6], [1] * 25, [25], [13, 12]])
def test_gops_are_put_end_to_end(model: Model, sizes: list[int]) -> None:
    """Whatever is read at a time, features are those of the GOPs in order; behind the end the last one stays."""
    gops = _gops([(0, 13), (13, 9)])
    whole = torch.cat([_features(model, gop) for gop in gops], dim=1)
    expected = torch.cat([whole, whole[:, -1:].expand(-1, 3, -1, -1, -1)], dim=1)
    torch.testing.assert_close(_read(gops, model, sizes), expected)


def test_overlapping_gops_fade(model: Model) -> None:
    """Over three common frames the share of the later GOP is a quarter, a half, and three quarters."""
    gops = _gops([(0, 13), (10, 13), (20, 4)])
    first, second, third = (_features(model, gop) for gop in gops)
    share = torch.tensor([0.25, 0.5, 0.75])[:, None, None, None]
    fades = [a[:, 10:] * (1 - share) + b[:, :3] * share for a, b in ((first, second), (second, third))]
    expected = torch.cat([first[:, :10], fades[0], second[:, 3:10], fades[1], third[:, 3:]], dim=1)
    torch.testing.assert_close(_read(gops, model, [7, 6, 6, 5]), expected)


def test_one_gop_is_decoded_at_a_time(model: Model) -> None:
    """A GOP is decoded when a chunk, and one frame to look ahead, need its frames."""
    decoded = []
    hook = model.tokenizer.decoder.register_forward_hook(lambda *_: decoded.append(1))
    seen = [len(decoded) for _ in read_features(_gops([(13 * n, 13) for n in range(5)]), model, [7, 6, 6])]
    hook.remove()
    assert seen == [1, 2, 2]


def _planned(generator: Generator, seed: int) -> tuple[ChannelState, list[TokenGOP]]:
    """A channel, and the two GOPs that it plans first."""
    channel = generator.open("a red ball", seed)
    while generator.planned(channel) - channel.next.latent < 26:
        generator.plan(channel)
    tokens = [gop.tokens[0].numpy().astype(np.uint16) for gop in channel.plan.gops[:2]]
    return channel, [TokenGOP(13 * number, 13, part) for number, part in enumerate(tokens)]


def test_tokens_of_a_generated_video_give_it_back(model: Model) -> None:
    """The tokens that a channel planned, its prompt and its seed make the channel's video again."""
    generator = Generator(model)
    channel, gops = _planned(generator, 3)
    tokens = TokenFile(model.config, 101, tuple(gops))
    streamed = np.concatenate([batch.i420 for batch in generate_frames(generator, channel, 97)])
    again = np.concatenate([batch.i420 for batch in reconstruct(generator, tokens, "a red ball", 3)])[:97]
    assert abs(streamed.astype(int) - again).max() <= 1
    other = np.concatenate([batch.i420 for batch in reconstruct(generator, tokens, "a red ball", 4)])[:97]
    assert abs(streamed.astype(int) - other).mean() > 2


@pytest.mark.parametrize(("frames", "layout"), [(1, [(0, 1)]), (2, [(0, 2)]), (26, [(0, 8)]), (53, [(0, 13), (10, 4)])])
def test_length_is_that_of_the_original(model: Model, frames: int, layout: list[tuple[int, int]]) -> None:
    """Frames come in order and end where the original ended, within a chunk or not."""
    batches = list(reconstruct(Generator(model), TokenFile(model.config, frames, _gops(layout)), "", 0))
    assert sum(batch.frames for batch in batches) == frames
    assert [batch.index for batch in batches] == np.cumsum([0, *(batch.frames for batch in batches[:-1])]).tolist()


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tiny preset's weights, which presets now know."""
    monkeypatch.setitem(presets.PRESETS, "tiny", tiny_config)
    write_weights(tmp_path / "weights")
    return tmp_path / "weights"


def test_no_text_is_zeros(weights: Path) -> None:
    """Without a prompt the renderer reads zeros, and neither text encoder nor planner are loaded."""
    whole = load(tiny_config(), weights, CPU, torch.float32)
    for name in ("text", "planner"):
        (weights / f"{name}.safetensors").unlink()
    bare = load_without_text(tiny_config(), weights, CPU, torch.float32)
    assert all(parameter.is_meta for parameter in bare.planner.parameters())
    expected = torch.zeros_like(whole.text.embed("a red ball").renderer)
    assert torch.equal(bare.text.embed("").renderer, expected)
    tokens = TokenFile(whole.config, 25, _gops([(0, 7)]))
    with_text = np.concatenate([batch.i420 for batch in reconstruct(Generator(whole), tokens, "a red ball", 0)])
    without = np.concatenate([batch.i420 for batch in reconstruct(Generator(bare), tokens, "", 0)])
    assert abs(with_text.astype(int) - without).max() > 2


def _reconstruct(tokens: Path, out: Path, weights: Path, *more: str) -> int:
    return main(["reconstruct", str(tokens), "--out", str(out), "--weights", str(weights), "--device", "cpu", *more])


def _video(path: Path) -> npt.NDArray[np.uint8]:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray() for frame in container.decode(video=0)])


def test_command_writes_the_video(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file has the original's length at the preset's size; prompt and seed change the picture."""
    TokenFile(tiny_config(), 54, _gops([(0, 13), (13, 2)])).write(tmp_path / "t.npz")
    variants: list[list[str]] = [[], ["--seed", "1"], ["--prompt", "the blue sea"]]
    for number, more in enumerate(variants):
        assert _reconstruct(tmp_path / "t.npz", tmp_path / f"{number}.mp4", weights, *more) == 0
    assert "54/54" in capsys.readouterr().err
    videos = [_video(tmp_path / f"{number}.mp4").astype(int) for number in range(3)]
    assert {video.shape for video in videos} == {(54, 48, 48)}
    assert all(abs(video - videos[0]).mean() > 0.5 for video in videos[1:])


def test_bad_input_leaves_nothing(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tokens, presets and weights that do not fit end the command with status 2 and one line, and leave no file."""
    tokens, out = tmp_path / "t.npz", tmp_path / "v.mp4"
    tokens.write_bytes(b"words" * 99)
    assert _reconstruct(tokens, out, weights) == 2
    TokenFile(replace(tiny_config(), height_px=64), 49, _gops([(0, 13)])).write(tokens)
    assert _reconstruct(tokens, out, weights) == 2
    TokenFile(tiny_config(), 49, _gops([(0, 13)])).write(tokens)
    assert _reconstruct(tokens, tmp_path / "v.avi", weights) == 2
    same = tokens.rename(tmp_path / "t.mp4")
    assert _reconstruct(same, same, weights) == 2
    same.rename(tokens)
    with pytest.raises(SystemExit):
        _reconstruct(tokens, out, weights, "--prompt", " ")
    (weights / "vae.safetensors").unlink()
    assert _reconstruct(tokens, out, weights) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("reconstruct: ")]
    words = ["t.npz", "height_px 64, not 32", "mp4", "t.mp4 is what is read", "weights"]
    assert len(lines) == 5 and all(word in line for word, line in zip(words, lines, strict=True))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["t.npz", "weights"]


def test_published_model_at_tiny_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A published folder without text encoders and planner turns a video to tokens and back, overlapping or not."""
    monkeypatch.setitem(presets.PRESETS, "landiff", lambda: checkpoint.TINY)
    folder = tmp_path / "weights"
    checkpoint.make_folder(folder)
    extractor = checkpoint.make_extractor(folder)
    (folder / checkpoint.PLANNER).unlink()
    write(tmp_path / "v.mp4", numbered(60), [n / 8 for n in range(60)])
    given = ["--weights", str(folder), "--device", "cpu"]
    for more in ([], ["--overlap"]):
        asked = ["--out", str(tmp_path / "t.npz"), "--preset", "landiff", *more]
        assert main(["tokenize", str(tmp_path / "v.mp4"), *asked, *given]) == 0
        assert main(["reconstruct", str(tmp_path / "t.npz"), "--out", str(tmp_path / "w.mp4"), *given]) == 0
        assert _video(tmp_path / "w.mp4").shape == (60, 24, 32)
    theia = Theia(checkpoint.TINY.theia)
    theia.load_state_dict(extractor)
    picture = numbered(20)[19].repeat(2, axis=1)[:, :32]
    with torch.inference_mode():
        expected = theia(torch.from_numpy(picture).movedim(-1, 0)[None, None])
    stages = tokenize_video.load(checkpoint.TINY, folder, CPU, torch.float32)
    torch.testing.assert_close(stages.features(picture), expected)


def test_a_drawn_world_comes_back(tmp_path: Path) -> None:
    """With the shipped weights a red car in the desert is a red car in the desert again, where it was."""
    spec = drawing.sample([Label("car", "red", "desert", "right", "medium")], random.Random(0))
    true = drawing.draw(spec, torch.arange(49)[None])
    with VideoFile(tmp_path / "v.mp4", drawing.WIDTH_PX, drawing.HEIGHT_PX, 8.0) as file:
        file.write(to_host(true.float() / 127.5 - 1))
    assert main(["tokenize", str(tmp_path / "v.mp4"), "--out", str(tmp_path / "t.npz"), "--device", "cpu"]) == 0
    assert main(["reconstruct", str(tmp_path / "t.npz"), "--out", str(tmp_path / "w.mp4"), "--device", "cpu"]) == 0
    with av.open(str(tmp_path / "w.mp4")) as container:
        made = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    drawn = true[0].permute(0, 2, 3, 1).numpy()
    assert abs(made.mean(axis=(0, 1, 2)) - drawn.mean(axis=(0, 1, 2))).max() < 15
    gaps = [_red_place(one) - _red_place(other) for one, other in zip(made, drawn, strict=True)]
    assert np.median(np.linalg.norm(gaps, axis=1)) < 10


def _red_place(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Middle of what is much redder than green, in pixels."""
    return np.argwhere(rgb[..., 0].astype(int) - rgb[..., 1] > 110).mean(axis=0)

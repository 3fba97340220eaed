"""Training on a folder of captioned videos, real files, both kinds of preset, at tiny size."""

import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import checkpoint
import pytest
import torch
from safetensors.torch import load_file
from test_training_stages import improves
from tiny import randomize, tiny_config, write_weights

from engine import config
from engine.config import PRESETS, EngineConfig
from engine.live.generator import Generator
from engine.live.offline import film
from engine.loading.model import build, load
from engine.loading.weights import load_component, save_component, write_description
from engine.perceptual.frames import to_host
from engine.perceptual.mini.vae import TinyVAE
from engine.perceptual.solver import clean_of_velocity
from engine.semantic.planner import Planner
from engine.semantic.theia import Theia
from engine.text.small_t5 import SmallT5
from engine.training import __main__ as command
from engine.training import build as stages
from engine.training.folder import Place
from engine.training.run import Stage
from engine.training.stages import autoencoder
from engine.training.stages import renderer_folder as filming
from engine.training.stages import tokenizer_folder as footage_tokens
from engine.training.stages.planner_folder import FootagePlanner, motion_score
from engine.training.stages.renderer_folder import FootageRenderer
from engine.training.stages.text import TEXT_STD
from engine.training.stages.tokenizer_folder import FootageTokenizer
from engine.training.world import drawing as world
from engine.training.world.captions import caption, random_label
from engine.video.video_file import VideoFile

CPU = torch.device("cpu")


PUBLISHED = dataclasses.replace(checkpoint.TINY, theia=dataclasses.replace(checkpoint.TINY.theia, canvas=32))


def clips(folder: Path, lengths: dict[str, int]) -> Path:
    """Small clips of the drawn world as files, of so many frames each, with captions."""
    folder.mkdir(exist_ok=True)
    for name, frames in lengths.items():
        rng = random.Random(name)
        label = random_label(rng)
        video = world.draw(world.sample([label], rng), torch.arange(frames)[None])[0].float() / 127.5 - 1
        with VideoFile(folder / f"{name}.mp4", 48, 32, 8.0) as file:
            file.write(to_host(torch.nn.functional.avg_pool2d(video, 4)[None]))
        (folder / f"{name}.txt").write_text(caption(label, rng))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos, one of them long enough for two groups."""
    return clips(tmp_path_factory.mktemp("data"), {"long": 101, "one": 69, "two": 65})


@pytest.fixture
def mini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of a tiny preset like `mini`, its extractor among them."""
    monkeypatch.setitem(PRESETS, "mini", lambda: dataclasses.replace(tiny_config(), name="mini"))
    write_weights(tmp_path)
    write_description(tmp_path, "mini", "a test")
    _write_extractor(tmp_path, tiny_config())
    return tmp_path


@pytest.fixture
def mini_arlon(mini: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same of a preset that plans latents: its own tokenizer, planner and renderer."""
    monkeypatch.setattr(config, "_mini", PRESETS["mini"])
    write_description(mini, "mini-arlon", "a test")
    for name, module in build(PRESETS["mini-arlon"](), "cpu").items():
        if name != "vae":
            randomize(name, module)
            save_component(mini, name, module)
    return mini


@pytest.fixture
def landiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of a tiny preset with the published model's structure, in our own layout."""
    monkeypatch.setitem(PRESETS, "landiff", lambda: PUBLISHED)
    write_description(tmp_path, "landiff", "a test")
    for name, module in build(PUBLISHED, "cpu").items():
        randomize(name if name != "vae" else "autoencoder", module)
        save_component(tmp_path, name, module)
    _write_extractor(tmp_path, PUBLISHED)
    checkpoint.make_texts(tmp_path)
    return tmp_path


def _write_extractor(folder: Path, config: EngineConfig) -> None:
    theia = Theia(config.theia)
    randomize("theia", theia)
    save_component(folder, "theia", theia)


def made(name: str, preset: str, weights: Path, data: Path, *more: str) -> Stage:
    """A stage as the command line builds it."""
    words = [name, "--preset", preset, "--weights", str(weights), "--data", str(data), "--device", "cpu", *more]
    return stages.build(name, PRESETS[preset](), command.parse(words))


@pytest.mark.parametrize("preset", ["mini", "mini-arlon", "landiff"])
@pytest.mark.parametrize("name", ["tokenizer", "planner", "renderer"])
def test_stages_learn_from_videos(name: str, preset: str, data: Path, request: pytest.FixtureRequest) -> None:
    """Every stage of each preset fits what it sees, is judged on what it does not, and writes its weights."""
    weights: Path = request.getfixturevalue(preset.replace("-", "_"))
    before = (weights / f"{name}.safetensors").read_bytes()
    stage = made(name, preset, weights, data)
    stage.module.train()
    assert improves(stage, 6, 5e-3)
    stage.module.eval()
    with torch.no_grad():
        assert all(value == value for value in stage.evaluate().values())
        assert stage.evaluate() == stage.evaluate()
    stage.export()
    assert (weights / f"{name}.safetensors").read_bytes() != before


@pytest.mark.timeout(300)
def test_all_stages_in_turn_make_a_model_that_generates(
    mini: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of the documentation, one after another, leave a folder that `generate` loads."""
    monkeypatch.setattr(autoencoder, "PCA_CLIPS", 3)
    for name in ("autoencoder", "tokenizer", "planner", "renderer"):
        words = [name, "--weights", str(mini), "--data", str(data), "--minutes", "0.005", "--batch", "2"]
        words += ["--folder", str(tmp_path / "runs" / name), "--device", "cpu"]
        assert command.main(words) == 0
        lines = (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["kind"] == "evaluate"
    generator = Generator(load(PRESETS["mini"](), mini, CPU, torch.float32))
    assert sum(chunk.frames for chunk in film(generator, generator.open("a red ball", 0), 30)) == 30


def test_plans_without_semantic_features_are_of_latents(mini_arlon: Path, data: Path) -> None:
    """What the tokenizer then learns are the autoencoder's latents, four to a cell, and its planner loads and films."""
    stage = made("tokenizer", "mini-arlon", mini_arlon, data)
    assert isinstance(stage, FootageTokenizer)
    place = stage.footage.place(0, 13, random.Random(0))
    video, features = stage.footage.video(place), stage.footage.features(place)
    vae = stage.footage.extractor
    assert isinstance(vae, TinyVAE)
    assert features.shape == (1, 13, 16, 2, 3)
    latents = vae.encode(video.float() / 127.5 - 1, vae.new_state())
    torch.testing.assert_close(features[0, 5, 4:8, 1, 2], latents[0, 5, 1, 2:4, 4:6].flatten(), atol=0.05, rtol=0.05)
    generator = Generator(load(PRESETS["mini-arlon"](), mini_arlon, CPU, torch.float32))
    assert sum(chunk.frames for chunk in film(generator, generator.open("a red ball", 0), 30)) == 30


def test_the_same_step_sees_the_same_videos(mini: Path, data: Path) -> None:
    """A resumed run goes on with the data it would have had."""
    stage = made("tokenizer", "mini", mini, data)
    assert isinstance(stage, FootageTokenizer)
    stage.module.eval()
    first, second = (stage.loss(7, 2)[0] for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(first, stage.loss(8, 2)[0])


def test_a_channel_counts_by_its_spread() -> None:
    """Not by its variance, nor beyond what a few clips can tell of what they hardly show."""
    spread = torch.tensor([1.0, 2.0, 3.0, 0.0])
    scale = footage_tokens.channel_scale(spread)
    assert float((scale * spread.square()).mean()) == pytest.approx(1.0)
    torch.testing.assert_close(scale, torch.tensor([1 / 1.5, 1 / 3.0, 1 / 4.5, 1 / (1.5 * 0.25 * 1.5)]))


@pytest.mark.parametrize(("preset", "read"), [("mini", True), ("landiff", False)])
def test_means_are_read_from_a_small_tokenizer_alone(
    preset: str, read: bool, data: Path, request: pytest.FixtureRequest
) -> None:
    """The reader learns to tell frames' means from vectors, and is no part of the weights; the release has none."""
    weights: Path = request.getfixturevalue(preset)
    stage = made("tokenizer", preset, weights, data)
    assert isinstance(stage, FootageTokenizer)
    figures = [stage.loss(step, 2)[1] for step in range(2)]
    assert all(("means" in one) == read for one in figures)
    stage.export()
    assert not any("means" in name for name in load_file(weights / "tokenizer.safetensors"))


def test_a_planners_text_encoder_learns_from_videos(mini: Path, data: Path) -> None:
    """Its word embeddings start large enough to be read, and have gradients."""
    stage = made("planner", "mini", mini, data)
    assert isinstance(stage, FootagePlanner) and isinstance(stage.text, SmallT5)
    words = stage.text.encoder.shared.weight
    assert float(words.detach().std()) == pytest.approx(TEXT_STD, rel=0.2)
    stage.loss(0, 2)[0].backward()
    assert words.grad is not None and bool(words.grad.any())


def test_what_was_made_of_a_stretch_is_kept(mini: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place that comes again is not read again; places are START_STEP apart, and end in the video."""
    footage = made("tokenizer", "mini", mini, data).footage  # type: ignore[attr-defined]
    rng = random.Random(0)
    places = {footage.place(1, 13, rng) for _ in range(200)}
    assert {place.start for place in places} == set(range(0, footage.videos.lengths[1] - 48, 4))
    place = min(places, key=lambda place: place.start)
    features = footage.features(place)
    monkeypatch.setattr(footage, "video", lambda place: pytest.fail("read again"))
    assert footage.features(place) is features


def test_videos_that_fit_into_memory_are_read_once(mini: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another stretch of such a video is not read from its file again, and is the same as one that is."""
    footage = made("tokenizer", "mini", mini, data).footage  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr("engine.training.folder.KEPT_BYTES", 0)
        expected = footage.stretch(1, 4, 9)
    footage.stretch(1, 0, 9)
    monkeypatch.setattr(footage.videos, "cut", lambda *_: pytest.fail("read again"))
    assert torch.equal(footage.stretch(1, 4, 9), expected)


def test_a_planner_sees_two_groups_where_a_video_is_long_enough(mini: Path, data: Path) -> None:
    """The second group stands behind the first as when a video goes on; short videos give one."""
    stage = made("planner", "mini", mini, data)
    assert isinstance(stage, FootagePlanner)
    videos = stage.footage.videos
    assert [stage.footage.fits(row, 26) for row in range(3)] == [
        "long" in entry.path.name for entry in videos.entries
    ]  # fmt: skip
    config = tiny_config()
    [long] = [row for row in range(3) if stage.footage.fits(row, 26)]
    codes, _ = stage.planned(Place(long, 0, 26))
    tokens, is_code = stage.sequence(codes[None])
    one, _ = stage.sequence(stage.planned(Place(long, 0, 13))[0][None])
    assert torch.equal(tokens[:, : one.shape[1]], one) and tokens.shape[1] == 2 * one.shape[1]
    assert int(is_code.sum()) == 2 * config.tokenizer.group_tokens


def test_motion_scores_rise_with_motion() -> None:
    """A still stretch has 0; more change is nearer to 1."""
    still = torch.randn(1, 1, 6, 2, 3).expand(1, 8, 6, 2, 3)
    moving = still + 0.2 * torch.randn(1, 8, 6, 2, 3)
    assert motion_score(still) == 0.0 < motion_score(moving) < motion_score(torch.randn(1, 8, 6, 2, 3)) < 1.0


def test_the_velocity_that_is_learned_leads_to_the_clean_latents(landiff: Path, data: Path) -> None:
    """What the published kind of renderer should predict is what the sampler makes clean latents of."""
    stage = made("renderer", "landiff", landiff, data)
    assert isinstance(stage, FootageRenderer)
    clean, schedule = torch.randn(1, 6, 4, 4, 8), PUBLISHED.schedule
    levels = schedule.levels(1000)
    for seed in range(5):
        noisy, time, velocity = stage.noised(clean, random.Random(seed))
        alpha = levels.alphas[999 - int(time)]
        assert int(levels.times[999 - int(time)]) == int(time)
        torch.testing.assert_close(clean_of_velocity(noisy, velocity, alpha), clean, atol=1e-4, rtol=1e-4)


def test_the_control_branch_is_trained_on_a_frozen_base(landiff: Path, data: Path) -> None:
    """Its layers start as the base's, its residuals at nothing; then they move and the base does not."""
    stage = made("renderer", "landiff", landiff, data, "--part", "control")
    assert isinstance(stage, FootageRenderer)
    base, control = stage.renderer.base.state_dict(), stage.renderer.control.state_dict()
    assert all(torch.equal(control[name], base[name]) for name in control if name.startswith("blocks.0."))
    assert all(not zero.any() for zero in stage.renderer.control.zeros.parameters())
    before = {name: value.clone() for name, value in stage.renderer.state_dict().items()}
    improves(stage, 6, 1e-2)
    after = stage.renderer.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in after if name.startswith("base."))
    assert not torch.equal(after["control.zeros.0.weight"], before["control.zeros.0.weight"])


def test_the_base_is_trained_without_the_control_branch(landiff: Path, data: Path) -> None:
    """Only the base has gradients, and features make no difference to it."""
    stage = made("renderer", "landiff", landiff, data, "--part", "base", "--features", "teacher")
    assert isinstance(stage, FootageRenderer)
    trained = {name.split(".")[0] for name, p in stage.renderer.named_parameters() if p.requires_grad}
    assert trained == {"base"}
    latents, features, _ = stage.window(13, True, random.Random(0), False)
    text, time = torch.zeros(1, 5, 16), torch.tensor([500])
    outputs = [
        stage.renderer.predict(latents, time, text, stage.renderer.condition(given), 7)
        for given in (features, torch.zeros_like(features))
    ]
    assert torch.equal(*outputs)


def test_latents_in_the_middle_of_a_video_stand_for_four_frames(mini: Path, data: Path) -> None:
    """Windows of both kinds have one length; features and latents belong to the same frames."""
    stage = made("renderer", "mini", mini, data)
    assert isinstance(stage, FootageRenderer)
    for inside in (True, False):
        latents, features, words = stage.window(7, inside, random.Random(1), False)
        assert latents.shape[:2] == features.shape[:2] == (1, 7)
        assert words


def test_windows_come_again_from_a_few_places(mini: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training draws some new places and forgets the oldest; held-out windows are not trained on."""
    monkeypatch.setattr(filming, "LEAST_PLACES", 3)
    monkeypatch.setattr(filming, "KEPT_PLACES", 5)
    stage = made("renderer", "mini", mini, data)
    assert isinstance(stage, FootageRenderer)
    rng, drawn = random.Random(2), []
    place = stage.place

    def noted(*how: Any) -> tuple[Place, int]:
        drawn.append(place(*how))
        return drawn[-1]

    monkeypatch.setattr(stage, "place", noted)
    for _ in range(40):
        stage.window(7, True, rng, False)
    assert list(stage.places[True]) == drawn[-5:]
    assert 5 < len(drawn) < 25
    stage.window(7, False, rng, True)
    assert not stage.places[False]


REFUSALS: dict[str, tuple[str, str, tuple[str, ...], str]] = {
    "world": ("extractor", "mini", (), "leave --data away"),
    "base": ("renderer", "mini", ("--part", "base"), "train part 'both'"),
    "vae": ("autoencoder", "landiff", (), "used as published"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_learned_from_videos_is_refused(
    case: str, data: Path, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    """The error says what to do instead."""
    name, preset, more, complaint = REFUSALS[case]
    weights: Path = request.getfixturevalue(preset)
    words = [name, "--preset", preset, "--weights", str(weights), "--data", str(data), "--folder", str(weights / "run")]
    assert command.main([*words, "--device", "cpu", *more]) == 2
    assert complaint in caplog.text


def test_the_published_preset_needs_videos(landiff: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The drawn world is the small preset's only."""
    words = ["renderer", "--preset", "landiff", "--weights", str(landiff), "--folder", str(landiff / "run")]
    assert command.main(words) == 2
    assert "give --data" in caplog.text


def test_a_checkpoint_of_other_videos_is_refused(
    mini: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run resumes on the data it began with."""
    words = ["tokenizer", "--weights", str(mini), "--minutes", "0.002", "--batch", "1", "--device", "cpu"]
    words += ["--folder", str(tmp_path / "run")]
    assert command.main([*words, "--data", str(data)]) == 0
    other = clips(tmp_path / "other", {"three": 49})
    assert command.main([*words, "--data", str(other)]) == 2
    assert "is of another run" in caplog.text


@pytest.mark.timeout(300)
def test_two_processes_train_a_published_stage(landiff: Path, data: Path, tmp_path: Path) -> None:
    """The command under torchrun: both see videos of their own, and leave weights and a checkpoint of whole tensors."""
    program = tmp_path / "program.py"
    program.write_text(
        f"import sys\nsys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}\n"
        "from engine.config import PRESETS\nfrom engine.training.__main__ import main\n"
        "from test_footage import PUBLISHED\nPRESETS['landiff'] = lambda: PUBLISHED\nsys.exit(main(sys.argv[1:]))\n"
    )
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program), "planner"]
    words += ["--preset", "landiff", "--weights", str(landiff), "--data", str(data), "--folder", str(tmp_path / "run")]
    words += ["--minutes", "0.02", "--batch", "1", "--device", "cpu", "--threads", "1"]
    result = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    planner = Planner(PUBLISHED.planner)
    planner.load_state_dict(saved["module"])
    load_component(landiff, "planner", planner)
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert kinds.count("evaluate") == 1

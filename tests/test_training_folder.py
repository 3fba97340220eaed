"""Training on a folder of captioned videos, real files, both kinds of preset, at tiny size."""

import dataclasses
import json
import random
from pathlib import Path

import checkpoint
import pytest
import torch
from safetensors.torch import load_file
from test_training_stages import improves, judged, small_pools
from tiny import randomize, tiny_config, write_weights

from engine.config import EngineConfig
from engine.live.generator import Generator
from engine.live.offline import generate_frames
from engine.loading.model import load
from engine.loading.modules import build as build_modules
from engine.loading.weights import save_component, write_description
from engine.perceptual.frames import to_host
from engine.perceptual.solver import clean_of_velocity
from engine.semantic.theia import Theia
from engine.text.small_t5 import SmallT5
from engine.training.__main__ import signature, train_stage
from engine.training.build import build
from engine.training.run import RunConfig
from engine.training.setup import TEXT_STD, StageSetup
from engine.training.sources.folder import error_weights
from engine.training.stages.planner import PlannerStage, motion_scores
from engine.training.stages.renderer import RendererBatch, RendererStage
from engine.training.world import drawing as world
from engine.training.world.captions import caption, random_label
from engine.video.video_file import VideoFile

MINI = dataclasses.replace(tiny_config(), name="mini")
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
    """Three videos, one of them long enough for two GOPs."""
    return clips(tmp_path_factory.mktemp("data"), {"long": 101, "one": 69, "two": 65})


def _write_extractor(folder: Path, config: EngineConfig) -> None:
    theia = Theia(config.theia)
    randomize("theia", theia)
    save_component(folder, "theia", theia)


@pytest.fixture
def mini(tmp_path: Path, data: Path) -> StageSetup:
    """A tiny preset like `mini` with all its weights, the extractor's among them."""
    write_weights(tmp_path)
    write_description(tmp_path, "mini", "a test")
    _write_extractor(tmp_path, MINI)
    return StageSetup(MINI, tmp_path, data)


@pytest.fixture
def landiff(tmp_path: Path, data: Path) -> StageSetup:
    """A tiny preset with the published model's structure, in our own layout."""
    write_description(tmp_path, "landiff", "a test")
    for name, module in build_modules(PUBLISHED, "cpu").items():
        randomize(name if name != "vae" else "autoencoder", module)
        save_component(tmp_path, name, module)
    _write_extractor(tmp_path, PUBLISHED)
    checkpoint.make_texts(tmp_path)
    return StageSetup(PUBLISHED, tmp_path, data)


@pytest.fixture
def setup(request: pytest.FixtureRequest) -> StageSetup:
    """The preset that a test names."""
    chosen: StageSetup = request.getfixturevalue(request.param)
    return chosen


@pytest.mark.parametrize("setup", ["mini", "landiff"], indirect=True)
@pytest.mark.parametrize("name", ["tokenizer", "planner", "renderer"])
def test_stages_learn_from_videos(setup: StageSetup, name: str) -> None:
    """Every stage of each preset fits what it sees, is judged on what it does not, and writes its weights."""
    written = setup.weights / f"{name}.safetensors"
    before = written.read_bytes()
    stage = build(name, setup)
    if isinstance(stage, RendererStage):
        small_pools(stage)
    assert improves(stage, 9, 5e-3)
    assert judged(stage)
    stage.export()
    assert written.read_bytes() != before
    assert not any("reader" in key or "means" in key for key in load_file(written))


@pytest.mark.timeout(300)
def test_all_stages_in_turn_make_a_model_that_generates(mini: StageSetup, tmp_path: Path) -> None:
    """The runs of the documentation, one after another, leave a folder that `generate` loads."""
    for name in ("autoencoder", "tokenizer", "planner", "renderer"):
        folder = tmp_path / "runs" / name
        train_stage(name, mini, RunConfig(folder, 0.005, 2, 1e-3, 1e-3, signature=signature(name, mini)))
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["kind"] == "evaluate"
    generator = Generator(load(MINI, mini.weights, torch.device("cpu"), torch.float32))
    assert sum(batch.frames for batch in generate_frames(generator, generator.open("a red ball", 0), 30)) == 30


def test_a_channel_counts_by_its_spread() -> None:
    """Not by its variance, nor beyond what a few clips can tell of what they hardly show."""
    spread = torch.tensor([1.0, 2.0, 3.0, 0.0])
    weights = error_weights(spread)
    assert float((weights * spread.square()).mean()) == pytest.approx(1.0)
    torch.testing.assert_close(weights, torch.tensor([1 / 1.5, 1 / 3.0, 1 / 4.5, 1 / (1.5 * 0.25 * 1.5)]))


def test_a_planners_text_encoder_learns_from_videos(mini: StageSetup) -> None:
    """Its word embeddings start large enough to be read, and have gradients."""
    stage = build("planner", mini)
    assert isinstance(stage, PlannerStage) and isinstance(stage.text, SmallT5)
    words = stage.text.encoder.shared.weight
    assert float(words.detach().std()) == pytest.approx(TEXT_STD, rel=0.2)
    stage.loss(0, random.Random(0), 2)[0].backward()
    assert words.grad is not None and bool(words.grad.any())


def test_gops_follow_each_other_where_a_video_is_long_enough(mini: StageSetup, tmp_path: Path) -> None:
    """The second stands behind the first as when a video goes on, under its caption; short videos give first ones."""
    source = mini.source()
    for _ in range(4):
        gops = source.gops(random.Random(1), "next", 2)
        assert gops.context is not None and gops.context.shape == gops.features.shape
        assert gops.captions == [(mini.data or tmp_path).joinpath("long.txt").read_text()] * 2
    assert source.gops(random.Random(1), "first", 2).context is None
    short = dataclasses.replace(mini, data=clips(tmp_path / "short", {"one": 69}))
    assert set(source.kinds) == {"first", "next"} and set(short.source().kinds) == {"first"}


def test_motion_scores_rise_with_motion() -> None:
    """A still stretch has 0; more change is nearer to 1."""
    still = torch.randn(1, 1, 6, 2, 3).expand(1, 8, 6, 2, 3)
    moving = still + 0.2 * torch.randn(1, 8, 6, 2, 3)
    scores = motion_scores(torch.cat([still, moving, torch.randn(1, 8, 6, 2, 3)]))
    assert scores[0] == 0.0 < scores[1] < scores[2] < 1.0


def test_the_velocity_that_is_learned_leads_to_the_clean_latents(landiff: StageSetup) -> None:
    """What the published kind of renderer should predict is what the sampler makes clean latents of."""
    stage = build("renderer", landiff)
    assert isinstance(stage, RendererStage)
    clean = torch.randn(5, 6, 4, 4, 8)
    batch = RendererBatch(*[clean] * 2, torch.randn_like(clean), *[clean] * 3)
    noisy, times, velocity = stage.noised(batch)
    levels = landiff.config.schedule.levels(1000)
    for row, time in enumerate(times.tolist()):
        assert int(levels.times[999 - time]) == time
        alpha = levels.alphas[999 - time]
        torch.testing.assert_close(
            clean_of_velocity(noisy[row], velocity[row], alpha), clean[row], atol=1e-4, rtol=1e-4
        )


def test_the_base_is_trained_without_the_control_branch(landiff: StageSetup) -> None:
    """Only the base has gradients, and features make no difference to it."""
    stage = build("renderer", dataclasses.replace(landiff, part="base", features="teacher"))
    assert isinstance(stage, RendererStage)
    trained = {name.split(".")[0] for name, p in stage.renderer.named_parameters() if p.requires_grad}
    assert trained == {"base"}
    torch.manual_seed(0)
    batch = stage.batch([stage.pool.make(random.Random(0)).cut(0, 13)], 7)
    other = dataclasses.replace(batch, features=torch.zeros_like(batch.features))
    time = torch.tensor([500])
    outputs = [stage.renderer.denoise(batch.noise, time, one.read(stage.renderer)) for one in (batch, other)]
    assert torch.equal(*outputs)


@pytest.mark.parametrize(("setup", "lengths"), [("mini", {13, 25}), ("landiff", {13})], indirect=["setup"])
def test_segments_go_as_far_as_their_video(setup: StageSetup, lengths: set[int]) -> None:
    """A window and up to two chunks, or of a large preset a window; features and latents belong to the same frames."""
    stage = build("renderer", setup)
    assert isinstance(stage, RendererStage)
    segments = [stage.pool.make(random.Random(seed)) for seed in range(12)]
    assert all(len(one.latents) == len(one.segment.features) == one.segment.change for one in segments)
    assert {len(one.latents) for one in segments} == lengths


def test_what_cannot_be_learned_from_videos_is_refused(mini: StageSetup) -> None:
    """The error says what to do instead."""
    for name in ("extractor", "text", "sketch"):
        with pytest.raises(ValueError, match="leave --data away"):
            build(name, mini)


def test_a_checkpoint_of_other_videos_is_refused(mini: StageSetup, tmp_path: Path) -> None:
    """A run resumes on the data it began with."""
    other = dataclasses.replace(mini, data=tmp_path / "other")
    first, second = (
        RunConfig(tmp_path / "run", 0.002, 1, 1e-3, signature=signature("tokenizer", setup)) for setup in (mini, other)
    )
    train_stage("tokenizer", mini, first)
    with pytest.raises(ValueError, match="is of another run"):
        train_stage("tokenizer", other, second)

"""Every training stage on the drawn world, at a width that tests can afford: its loss, its figures, its weights."""

import dataclasses
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as nnf

from engine.config import EngineConfig, preset
from engine.loading.modules import build as build_modules
from engine.loading.weights import SHIPPED, load_component, save_component, write_description
from engine.perceptual.mini.enlarger import Enlarger, EnlargerConfig
from engine.perceptual.mini.vae import TinyVAE, TinyVAEConfig
from engine.perceptual.mini.waves import WavesConfig
from engine.semantic.theia import Theia
from engine.semantic.tokenizer import SemanticTokenizer
from engine.text.small_t5 import SmallT5, load_vocabulary
from engine.training import __main__ as command
from engine.training.build import build
from engine.training.run import Run, RunConfig, TrainingStage, optimisers
from engine.training.setup import StageSetup
from engine.training.sources.world import WorldSource, hard_to_plan, hard_to_render, hard_to_sketch
from engine.training.stages import enlarger as enlarging
from engine.training.stages import planner as planning
from engine.training.stages import renderer as rendering
from engine.training.stages.autoencoder import AutoencoderStage, fit_linear_map
from engine.training.stages.decoder import DecoderStage
from engine.training.stages.planner import PlannerStage
from engine.training.stages.renderer import RendererStage
from engine.training.stages.sketch import SketchStage
from engine.training.stages.text import TextStage
from engine.training.stages.tokenizer import TokenizerStage
from engine.training.world import teacher
from engine.training.world.captions import Label, hardest_label, make_tokenizer


def narrow() -> EngineConfig:
    """`mini` with thin layers: the world has one picture size, so geometry stays."""
    mini = preset("mini")
    quantizer = dataclasses.replace(mini.tokenizer.quantizer, dim=16, codebook_size=32, codebook_dim=4)
    dit = dataclasses.replace(
        mini.renderer.dit, hidden=32, heads=2, layers=1, channels=6, time_dim=16, text_dim=16, head_width=16,
        head_blocks=1, head_details=95,
    )  # fmt: skip
    details = mini.renderer.condition.details
    assert details is not None
    sketch = dataclasses.replace(details.sketch, channels=6, waves=WavesConfig(count=208))
    details = dataclasses.replace(details, sketch=sketch)
    condition = dataclasses.replace(
        mini.renderer.condition, width=16, out_channels=8, latent_channels=6, details=details
    )
    return dataclasses.replace(
        mini,
        steps=2,
        text=dataclasses.replace(mini.text, hidden=16, layers=1, heads=2, mlp=16),
        theia=dataclasses.replace(mini.theia, hidden=16, layers=1, heads=2, mlp=16),
        tokenizer=dataclasses.replace(mini.tokenizer, width=32, layers=1, heads=2, quantizer=quantizer),
        planner=dataclasses.replace(
            mini.planner, hidden=32, layers=1, heads=2, mlp=32, codebook_size=32, text_dim=16, micro_freq=8,
            micro_hidden=8,
        ),
        renderer=dataclasses.replace(mini.renderer, dit=dit, condition=condition, control_layers=1),
        vae=TinyVAEConfig(
            latent_channels=6, encoder_width_8=8, encoder_width_4=8, decoder_width_8=8, decoder_width_4=8, blocks_8=1,
            blocks_4=1,
        ),
        enlarger=EnlargerConfig(width=8, blocks=1),
    )  # fmt: skip


def improves(stage: TrainingStage, steps: int, lr: float) -> bool:
    """Whether three batches, seen again and again, are fitted better at the end than at the start."""
    optimiser = torch.optim.AdamW([p for p in stage.module.parameters() if p.requires_grad], lr=lr)
    stage.module.train()
    losses = []
    for step in range(steps):
        rng = random.Random(step % 3)
        torch.manual_seed(step % 3)
        loss, figures = stage.loss(step % 3, rng, 4)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        assert all(math.isfinite(value) for value in figures.values())
    return sum(losses[-3:]) < sum(losses[:3])


def judged(stage: TrainingStage) -> set[str]:
    """The names of held-out figures, which are the same each time."""
    stage.module.eval()
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        with torch.no_grad():
            results.append(stage.loss(0, random.Random(0), 4, held_out=True))
    (loss, figures), (_, again) = results
    assert math.isfinite(loss) and figures == again
    return set(figures)


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all weights of the narrow preset, untrained but for the autoencoder's linear map."""
    folder, config = tmp_path_factory.mktemp("weights"), narrow()
    torch.manual_seed(0)
    vae = TinyVAE(config.vae)
    fit_linear_map(vae, WorldSource(config, "cpu"), random.Random(0), clips=6)
    modules = build_modules(config, "cpu")
    modules |= {
        "vae": vae,
        "theia": Theia(config.theia),
        "text": SmallT5(config.text, make_tokenizer(folder).get_vocab()),
        "enlarger": Enlarger(EnlargerConfig(width=8, blocks=1), config.vae.decoder_width_4),
    }
    for name, module in modules.items():
        save_component(folder, name, module)
    write_description(folder, "mini", "a test")
    return folder


@pytest.fixture
def setup(complete: Path, tmp_path: Path) -> StageSetup:
    shutil.copytree(complete, tmp_path / "weights")
    return StageSetup(narrow(), tmp_path / "weights", student=tmp_path / "student", steps=1, teacher_steps=2)


def small_pools(stage: TrainingStage) -> None:
    """Few segments, so that tests are fast."""
    stage.pool.size, stage.held_out.size = 3, 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "steps", "lr", "figures"),
    [
        ("extractor", 12, 3e-3, set()),
        ("text", 12, 3e-3, {"subject", "relation"}),
        ("planner", 12, 3e-3, {"nats_first", "nats_next", "nats_changed"}),
        ("renderer", 15, 3e-3, {"error_with_context", "rendered_with_context"}),
        ("sketch", 24, 5e-3, {"ratio"}),
        ("decoder", 24, 3e-4, {"psnr_rendered_db", "psnr_true_db"}),
        ("enlarger", 15, 3e-3, {"psnr_rendered_db", "psnr_true_db", "sharpness"}),
        ("distill", 12, 2e-3, {"error_with_context"}),
    ],
)
def test_a_stage_learns(
    setup: StageSetup, name: str, steps: int, lr: float, figures: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss falls, held-out figures are given, and the weights are written and fit."""
    for amount, few in (("PLACES", 2), ("START_PIECES", 6), ("HELD_OUT_PIECES", 6)):
        monkeypatch.setattr(enlarging, amount, few)
    stage = build(name, setup)
    if isinstance(stage, RendererStage | DecoderStage):
        small_pools(stage)
    component = {"extractor": "theia", "sketch": "renderer", "decoder": "vae", "distill": "renderer"}.get(name, name)
    before = (setup.weights / f"{component}.safetensors").read_bytes()
    assert improves(stage, steps, lr)
    assert figures <= judged(stage)
    stage.export()
    folder = setup.student if name == "distill" else setup.weights
    assert folder is not None and (folder / f"{component}.safetensors").read_bytes() != before
    warm = dataclasses.replace(setup, weights=folder, warm_start=True)
    if name not in ("decoder", "distill"):
        build(name, warm)


def test_the_autoencoder_stage_learns(tmp_path: Path) -> None:
    """Six channels of PCA keep most of a picture before any training; then loss falls, and the weights load."""
    config = narrow()
    stage = AutoencoderStage(StageSetup(config, tmp_path), pca_clips=6)
    torch.manual_seed(0)
    assert stage.loss(0, random.Random(0), 2)[1]["psnr_db"] > 20
    assert improves(stage, 18, 5e-4) and judged(stage) == {"psnr_db"}
    stage.export()
    load_component(tmp_path, "vae", TinyVAE(config.vae))


def test_the_tokenizer_stage_learns(tmp_path: Path) -> None:
    """Loss falls through the start of the codebook; the readers are no part of the weights."""
    config = narrow()
    stage = TokenizerStage(StageSetup(config, tmp_path))
    stage.continuous_steps = 1
    assert improves(stage, 30, 3e-3)
    assert float(stage.tokenizer.quantizer.initialized) == 1.0
    assert {"error", "words", "places", "paths"} <= judged(stage)
    stage.export()
    load_component(tmp_path, "tokenizer", SemanticTokenizer(config.tokenizer))


def test_a_run_trains_a_stage_and_leaves_its_weights(setup: StageSetup, tmp_path: Path) -> None:
    """The loss of held-out captions falls between two runs, of which the second goes on."""
    config = RunConfig(tmp_path / "run", 0.01, 16, 3e-3)
    first = Run(TextStage(setup), config).train()
    second = Run(TextStage(setup), dataclasses.replace(config, minutes=0.08)).train()
    assert second["loss"] < first["loss"]
    load_component(setup.weights, "text", SmallT5(narrow().text, load_vocabulary(setup.weights)))


def test_contexts_are_partly_rewritten_by_the_planner(setup: StageSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some tokens of some contexts are others, as the planner writes them, and none is a special token."""
    stage, rng = PlannerStage(setup), random.Random(1)
    gops = stage.source.gops(rng, "next", 4)
    assert gops.context is not None
    with torch.no_grad():
        tokens = stage.tokenizer.encode(gops.context)
        prefix = stage.planner.prefix(stage.encode_text(gops.captions), None, None, False)
        rewritten = stage.rewritten(tokens, prefix)
        changed = (rewritten != tokens).float().mean(1)
        assert rewritten.shape == tokens.shape and int(rewritten.max()) < stage.config.planner.codebook_size
        assert 0 < changed.mean() < planning.OWN_SHARE
        monkeypatch.setattr(planning, "OWN_SHARE", 0.0)
        assert torch.equal(stage.rewritten(tokens, prefix), tokens)


def test_hard_labels_are_seen_more_often() -> None:
    """Each stage's training leans to what it finds hard without losing the rest."""
    rng = random.Random(0)

    def shares(hardness: Callable[[Label], int], draws: int) -> tuple[int, int, int]:
        labels = [hardest_label(rng, hardness, draws) for _ in range(1000)]
        assert not any(label.held_out for label in labels)
        pairs = sum(label.relation is not None for label in labels)
        return pairs, sum(label.direction == "bounce" for label in labels), sum(x.camera != "fixed" for x in labels)

    pairs, bounces, pans = shares(hard_to_render, 2)
    assert 200 < pairs < 320 and 200 < bounces < 320 and 300 < pans < 460
    _, _, pans = shares(hard_to_plan, 2)
    assert 250 < pans < 400
    pairs, bounces, _ = shares(hard_to_sketch, 3)
    assert 330 < pairs < 440 and 40 < bounces < 160


@pytest.mark.parametrize(
    ("name", "part", "trained"),
    [
        ("renderer", "head", {"base.head."}),
        ("renderer", "control", {"control.", "condition."}),
        ("renderer", "both", {"base.", "control.", "condition."}),
        ("sketch", "both", {"condition.details.sketch.sight", "condition.details.sketch.strokes"}),
        ("decoder", "both", {"decode_"}),
    ],
)
def test_only_a_part_is_trained(setup: StageSetup, name: str, part: str, trained: set[str]) -> None:
    """The rest of the module stays. A control branch begins as a copy of base layers."""
    stage = build(name, dataclasses.replace(setup, part=part, features="teacher"))
    small_pools(stage)
    if part == "control":
        assert isinstance(stage, RendererStage)
        base, control = stage.renderer.base.state_dict(), stage.renderer.control
        assert all(torch.equal(x, base[key]) for key, x in control.state_dict().items() if key.startswith("blocks."))
        assert not any(zero.any() for zero in control.zeros.parameters())
    before = {key: value.clone() for key, value in stage.module.state_dict().items()}
    improves(stage, 3, 2e-3)
    changed = {key for key, value in stage.module.state_dict().items() if not torch.equal(value, before[key])}
    changed = {key for key in changed if "sketch.mend" not in key}
    assert {next((known for known in trained if key.startswith(known)), key) for key in changed} == trained


def test_a_sketch_is_of_what_subjects_cover(setup: StageSetup) -> None:
    """The true latents where a subject is, 0 a cell beside it; inputs begin with what was there four frames ago."""
    stage = SketchStage(setup)
    window = stage.held_out.make(random.Random(2)).cut(0, 13)
    cells = stage.cells(window, 7)
    latents = window.latents[7:].movedim(1, -1).flatten(0, 2)
    drawn = cells.targets.any(1)
    whole = torch.tensor([bool((row == latents).all(1).any()) for row in cells.targets])
    assert whole.any() and not drawn.all() and (~whole & drawn).any()
    earlier = nnf.interpolate(window.features[3:9], scale_factor=2, mode="bilinear").movedim(1, -1).flatten(0, 2)
    assert all((row == earlier).all(1).any() for row in cells.inputs[:, : teacher.FEATURE_DIM])


def test_errors_of_a_context_fade_in_the_new_frames(setup: StageSetup) -> None:
    """Noise on the context goes on in the target and fades; generation has none, and no text or plan is left out."""
    stage, rng = RendererStage(setup), random.Random(0)
    windows = [stage.pool.make(rng).cut(0, 13) for _ in range(2)]
    plain, trained = stage.batch(windows, 7), stage.batch(windows, 7, rng)
    error = trained.context - plain.context
    torch.testing.assert_close(error[:, :1].expand_as(error), error, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        (trained.clean - plain.clean)[:, 1], rendering.ERROR_KEPT**2 * error[:, 0], atol=1e-5, rtol=1e-5
    )
    assert all(row.any() for row in (*plain.text, *plain.features))
    assert torch.equal(plain.noise[:, 0], plain.noise[:, 5])


@pytest.mark.parametrize(("name", "least"), [("planner", 12), ("renderer", 40), ("autoencoder", 20), ("sketch", 4)])
def test_muon_updates_hidden_matrices(name: str, least: int, tmp_path: Path) -> None:
    """Those of `mini`'s blocks and convolutions, and neither embeddings nor heads nor modulations."""
    setup = StageSetup(preset("mini"), SHIPPED / "mini", warm_start=True)
    stage = build(name, setup)
    _, muon = optimisers(stage, RunConfig(tmp_path, 1, 1, 1e-3, 1e-3))
    updated = {id(p) for p in muon.sources}  # type: ignore[attr-defined]
    names = [key for key, p in stage.module.named_parameters() if id(p) in updated]
    assert len(names) >= least
    assert not any(word in key for key in names for word in ("modulation", "tokens", "decode_out", "encode_in"))


def test_a_warm_start_begins_with_what_the_weights_folder_has(setup: StageSetup) -> None:
    """Planner, renderer, text encoder and its words' numbers go on from their files; without the flag they are new."""
    make_tokenizer(setup.weights, captions=["words of another order than the world's"])
    words = load_vocabulary(setup.weights)
    for name in ("renderer", "planner", "text"):
        warm = build(name, dataclasses.replace(setup, warm_start=True, seed=3))
        assert load_vocabulary(setup.weights) == words
        new = build(name, dataclasses.replace(setup, seed=3))
        own = dict(warm.components[name].named_parameters())
        load_component(setup.weights, name, new.components[name])
        assert all(torch.equal(own[key], value) for key, value in new.components[name].named_parameters())
        assert any(p.requires_grad for p in own.values())
    assert load_vocabulary(setup.weights) != words
    starts = [RendererStage(dataclasses.replace(setup, warm_start=warm)).rendered_from for warm in (True, False)]
    assert starts == [0, rendering.RENDERED_FROM]


def test_what_cannot_be_trained_is_refused(setup: StageSetup) -> None:
    """The error says what to do instead."""
    plain = dataclasses.replace(
        setup.config.renderer,
        dit=dataclasses.replace(setup.config.renderer.dit, head_details=0),
        condition=dataclasses.replace(setup.config.renderer.condition, details=None),
    )
    no_details = dataclasses.replace(setup.config, renderer=plain)
    for name, changes, complaint in (
        ("tokenizer", {"warm_start": True}, "'tokenizer' has no --warm-start"),
        ("sketch", {"config": no_details}, "'mini' has no sketch"),
        ("renderer", {"part": "base"}, "train part 'both'"),
        ("renderer", {"config": preset("landiff")}, "give --data"),
        ("autoencoder", {"config": preset("landiff")}, "used as published"),
        ("distill", {"student": setup.weights}, "would overwrite its teacher"),
        ("distill", {"steps": 0}, "must be at least 1"),
        ("distill", {"teacher_steps": 1}, "must be at least 1"),
    ):
        with pytest.raises(ValueError, match=complaint):
            build(name, dataclasses.replace(setup, **changes))


def test_a_stage_without_what_it_needs_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The planner cannot be trained before the tokenizer: the stage that is missing is named."""
    words = ["planner", "--weights", str(tmp_path), "--folder", str(tmp_path / "run"), "--device", "cpu"]
    assert command.main(words) == 2
    assert "has no tokenizer.safetensors: run stage 'tokenizer' first" in caplog.text


def test_a_run_of_another_kind_is_left_alone(setup: StageSetup, tmp_path: Path) -> None:
    """A run says what its weights are of, and resumes as what it was: else words change their numbers."""
    config = RunConfig(tmp_path / "run", 0.002, 2, 1e-3, signature="text of mini, from weights")
    make_tokenizer(setup.weights, captions=["words of another order than the world's"])
    save_component(setup.weights, "text", SmallT5(narrow().text, load_vocabulary(setup.weights)))
    words = load_vocabulary(setup.weights)
    (setup.weights / "config.json").unlink()
    command.train_stage("text", dataclasses.replace(setup, warm_start=True), config)
    facts = json.loads((setup.weights / "config.json").read_text())
    assert facts == {"format": 1, "preset": "mini", "made_by": "python -m engine.training"}
    with pytest.raises(ValueError, match="of another run, 'text of mini, from weights' and not 'text of mini'"):
        command.train_stage("text", setup, dataclasses.replace(config, signature=command.signature("text", setup)))
    assert load_vocabulary(setup.weights) == words

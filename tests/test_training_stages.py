"""Every training stage, at a width that tests can afford: its data, its loss, its figures, its weights."""

import dataclasses
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as nnf

from engine import arguments
from engine.bench import curve
from engine.config import EngineConfig, preset
from engine.loading.weights import SHIPPED, load_component, save_component
from engine.perceptual.mini.vae import TinyVAE, TinyVAEConfig, TinyVAEState
from engine.perceptual.renderer import Renderer
from engine.semantic.planner import Planner
from engine.semantic.tokenizer import SemanticTokenizer
from engine.text.small_t5 import SmallT5, load_tokenizer
from engine.training import __main__ as command
from engine.training import build as stages
from engine.training import latent_pool as latents
from engine.training import run
from engine.training.run import Stage
from engine.training.stages import autoencoder, decoder, extractor
from engine.training.stages import planner as planning
from engine.training.stages import renderer as render
from engine.training.stages import sketch as sketching
from engine.training.stages import text as texts
from engine.training.stages import tokenizer as tokens
from engine.training.world import drawing as world
from engine.training.world import reading, teacher
from engine.training.world.captions import Label, hardest_label, random_label
from engine.training.world.vocabulary import make_tokenizer


def narrow() -> EngineConfig:
    """`mini` with thin layers: the world has one picture size, so geometry stays."""
    mini = preset("mini")
    quantizer = dataclasses.replace(mini.tokenizer.quantizer, dim=16, codebook_size=32, codebook_dim=4)
    dit = dataclasses.replace(
        mini.renderer.dit,
        hidden=32,
        heads=2,
        layers=1,
        channels=6,
        time_dim=16,
        text_dim=16,
        head_width=16,
        head_blocks=1,
        head_details=95,
    )
    assert mini.renderer.condition.details is not None
    details = mini.renderer.condition.details
    details = dataclasses.replace(details, sketch=dataclasses.replace(details.sketch, channels=6))
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
            mini.planner,
            hidden=32,
            layers=1,
            heads=2,
            mlp=32,
            codebook_size=32,
            text_dim=16,
            micro_freq=8,
            micro_hidden=8,
        ),
        renderer=dataclasses.replace(mini.renderer, dit=dit, condition=condition, control_layers=1),
        vae=TinyVAEConfig(
            latent_channels=6,
            encoder_width_8=8,
            encoder_width_4=8,
            decoder_width_8=8,
            decoder_width_4=8,
            blocks_8=1,
            blocks_4=1,
        ),  # fmt: skip
    )


def improves(stage: Stage, steps: int, lr: float) -> bool:
    """Whether three batches, seen again and again, are fitted better at the end than at the start."""
    optimiser = torch.optim.AdamW(stage.module.parameters(), lr=lr)
    losses = []
    for step in range(steps):
        loss, figures = stage.loss(step % 3, 4)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        assert all(isinstance(value, float) for value in figures.values())
    return sum(losses[-3:]) < sum(losses[:3])


@pytest.fixture
def vae(monkeypatch: pytest.MonkeyPatch) -> TinyVAE:
    monkeypatch.setattr(autoencoder, "PCA_CLIPS", 6)
    torch.manual_seed(0)
    made = TinyVAE(narrow().vae)
    autoencoder.fit_linear_map(made, 0)
    return made


def test_the_linear_map_is_already_an_autoencoder(vae: TinyVAE) -> None:
    """Six channels of PCA keep most of a picture, before any training."""
    spec = world.sample([tokens.groups(random.Random(0), 1, 1)[1][0]], random.Random(0))
    video = autoencoder.pixels(world.draw(spec, torch.arange(9)[None]))
    with torch.no_grad():
        codes = vae.encode(video, TinyVAEState())
        again = vae.decode(codes, TinyVAEState())
    assert autoencoder.psnr((again - video).square()) > 20
    assert 0.3 < codes.std() < 3


def test_the_autoencoder_stage_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss falls, both figures are given, and the weights load."""
    monkeypatch.setattr(autoencoder, "PCA_CLIPS", 6)
    config = narrow()
    stage = autoencoder.AutoencoderStage(config.vae, 0, "cpu", tmp_path)
    assert torch.equal(stage.batch(1, 2), stage.batch(1, 2))
    assert improves(stage, 18, 5e-4)
    with torch.no_grad():
        assert set(stage.evaluate()) == {"psnr_db", "box_psnr_db", "jump_ratio"}
    stage.export()
    load_component(tmp_path, "vae", TinyVAE(config.vae))
    assert stage.hidden()


def test_the_tokenizer_stage_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss falls through the start of the codebook, and attributes are counted."""
    monkeypatch.setattr(tokens, "HELD_OUT", 8)
    monkeypatch.setattr(tokens, "CONTINUOUS_STEPS", 1)
    config = narrow()
    stage = tokens.TokenizerStage(config.tokenizer, 0, "cpu", tmp_path)
    stage.module.train()
    assert improves(stage, 30, 3e-3)
    assert float(stage.tokenizer.quantizer.initialized) == 1.0
    stage.module.eval()
    with torch.no_grad():
        assert {"position_px", "subject", "all"} <= set(stage.evaluate())
    stage.export()
    load_component(tmp_path, "tokenizer", SemanticTokenizer(config.tokenizer))


def test_the_extractor_stage_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss falls and figures are given."""
    monkeypatch.setattr(extractor, "HELD_OUT", 2)
    stage = extractor.ExtractorStage(narrow().theia, 0, "cpu", tmp_path)
    assert improves(stage, 12, 3e-3)
    with torch.no_grad():
        assert "direction" in stage.evaluate()
    stage.export()
    assert (tmp_path / "theia.safetensors").exists()


def test_the_text_stage_learns_whose_words_are_whose(tmp_path: Path) -> None:
    """Loss falls; held out are captions with words that could change places, and each kind of word has a figure."""
    torch.manual_seed(0)
    stage = texts.TextStage(SmallT5(narrow().text, make_tokenizer(tmp_path)), 0, "cpu", tmp_path)
    assert improves(stage, 12, 3e-3)
    assert all(label.held_out and (label.relation or label.camera != "fixed") for label in stage.held_out)
    with torch.no_grad():
        assert stage.evaluate().keys() == texts.ANSWERS.keys()
    stage.export()
    assert (tmp_path / "text.safetensors").exists()


@pytest.fixture
def planner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> planning.PlannerStage:
    monkeypatch.setattr(planning, "HELD_OUT", 3)
    config = narrow()
    torch.manual_seed(0)
    text = SmallT5(config.text, make_tokenizer(tmp_path))
    return planning.PlannerStage(config, text, SemanticTokenizer(config.tokenizer), 0, "cpu", tmp_path)


def test_the_planner_stage_learns(planner: planning.PlannerStage, tmp_path: Path) -> None:
    """Loss falls with and without caption changes, plans are sampled and read."""
    assert improves(planner, 12, 3e-3)
    with torch.no_grad():
        figures = planner.evaluate()
    assert {"first_direction", "second_all"} <= set(figures)
    planner.export()
    assert {"text.safetensors", "planner.safetensors"} <= {path.name for path in tmp_path.iterdir()}


def test_samples_of_a_kind_fit_into_a_batch(planner: planning.PlannerStage) -> None:
    """Contexts of a set have one length and whole frames; a first group has none."""
    config = planner.config.tokenizer
    for kind in planning.KINDS:
        samples = planner.make(random.Random(1), kind, 5)
        lengths = {None if sample.context is None else len(sample.context) for sample in samples}
        assert len(lengths) == 1
        length = lengths.pop()
        assert (length is None) == (kind == "first")
        assert length is None or 1 <= config.frames_of(length) <= config.frames
        assert {len(sample.codes) for sample in samples} == {config.group_tokens}
    tokens, is_code = planner.sequence(samples[0].codes[None])
    assert int(tokens[0, 0]) == planner.config.planner.iframe_start
    assert int(is_code.sum()) == config.group_tokens


def test_contexts_are_partly_rewritten_by_the_planner(
    planner: planning.PlannerStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some codes of some contexts are others, as the planner writes them, and none is a special token."""
    rng = random.Random(1)
    samples = planner.make(rng, "next", 4)
    codes = torch.stack([sample.context for sample in samples if sample.context is not None])
    with torch.no_grad():
        prefix = planner.prefix([sample.label for sample in samples], rng)
    rewritten = planner.rewritten(codes, prefix)
    changed = (rewritten != codes).float().mean(1)
    assert rewritten.shape == codes.shape and int(rewritten.max()) < planner.config.planner.codebook_size
    assert 0 < changed.mean() < planning.OWN_SHARE
    monkeypatch.setattr(planning, "OWN_SHARE", 0.0)
    assert torch.equal(planner.rewritten(codes, prefix), codes)


def test_hard_labels_are_seen_more_often() -> None:
    """Each stage's training leans to what it finds hard without losing the rest."""
    rng = random.Random(0)

    def shares(hardness: Callable[[Label], int], draws: int) -> tuple[int, int, int]:
        labels = [hardest_label(rng, hardness, draws) for _ in range(1000)]
        assert not any(label.held_out for label in labels)
        pairs = sum(label.relation is not None for label in labels)
        return pairs, sum(label.direction == "bounce" for label in labels), sum(x.camera != "fixed" for x in labels)

    pairs, bounces, pans = shares(latents.hard_to_render, 2)
    assert 200 < pairs < 320 and 200 < bounces < 320 and 300 < pans < 460
    _, _, pans = shares(planning.hard_to_plan, 2)
    assert 250 < pans < 400
    pairs, bounces, _ = shares(sketching.hard_to_sketch, 3)
    assert 330 < pairs < 440 and 40 < bounces < 160


def test_held_out_clips_are_those_of_the_evaluation(vae: TinyVAE) -> None:
    """Their labels are drawn evenly, whatever training leans to."""
    pool = latents.LatentPool(narrow(), vae, None, 4)
    clip = pool.make(random.Random(3), held_out=True, changes=False)
    assert clip.labels[0] == random_label(random.Random(3), held_out=True)


def test_the_pool_describes_what_it_encodes(vae: TinyVAE) -> None:
    """A clip's features are the teacher's, its caption changes where its label does, and windows fit."""
    config = narrow()
    pool = latents.LatentPool(config, vae, None, 4)
    rng = random.Random(3)
    for _ in range(6):
        pool.refresh(rng)
    assert len(pool.clips) == 4
    for clip in pool.clips:
        before = reading.read(clip.features[None, : min(clip.change, 13)])[0]
        assert before.subject == clip.labels[0].subject and before.colour == clip.labels[0].colour
        if clip.change < latents.CLIP_LATENTS:
            after = reading.read(clip.features[None, clip.change :])[0]
            assert after.scene == clip.labels[1].scene
        window = latents.cut(clip, 3, 13)
        assert window.label == clip.labels[int(16 > clip.change)]
    assert pool.window(rng, prompted=True).latents.shape == (13, 6, 16, 24)
    assert pool.window(rng, prompted=False).latents.shape == (7, 6, 16, 24)


def test_a_clip_goes_on_as_the_same_video(vae: TinyVAE) -> None:
    """Its next part overlaps it by a prompt half, and is what encoding the whole video gives."""
    config = narrow()
    pool = latents.LatentPool(config, vae, None, 4)
    clip = pool.make(random.Random(3), changes=False)
    after = pool.make(random.Random(4), clip, changes=False)
    given = config.prompt_latents
    torch.testing.assert_close(after.features[:given], clip.features[-given:])
    count = latents.CLIP_LATENTS + (latents.CLIP_LATENTS - given)
    frames = after.end - 1 - 4 * (count - 1) + torch.arange(1 + 4 * (count - 1))[None]
    with torch.no_grad():
        whole = pool.encode(world.draw(clip.spec, frames), TinyVAEState())
    torch.testing.assert_close(clip.latents, whole[: latents.CLIP_LATENTS])
    torch.testing.assert_close(after.latents, whole[-latents.CLIP_LATENTS :])


def test_a_video_that_goes_on_may_change_between_hops(vae: TinyVAE) -> None:
    """The next part begins as the one before ends; then, where a hop begins, another label holds."""
    config = narrow()
    pool = latents.LatentPool(config, vae, None, 4)
    clip = pool.make(random.Random(3), changes=False)
    parts = [pool.make(random.Random(seed), clip) for seed in range(12)]
    changed = [part for part in parts if part.change < latents.CLIP_LATENTS]
    assert 0 < len(changed) < len(parts)
    for part in changed:
        assert part.labels[0] == clip.labels[1] != part.labels[1]
        assert (part.change - config.prompt_latents) % config.new_latents == 0
        kept = slice(config.prompt_latents)
        torch.testing.assert_close(part.features[kept], clip.features[-config.prompt_latents :])
        after = reading.read(part.features[None, part.change :])[0]
        assert (after.subject, after.scene) == (part.labels[1].subject, part.labels[1].scene)


def test_rendered_clips_give_prompt_halves_that_the_model_made(vae: TinyVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each hop is rendered behind the one before, over the ends of clips too; what is to be learned stays true.

    Windows without a prompt half begin videos: there is always a clip for them.
    """
    config = narrow()
    given, new = config.prompt_latents, config.new_latents
    pool = latents.LatentPool(config, vae, None, 2)

    def counting(window: latents.Window, given: int) -> torch.Tensor:
        last = window.latents[given - 1] if given else torch.full((6, 16, 24), 100.0)
        return torch.stack([last + 1 + i for i in range(len(window.features) - given)])

    monkeypatch.setattr(latents, "GO_ON_SHARE", 1.0)
    rng = random.Random(2)
    pool.refresh(rng, counting)
    first = pool.clips[0].made
    assert first is not None and len(first) == latents.CLIP_LATENTS
    torch.testing.assert_close(first[-1], first[given - 1] + latents.CLIP_LATENTS - given)
    pool.refresh(rng, counting)
    clip = pool.clips[-1]
    assert clip.made is not None
    torch.testing.assert_close(clip.made[:given], first[-given:])
    torch.testing.assert_close(clip.made[given], first[-1] + 1)

    for _ in range(3):
        pool.refresh(rng, counting)
        starts = [clip.latents[:given] for clip in pool.clips if clip.starts]
        window = pool.window(rng, prompted=False)
        assert any(torch.equal(window.latents, start) for start in starts)

    monkeypatch.setattr(latents, "MADE_SHARE", 1.0)
    pool.clips = [clip]
    window = pool.window(rng, prompted=True)
    assert window.flaw is not None and window.latents.shape[0] == given + new
    assert any(torch.equal(window.latents[:given], clip.made[start : start + given]) for start in range(13))
    assert any(torch.equal(window.latents[given:], clip.latents[start : start + new]) for start in range(given, 20))


def test_features_go_through_tokens_in_groups_that_restart_at_a_change() -> None:
    """The same as decoding each group alone: nothing leaks over the change."""
    torch.manual_seed(0)
    tokenizer = SemanticTokenizer(narrow().tokenizer).eval()
    maps = tokens.groups(random.Random(0), 2, 13)[0]
    features = torch.cat([maps[0], maps[1][:7]])
    quantise = latents.through_tokens(tokenizer)
    again = quantise(features, 11, random.Random(5))
    assert again.shape == features.shape
    features[:11] += 1.0
    assert torch.equal(quantise(features, 11, random.Random(5))[11:], again[11:])


def test_the_renderer_stage_learns(vae: TinyVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss falls with and without a prompt half, text reaches it, and both kinds of window are judged."""
    monkeypatch.setattr(render, "START_CLIPS", 3)
    monkeypatch.setattr(render, "HELD_OUT", 1)
    config = narrow()
    text = SmallT5(config.text, make_tokenizer(tmp_path)).eval()
    tokenizer = SemanticTokenizer(config.tokenizer).eval()
    stage = render.RendererStage(config, vae, text.encode, latents.through_tokens(tokenizer), 0, "cpu", tmp_path)
    assert improves(stage, 15, 2e-3)
    with torch.no_grad():
        assert set(stage.evaluate()) == {
            "psnr_prompted_db", "subject_prompted_db", "psnr_first_db", "subject_first_db"
        }  # fmt: skip
    assert stage.hidden()
    stage.export()
    assert (tmp_path / "renderer.safetensors").exists()


def test_the_head_learns_alone(vae: TinyVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Part 'head' leaves the network below it as it is; parts that need videos are refused."""
    monkeypatch.setattr(render, "START_CLIPS", 3)
    monkeypatch.setattr(render, "HELD_OUT", 1)
    stage = render.RendererStage(narrow(), vae, None, None, 0, "cpu", tmp_path, "head")
    before = {name: value.clone() for name, value in stage.module.state_dict().items()}
    assert improves(stage, 9, 2e-3) and stage.hidden()
    changed = {name for name, value in stage.module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("base.head.") for name in changed)
    with pytest.raises(ValueError, match="'control'"):
        render.RendererStage(narrow(), vae, None, None, 0, "cpu", tmp_path, "control")


@pytest.fixture(name="stage")
def sketch_stage(vae: TinyVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> sketching.SketchStage:
    monkeypatch.setattr(render, "START_CLIPS", 3)
    monkeypatch.setattr(render, "HELD_OUT", 2)
    return sketching.SketchStage(render.RendererStage(narrow(), vae, None, None, 0, "cpu", tmp_path))


def test_the_sketch_stage_learns_and_leaves_the_rest(stage: sketching.SketchStage, tmp_path: Path) -> None:
    """Loss falls by the sketch alone, and the renderer's weights load."""
    before = {name: value.clone() for name, value in stage.module.state_dict().items()}
    assert improves(stage, 24, 5e-3)
    changed = {name for name, value in stage.module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("condition.details.sketch") for name in changed)
    with torch.no_grad():
        assert 0 < stage.evaluate()["error"] < 2
    stage.export()
    load_component(tmp_path, "renderer", Renderer(narrow().renderer))


def test_a_sketch_is_of_what_subjects_cover(stage: sketching.SketchStage) -> None:
    """The true latents where a subject is, 0 a cell beside it; inputs begin with what was there four frames ago."""
    window = stage.renders.held_out[0]
    cells = stage.cells(window, 7)
    whole, beside = cells.covered > teacher.WHOLE, cells.covered == 0
    assert whole.any() and beside.any() and not cells.sketch[beside].any()
    latents_ = window.latents[7:].movedim(1, -1).flatten(0, 2)
    assert all((row == latents_).all(1).any() for row in cells.sketch[whole])
    earlier = nnf.interpolate(window.features[3:9], scale_factor=2, mode="bilinear").movedim(1, -1).flatten(0, 2)
    first = cells.inputs[:, : teacher.FEATURE_DIM]
    assert all((row == earlier).all(1).any() for row in first)
    assert len({len(part) for part in (cells.inputs, cells.sketch, cells.covered)}) == 1


def test_a_renderer_without_details_has_no_sketch(vae: TinyVAE, tmp_path: Path) -> None:
    """It is refused by the preset's name."""
    config = narrow()
    dit, condition = config.renderer.dit, config.renderer.condition
    plain = dataclasses.replace(
        config.renderer,
        dit=dataclasses.replace(dit, head_details=0),
        condition=dataclasses.replace(condition, details=None),
    )
    stage = render.RendererStage(dataclasses.replace(config, renderer=plain), vae, None, None, 0, "cpu", tmp_path)
    with pytest.raises(ValueError, match="'mini' has no details"):
        sketching.SketchStage(stage)


def test_the_decoder_stage_learns_and_leaves_the_encoder(
    vae: TinyVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss falls on rendered and on true videos, the encoder stays as it was, and jumps of both are measured."""
    monkeypatch.setattr(render, "HELD_OUT", 1)
    monkeypatch.setattr(decoder, "HELD_OUT", 1)
    monkeypatch.setattr(decoder, "START_VIDEOS", 2)
    monkeypatch.setattr(decoder, "REFRESH", 0.0)  # else no batch comes twice
    config = narrow()
    renders = render.RendererStage(config, vae, None, None, 0, "cpu", tmp_path)
    stage = decoder.DecoderStage(config, vae, renders, 0, tmp_path)
    encoder = {name: value.clone() for name, value in vae.state_dict().items() if name.startswith("encode_")}
    assert improves(stage, 25, 3e-4)
    assert all(torch.equal(vae.state_dict()[name], value) for name, value in encoder.items())
    with torch.no_grad():
        assert {"jump_ratio", "jump_ratio_made", "psnr_made_db"} <= set(stage.evaluate())
    assert stage.hidden() and all(parameter.requires_grad for parameter in stage.hidden())
    item = stage.pool[0]
    assert torch.equal(item.true[: config.prompt_latents], item.made[: config.prompt_latents])
    assert not torch.equal(item.true, item.made)
    stage.export()
    assert (tmp_path / "vae.safetensors").exists()


def test_a_stage_without_what_it_needs_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The planner cannot be trained before tokenizer and text encoder: the stage that is missing is named."""
    words = ["planner", "--weights", str(tmp_path), "--folder", str(tmp_path / "run")]
    assert command.main(words) == 2
    assert "has no tokenizer.safetensors: run stage 'tokenizer' first" in caplog.text
    shutil.copy(SHIPPED / "mini" / "tokenizer.safetensors", tmp_path)
    assert command.main(words) == 2
    assert "has no text.safetensors: run stage 'text' first" in caplog.text


def test_the_command_trains_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line trains a stage for its minutes, and again only evaluates."""
    monkeypatch.setattr(autoencoder, "PCA_CLIPS", 3)
    monkeypatch.setattr(command, "preset", lambda name: narrow())
    arguments = ["autoencoder", "--minutes", "0.02", "--batch", "2", "--folder", str(tmp_path / "run")]
    arguments += ["--weights", str(tmp_path)]
    for _ in range(2):
        assert command.main(arguments) == 0
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert kinds.count("evaluate") == 2
    assert (tmp_path / "run" / "metrics.png").exists()


def test_pictures_need_matplotlib_and_nothing_else_does(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without it training says so and goes on; a picture that is asked for is refused before anything is measured."""
    for module in (command, run, arguments):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    monkeypatch.setattr(autoencoder, "PCA_CLIPS", 3)
    monkeypatch.setattr(command, "preset", lambda name: narrow())
    words = ["autoencoder", "--minutes", "0.02", "--batch", "2", "--folder", str(tmp_path / "run")]
    assert command.main([*words, "--weights", str(tmp_path)]) == 0
    assert "pip install -e '.[train]'" in caplog.text
    assert (tmp_path / "vae.safetensors").exists() and not (tmp_path / "run" / "metrics.png").exists()
    with pytest.raises(SystemExit):
        curve.main(["--json", str(tmp_path / "c.json"), "--png", str(tmp_path / "c.png")])
    assert "c.png cannot be drawn without matplotlib" in capsys.readouterr().err


def test_a_warm_start_begins_with_what_the_weights_folder_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planner, renderer, text encoder and its words' numbers go on from their files; without the flag they are new.

    A new planner is trained with the text encoder that is there.
    """
    monkeypatch.setattr(render, "HELD_OUT", 1)
    config = narrow()
    kept = {
        "vae": TinyVAE(config.vae),
        "tokenizer": SemanticTokenizer(config.tokenizer),
        "text": SmallT5(config.text, make_tokenizer(tmp_path)),
        "planner": Planner(config.planner),
        "renderer": Renderer(config.renderer),
    }
    for name, module in kept.items():
        save_component(tmp_path, name, module)
    make_tokenizer(tmp_path, captions=["words of another order than the world's"])
    words = load_tokenizer(tmp_path).get_vocab()
    stage_of = {}
    for name in ("renderer", "planner", "text"):
        arguments = [name, "--weights", str(tmp_path), "--seed", "3"]
        warm = stages.build(name, config, command.parse([*arguments, "--warm-start"]))
        assert load_tokenizer(tmp_path).get_vocab() == words
        new = stages.build(name, config, command.parse(arguments))
        stage_of[name] = warm, new
        saved = {key: value.bfloat16() for key, value in kept[name].named_parameters()}
        for stage, same in ((warm, True), (new, False)):
            parameters = dict(getattr(stage, name).named_parameters())
            assert all(torch.equal(parameters[key].bfloat16(), saved[key]) for key in saved) == same
    assert load_tokenizer(tmp_path).get_vocab() != words
    text = dict(stage_of["planner"][1].text.named_parameters())
    assert all(torch.equal(text[key].bfloat16(), value.bfloat16()) for key, value in kept["text"].named_parameters())
    assert all(parameter.requires_grad for parameter in text.values())
    assert [stage.made_from for stage in stage_of["renderer"]] == [0, render.MADE_FROM]


def test_a_warm_start_resumes_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the flag the words would get other numbers than the run's: it is refused, and they are left alone."""
    monkeypatch.setattr(command, "preset", lambda name: narrow())
    make_tokenizer(tmp_path, captions=["words of another order than the world's"])
    save_component(tmp_path, "text", SmallT5(narrow().text, load_tokenizer(tmp_path)))
    words = load_tokenizer(tmp_path).get_vocab()
    arguments = ["text", "--minutes", "0.002", "--batch", "2", "--folder", str(tmp_path / "run")]
    arguments += ["--weights", str(tmp_path)]
    assert command.main([*arguments, "--warm-start"]) == 0
    assert command.main(arguments) == 2
    assert "is of another run, 'text of mini, from weights' and not 'text of mini'" in caplog.text
    assert load_tokenizer(tmp_path).get_vocab() == words


def test_a_stage_that_cannot_start_warm_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A tokenizer's codebook begins anew; that is said before anything is made."""
    folder = tmp_path / "run"
    assert command.main(["tokenizer", "--warm-start", "--weights", str(tmp_path), "--folder", str(folder)]) == 2
    assert "'tokenizer' has no --warm-start" in caplog.text
    assert not folder.exists()


def test_a_component_of_another_width_is_refused(tmp_path: Path) -> None:
    """Weights of one preset do not fit another."""
    save_component(tmp_path, "vae", TinyVAE(narrow().vae))
    with pytest.raises(ValueError, match=r"basis is \[6, 768\], expected \[24, 768\]"):
        load_component(tmp_path, "vae", TinyVAE(TinyVAEConfig()))

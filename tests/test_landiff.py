"""The published model's classes in the streaming loop, at tiny size, from a complete folder of random weights."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import checkpoint
import numpy as np
import numpy.typing as npt
import pytest
import torch
from checkpoint import PROMPT, TINY

from engine.config import EngineConfig, preset
from engine.live import generator as generating
from engine.live.generator import ChannelState, Generator
from engine.live.noise import normal
from engine.live.offline import Change, film
from engine.loading.memory import weight_bytes
from engine.loading.model import Model, assemble, build, load, weights_folder
from engine.loading.weights import text_folders
from engine.perceptual.frames import to_host
from engine.perceptual.solver import DiffusionSolver, SolverState, guide
from engine.text.published import text_bytes
from engine.wire.frames import FeatureFrames, TextEmbedding

CPU = torch.device("cpu")
FIRST, HOP = 49, 24  # frames of the first hop and of every other
OTHER = "under the blue sea, number 7"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    checkpoint.make_folder(folder)
    checkpoint.make_texts(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(TINY, folder, CPU, torch.float32)


@pytest.fixture
def generator(model: Model) -> Generator:
    return Generator(model)


def frames(generator: Generator, channel: ChannelState, count: int, *changes: Change) -> npt.NDArray[np.uint8]:
    return np.concatenate([chunk.i420 for chunk in film(generator, channel, count, changes)])


def differing(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> list[int]:
    return np.flatnonzero((one != other).any(axis=(1, 2))).tolist()


def variant(model: Model, **changes: object) -> Model:
    return dataclasses.replace(model, config=dataclasses.replace(model.config, **changes))


def features(start: int, count: int) -> FeatureFrames:
    shape = (1, count, TINY.tokenizer.feature_dim, *TINY.tokenizer.grid)
    return FeatureFrames(normal(shape, "features", start), start)


def test_stream_is_cut_into_units(generator: Generator) -> None:
    """A whole window comes first, 49 frames; then 24 a hop, in slices of 2 latents, numbered in order."""
    channel = generator.open(PROMPT, 1)
    for hop, (first, sizes) in enumerate([(0, [9, 8, 8, 8, 8, 8]), (FIRST, [8, 8, 8]), (FIRST + HOP, [8, 8, 8])]):
        while generator.needs_plan(channel):
            generator.plan(channel)
        units = list(generator.hop(channel))
        assert [unit.stage for unit in units] == ["render"] * (1 + TINY.steps) + ["vae"] * len(sizes)
        chunks = [unit.chunk for unit in units if unit.chunk is not None]
        assert [chunk.frames for chunk in chunks] == sizes and {chunk.hop for chunk in chunks} == {hop}
        assert [chunk.index for chunk in chunks] == (first + np.cumsum([0, *sizes[:-1]])).tolist()
        assert all(chunk.i420.shape[1:] == (24, 32) and chunk.i420.std() > 1 for chunk in chunks)


def test_frames_equal_one_long_decode(model: Model) -> None:
    """The autoencoder's memory is carried over hops: pictures are those of all latents decoded at once, bit for bit."""
    # With a first hop of half a window, the prompt half shows every latent that was rendered.
    generator = Generator(variant(model, first_latents=7))
    channel, latents, pictures = generator.open(PROMPT, 1), [], []
    for count in (7, 6, 6):
        pictures += [unit.chunk.i420 for unit in generator.render(channel, features(0, count)) if unit.chunk]
        latents.append(channel.prompt_half[:, -count:])
    with model.computing():
        whole = to_host(model.vae.decode(torch.cat(latents, dim=1), model.vae.new_state()))
    assert len(whole) == 25 + 2 * HOP
    assert not differing(np.concatenate(pictures), whole)


def whole_window(model: Model, hop: int, window: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """A later hop by the published recipe: all frames run through the sampler, the given ones put back each step."""
    solver = DiffusionSolver(TINY.schedule, TINY.steps)
    shape = (1, 6, *given.shape[2:])
    text = model.text.embed(PROMPT).renderer
    both = torch.cat([torch.zeros_like(text), text])
    with model.computing():
        condition = model.renderer.condition(window)
        state = SolverState(torch.cat([given, normal(shape, 1, "render", hop)], dim=1))
        for index in range(TINY.steps):
            put = given
            if model.config.prompt_half == "renoised":
                put = solver.noised(index, given, normal(tuple(given.shape), 1, "prompt", hop, index))
            state = SolverState(torch.cat([put, state.x[:, 7:]], dim=1), state.clean)
            pair = torch.cat([state.x, state.x])
            output = model.renderer.predict(pair, torch.full((2,), solver.time(index)), both, condition)
            without, with_text = solver.clean(index, pair, output).chunk(2)
            clean = guide(without, with_text, solver.guidance(index))
            noise = torch.cat([torch.zeros_like(given), normal(shape, 1, "render", hop, index)], dim=1)
            state = solver.step(index, state, clean, noise)
    return state.x[:, 7:]


@pytest.mark.parametrize("prompt_half", ["clean", "renoised"])
def test_prompt_half_is_held(model: Model, prompt_half: str) -> None:
    """Both ways to hold the prompt half give what the published sampler's loop over the whole window gives."""
    model = variant(model, prompt_half=prompt_half)
    generator = Generator(model)
    channel = generator.open(PROMPT, 1)
    list(generator.render(channel, features(0, 13)))
    given = channel.prompt_half
    list(generator.render(channel, features(13, 6)))
    window = torch.cat([features(0, 13).features[:, -7:], features(13, 6).features], dim=1)
    expected = whole_window(model, 1, window, given)
    assert torch.allclose(channel.prompt_half[:, -6:], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_the_ways_to_hold_the_prompt_half_differ(model: Model) -> None:
    """The field reaches the frames of the second hop, and not the first hop's, which has no prompt half."""
    videos = []
    for prompt_half in ("clean", "renoised"):
        generator = Generator(variant(model, prompt_half=prompt_half))
        videos.append(frames(generator, generator.open(PROMPT, 1), FIRST + HOP))
    assert min(differing(*videos)) == FIRST


def test_streaming_equals_offline(generator: Generator) -> None:
    """Plans made ahead between units, as the stream makes them, leave the frames as they are, bit for bit."""
    offline = frames(generator, generator.open(PROMPT, 1), FIRST + 2 * HOP)
    channel, chunks = generator.open(PROMPT, 1), []
    for _ in range(3):
        while generator.needs_plan(channel):
            generator.plan(channel)
        for unit in generator.hop(channel):
            if unit.chunk is not None:
                chunks.append(unit.chunk.i420)
            if generator.ahead(channel) < 12:
                generator.plan(channel)
    assert not differing(np.concatenate(chunks), offline)


def test_prompt_changes_at_a_hop(generator: Generator) -> None:
    """Another prompt, also a longer one, changes the video from the first hop at or after it, and nothing before."""
    plain = frames(generator, generator.open("red", 1), 105)
    changed = frames(generator, generator.open("red", 1), 105, Change(50, OTHER))
    assert differing(changed, plain) == list(range(FIRST + HOP, 105))


def test_video_replays_from_any_hop(generator: Generator) -> None:
    """A copy of the state between two hops gives the same frames again, whatever the global generator did."""
    channel = generator.open(PROMPT, 1)
    frames(generator, channel, FIRST)
    kept = copy.deepcopy(channel)
    video = frames(generator, channel, 2 * HOP)
    torch.randn(10)
    assert not differing(frames(generator, kept, 2 * HOP), video)


def tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)
    elif hasattr(value, "__slots__"):
        yield from tensors([getattr(value, name) for name in value.__slots__])


def test_state_does_not_grow(generator: Generator) -> None:
    """A channel's tensors take as much memory after 12 hops as after 5, prompt changes included."""
    channel, sizes = generator.open(PROMPT, 1), []
    for hop in range(12):
        frames(generator, channel, HOP if hop else FIRST, Change(0, OTHER if hop % 2 else PROMPT))
        while generator.ahead(channel) < 12:
            generator.plan(channel)
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in tensors(channel)))
    assert max(sizes[6:]) <= max(sizes[2:6])


def test_matrices_are_lowered_and_the_head_is_not(folder: Path) -> None:
    """In bfloat16 the matrices of every stage are, while norms, tables and the planner's head stay in float32."""
    model = load(TINY, folder, CPU, torch.bfloat16)
    assert model.renderer.base.blocks[0].qkv.weight.dtype == torch.bfloat16
    assert model.planner.blocks[0].qkv.weight.dtype == torch.bfloat16
    for kept in (model.planner.head.weight, model.renderer.base.positions, model.renderer.base.final_norm.weight):
        assert kept.dtype == torch.float32
    generator = Generator(model)
    assert frames(generator, generator.open(PROMPT, 1), 9).std() > 1


def test_missing_text_encoders_are_named(tmp_path: Path) -> None:
    """A folder without the encoders says which are missing and where they are, before weights are read."""
    checkpoint.make_folder(tmp_path)
    with pytest.raises(ValueError, match="flan-t5-xxl: download google/flan-t5-xxl\n.*t5-v1_1-xxl: download"):
        load(TINY, tmp_path, CPU, torch.float32)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    """That there are no weights is said first, with the cure, not that something beside them is missing."""
    with pytest.raises(ValueError, match="holds no weights: give the folder of the published files"):
        load(TINY, tmp_path, CPU, torch.float32)


def test_memory_for_the_text_encoders_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with room for the modules but not for the encoders beside them is refused with both numbers."""
    modules, encoders = weight_bytes(build(TINY), {}), sum(text_bytes(place, 16) for place in text_folders(folder))

    class Host:
        available = modules + encoders

    monkeypatch.setattr("engine.loading.memory.psutil.virtual_memory", lambda: Host)
    monkeypatch.setattr("engine.loading.model.load_weights", lambda *rest: pytest.fail("nothing is loaded"))
    with pytest.raises(ValueError, match=r"the weights need 0\.0 GB, but cpu has only 0\.0 GB free"):
        load(TINY, folder, CPU, torch.float32)
    monkeypatch.setattr(Host, "available", round(1.06 * Host.available))
    with pytest.raises(pytest.fail.Exception, match="nothing is loaded"):
        load(TINY, folder, CPU, torch.float32)


def test_progress_ends_at_one(folder: Path) -> None:
    """Shares of modules and text encoders rise to 1."""
    shares: list[float] = []
    load(TINY, folder, CPU, torch.float32, shares.append)
    assert shares == sorted(shares) and shares[-1] == 1.0 and 0.4 < shares[-3] < 0.6


def test_weights_must_be_given(folder: Path) -> None:
    """Without a folder the error says how to get the weights; a folder stands for itself."""
    assert weights_folder(TINY, str(folder)) == folder
    with pytest.raises(ValueError, match="'landiff' comes without weights: .*yinaoxiong/LanDiff"):
        weights_folder(TINY, None)


def test_planner_must_be_told(model: Model) -> None:
    """What the release's planner has no null for must be in the configuration."""
    config: EngineConfig = model.config
    with pytest.raises(ValueError, match="plan_frames None"):
        dataclasses.replace(config, plan_frames=None)


class _NoText:
    """Embeddings of the published sizes that take no memory."""

    def embed(self, prompt: str) -> TextEmbedding:
        return TextEmbedding(torch.empty(1, 80, 4096, device="meta"), torch.empty(1, 226, 4096, device="meta"))


def test_full_size_fits_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the published sizes every stage of two hops takes what the one before gives; nothing is computed."""
    shapes: list[torch.Size] = []

    def note(video: torch.Tensor) -> torch.Tensor:
        shapes.append(video.shape)
        return torch.zeros(video.shape[1], 2, 2, dtype=torch.uint8)

    monkeypatch.setattr(generating, "to_planes", note)
    monkeypatch.setattr(Model, "computing", lambda self: torch.inference_mode())
    config = preset("landiff")
    model = assemble(config, _NoText(), build(config), torch.device("meta"), torch.float32)
    generator = Generator(model, steps=2)
    channel = generator.open(PROMPT, 1)
    for count in (13, 6):
        planned = torch.empty(1, count, 768, 30, 45, device="meta")
        list(generator.render(channel, FeatureFrames(planned, channel.latent)))
    assert shapes == [(1, 9, 3, 480, 720)] + [(1, 8, 3, 480, 720)] * 8
    assert (channel.hop, channel.frame, channel.prompt_half.shape) == (2, 73, (1, 7, 16, 60, 90))
    assert channel.plan.cache.length == 3 + 512 + 2 * 1244

"""The published model's classes in the streaming loop, at tiny size, from a complete folder of random weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import checkpoint
import numpy as np
import numpy.typing as npt
import pytest
import torch
from checkpoint import PROMPT, TINY

from engine.config import preset
from engine.live import slices
from engine.live.channel_state import ChannelState
from engine.live.generator import Generator
from engine.live.noise import normal
from engine.live.offline import Change, generate_frames
from engine.loading.model import Model, assemble, load
from engine.loading.modules import build
from engine.loading.options import weights_folder
from engine.loading.placement import weight_bytes
from engine.loading.text_files import text_bytes
from engine.loading.weights import text_folders
from engine.perceptual.frames import to_host
from engine.perceptual.solver import DiffusionSolver, SolverState, guide
from engine.runtime.pytree import leaves
from engine.semantic.passes import LONGEST_PASS
from engine.semantic.tokenizer import FeatureFrames
from engine.text.embedding import TextEmbedding

CPU = torch.device("cpu")
FIRST, CHUNK = 49, 24  # frames of the first chunk and of every other
OTHER = "under the blue sea, number 7"


@pytest.fixture(scope="module")
def model(published_folder: Path) -> Model:
    return load(TINY, published_folder, CPU, torch.float32)


@pytest.fixture
def generator(model: Model) -> Generator:
    return Generator(model)


def frames(generator: Generator, channel: ChannelState, count: int, *changes: Change) -> npt.NDArray[np.uint8]:
    return np.concatenate([batch.i420 for batch in generate_frames(generator, channel, count, changes)])


def differing(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> list[int]:
    return np.flatnonzero((one != other).any(axis=(1, 2))).tolist()


def variant(model: Model, **changes: object) -> Model:
    return dataclasses.replace(model, config=dataclasses.replace(model.config, **changes))


def features(start: int, count: int) -> FeatureFrames:
    shape = (1, count, TINY.tokenizer.feature_dim, *TINY.tokenizer.grid)
    return FeatureFrames(normal(shape, "features", start), start)


def test_stream_is_cut_into_units(generator: Generator) -> None:
    """A whole window comes first, 49 frames; then 24 a chunk, in slices of 2 latents, numbered in order."""
    channel = generator.open(PROMPT, 1)
    for chunk, (first, sizes) in enumerate([(0, [9, 8, 8, 8, 8, 8]), (FIRST, [8, 8, 8]), (FIRST + CHUNK, [8, 8, 8])]):
        while generator.needs_plan(channel):
            generator.plan(channel)
        units = list(generator.chunk(channel).units)
        assert [unit.stage for unit in units] == ["render"] * (1 + TINY.steps) + ["vae"] * len(sizes)
        batches = [unit.batch for unit in units if unit.batch is not None]
        assert [batch.frames for batch in batches] == sizes and {batch.chunk for batch in batches} == {chunk}
        assert [batch.index for batch in batches] == (first + np.cumsum([0, *sizes[:-1]])).tolist()
        assert all(batch.i420.shape[1:] == (24, 32) and batch.i420.std() > 1 for batch in batches)


def test_frames_equal_one_long_decode(model: Model) -> None:
    """The autoencoder's memory is carried over chunks: pictures are those of one decode, bit for bit."""
    # With a first chunk of half a window, the context shows every latent that was rendered.
    generator = Generator(variant(model, first_chunk_length=7))
    channel, latents, pictures = generator.open(PROMPT, 1), [], []
    for count in (7, 6, 6):
        pictures += [unit.batch.i420 for unit in generator.render(channel, features(0, count)) if unit.batch]
        latents.append(channel.context_latents[:, -count:])
    with model.computing():
        whole = to_host(model.vae.decode(torch.cat(latents, dim=1), model.vae.new_state()))
    assert len(whole) == 25 + 2 * CHUNK
    assert not differing(np.concatenate(pictures), whole)


def whole_window(model: Model, chunk: int, window: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """A later chunk by the published recipe: all frames run through the sampler, the given ones put back each step."""
    solver = DiffusionSolver(TINY.schedule, TINY.steps)
    shape = (1, 6, *given.shape[2:])
    text = model.text.embed(PROMPT).renderer
    both = torch.cat([torch.zeros_like(text), text])
    with model.computing():
        condition = model.renderer.condition(window)
        state = SolverState(torch.cat([given, normal(shape, 1, "render", chunk)], dim=1))
        for index in range(TINY.steps):
            state = SolverState(torch.cat([given, state.x[:, 7:]], dim=1), state.clean)
            pair = torch.cat([state.x, state.x])
            output = model.renderer.predict(pair, torch.full((2,), solver.time(index)), both, condition)
            without, with_text = solver.clean(index, pair, output).chunk(2)
            clean = guide(without, with_text, solver.guidance(index))
            noise = torch.cat([torch.zeros_like(given), normal(shape, 1, "render", chunk, index)], dim=1)
            state = solver.step(index, state, clean, noise)
    return state.x[:, 7:]


def test_context_is_held(generator: Generator) -> None:
    """A chunk behind its context is that of the published sampler's loop over the whole window."""
    channel = generator.open(PROMPT, 1)
    list(generator.render(channel, features(0, 13)))
    context = channel.context_latents
    list(generator.render(channel, features(13, 6)))
    window = torch.cat([features(0, 13).features[:, -7:], features(13, 6).features], dim=1)
    expected = whole_window(generator.model, 1, window, context)
    assert torch.allclose(channel.context_latents[:, -6:], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_streaming_equals_offline(generator: Generator) -> None:
    """Plans made ahead between units, as the stream makes them, leave the frames as they are, bit for bit."""
    offline = frames(generator, generator.open(PROMPT, 1), FIRST + 2 * CHUNK)
    channel, batches = generator.open(PROMPT, 1), []
    for _ in range(3):
        while generator.needs_plan(channel):
            generator.plan(channel)
        chunk = generator.chunk(channel)
        for unit in chunk.units:
            if unit.batch is not None:
                batches.append(unit.batch.i420)
            if generator.planned(channel) - chunk.end.latent < 12:
                generator.plan(channel)
    assert not differing(np.concatenate(batches), offline)


def test_prompt_changes_at_a_chunk(generator: Generator) -> None:
    """Another prompt, also a longer one, changes the video from the first chunk at or after it, and nothing before."""
    plain = frames(generator, generator.open("red", 1), 105)
    changed = frames(generator, generator.open("red", 1), 105, Change(50, OTHER))
    assert differing(changed, plain) == list(range(FIRST + CHUNK, 105))


def test_state_does_not_grow(generator: Generator) -> None:
    """A channel's tensors take as much memory after 12 chunks as after 5, prompt changes included."""
    channel, sizes = generator.open(PROMPT, 1), []
    for chunk in range(12):
        frames(generator, channel, CHUNK if chunk else FIRST, Change(0, OTHER if chunk % 2 else PROMPT))
        while generator.planned(channel) - channel.next.latent < 12:
            generator.plan(channel)
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in leaves(channel)))
    assert max(sizes[6:]) <= max(sizes[2:6])


def test_matrices_are_lowered_and_the_head_is_not(published_folder: Path) -> None:
    """In bfloat16 the matrices of every stage are, while norms, tables and the planner's head stay in float32."""
    model = load(TINY, published_folder, CPU, torch.bfloat16)
    assert model.renderer.base.blocks[0].qkv.weight.dtype == torch.bfloat16
    assert model.planner.blocks[0].qkv.weight.dtype == torch.bfloat16
    for kept in (model.planner.head.weight, model.renderer.base.positions, model.renderer.base.final_norm.weight):
        assert kept.dtype == torch.float32
    generator = Generator(model)
    assert frames(generator, generator.open(PROMPT, 1), 9).std() > 1


def test_incomplete_folders_are_named(tmp_path: Path) -> None:
    """That there are no weights is said first; then which text encoders are missing, before weights are read."""
    with pytest.raises(ValueError, match="holds no weights: give the folder of the published files"):
        load(TINY, tmp_path, CPU, torch.float32)
    checkpoint.make_folder(tmp_path)
    with pytest.raises(ValueError, match="flan-t5-xxl: download google/flan-t5-xxl\n.*t5-v1_1-xxl: download"):
        load(TINY, tmp_path, CPU, torch.float32)


def test_memory_for_the_text_encoders_is_asked_for(published_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with room for the modules but not for the encoders beside them is refused with both numbers."""
    modules, encoders = (
        weight_bytes(build(TINY), {}),
        sum(text_bytes(place, 16) for place in text_folders(published_folder)),
    )

    class Host:
        available = modules + encoders

    monkeypatch.setattr("engine.loading.placement.psutil.virtual_memory", lambda: Host)
    monkeypatch.setattr("engine.loading.model.load_weights", lambda *rest: pytest.fail("nothing is loaded"))
    with pytest.raises(ValueError, match=r"the weights need 0\.0 GB, but cpu has only 0\.0 GB free"):
        load(TINY, published_folder, CPU, torch.float32)
    monkeypatch.setattr(Host, "available", round(1.06 * Host.available))
    with pytest.raises(pytest.fail.Exception, match="nothing is loaded"):
        load(TINY, published_folder, CPU, torch.float32)


def test_progress_ends_at_one(published_folder: Path) -> None:
    """Shares of modules and text encoders rise to 1."""
    shares: list[float] = []
    load(TINY, published_folder, CPU, torch.float32, shares.append)
    assert shares == sorted(shares) and shares[-1] == 1.0 and 0.4 < shares[-3] < 0.6


def test_weights_must_be_given(published_folder: Path) -> None:
    """Without a folder the error says how to get the weights; a folder stands for itself."""
    assert weights_folder(TINY, str(published_folder)) == published_folder
    with pytest.raises(ValueError, match="'landiff' comes without weights: .*yinaoxiong/LanDiff"):
        weights_folder(TINY, None)


class _NoText:
    """Embeddings of the published sizes that take no memory."""

    def embed(self, prompt: str, seed: int) -> TextEmbedding:
        return TextEmbedding(torch.empty(1, 80, 4096, device="meta"), torch.empty(1, 226, 4096, device="meta"))


def test_full_size_fits_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the published sizes every stage of two chunks takes what the one before gives; nothing is computed."""
    shapes: list[torch.Size] = []

    def note(video: torch.Tensor) -> torch.Tensor:
        shapes.append(video.shape)
        return torch.zeros(video.shape[1], 2, 2, dtype=torch.uint8)

    monkeypatch.setattr(slices, "to_planes", note)
    monkeypatch.setattr(Model, "computing", lambda self: torch.inference_mode())
    config = preset("landiff")
    model = assemble(config, _NoText(), build(config), torch.device("meta"), torch.float32)
    generator = Generator(model)
    channel = generator.open(PROMPT, 1, steps=2)
    for count in (13, 6):
        planned = torch.empty(1, count, 768, 30, 45, device="meta")
        list(generator.render(channel, FeatureFrames(planned, channel.next.latent)))
    assert shapes == [(1, 9, 3, 480, 720)] + [(1, 8, 3, 480, 720)] * 8
    assert (channel.next.chunk, channel.next.frame, channel.context_latents.shape) == (2, 73, (1, 7, 16, 60, 90))
    assert channel.plan.cache.length == 3 + 512 + 2 * 1244 + LONGEST_PASS

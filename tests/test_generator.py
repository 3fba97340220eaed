import copy
import dataclasses
import itertools
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny import tiny_model
from tolerances import DEVICE

from engine.live.channel_state import ChannelState
from engine.live.generator import Generator
from engine.live.offline import Change, generate_frames
from kernels.tools import launch

FIRST, CHUNK = 25, 24  # frames of the first chunk and of every other


@cache
def _generator() -> Generator:
    return Generator(tiny_model())


def _frames(channel: ChannelState, count: int, *changes: Change) -> npt.NDArray[np.uint8]:
    return np.concatenate([batch.i420 for batch in generate_frames(_generator(), channel, count, changes)])


def _differing(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> list[int]:
    return np.flatnonzero((one != other).any(axis=(1, 2))).tolist()


def _chunk(generator: Generator, channel: ChannelState) -> Iterator[Any]:
    while generator.needs_plan(channel):
        generator.plan(channel)
    return generator.chunk(channel).units


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))


def test_chunk_is_cut_into_units() -> None:
    """A chunk is one unit to read its window, one a denoising step, and one a slice, which gives frames in order."""
    channel = _generator().open("a red ball", 0)
    for chunk, (first, sizes) in enumerate([(0, [9, 8, 8]), (25, [8, 8, 8]), (49, [8, 8, 8])]):
        units = list(_chunk(_generator(), channel))
        assert [unit.stage for unit in units] == ["render"] * 3 + ["vae"] * 3
        batches = [unit.batch for unit in units if unit.batch is not None]
        assert [batch.frames for batch in batches] == sizes
        assert [batch.index for batch in batches] == [first, first + sizes[0], first + sizes[0] + sizes[1]]
        assert {batch.chunk for batch in batches} == {chunk}
        assert all(batch.i420.shape[1:] == (48, 48) and batch.i420.std() > 1 for batch in batches)


def test_same_seed_same_frames() -> None:
    """A video is decided by its prompt and seed; another of either gives another video from the first frame on."""
    video = _frames(_generator().open("a red ball", 1), 60)
    assert not _differing(_frames(_generator().open("a red ball", 1), 60), video)
    assert _differing(_frames(_generator().open("a red ball", 2), 60), video) == list(range(60))
    assert _differing(_frames(_generator().open("the blue boat", 1), 60), video) == list(range(60))


def test_video_replays_from_any_chunk() -> None:
    """A copy of the state between two chunks gives the same frames again, whatever was drawn in between."""
    channel = _generator().open("a red ball", 1)
    _frames(channel, FIRST + CHUNK)
    kept = copy.deepcopy(channel)
    video = _frames(channel, 3 * CHUNK)
    torch.randn(10)
    assert not _differing(_frames(kept, 3 * CHUNK), video)


def test_every_chunk_is_announced_to_the_autoencoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first slice, and no other, comes behind `begin_chunk`."""
    told: list[int] = []
    generator = _generator()
    monkeypatch.setattr(generator.model.vae, "begin_chunk", lambda state: told.append(channel.next.chunk))
    channel = generator.open("a red ball", 1)
    for _ in range(3):
        list(_chunk(generator, channel))
    assert told == [0, 1, 2]


def test_state_advances_once_a_chunk() -> None:
    """While a chunk is made its state stays as it was; the last unit brings everything at once."""
    channel = _generator().open("a red ball", 1)
    _frames(channel, FIRST)
    before = copy.deepcopy(dataclasses.replace(channel, plan=None, text=None))  # type: ignore[arg-type]
    units = _chunk(_generator(), channel)
    for _ in range(6):
        next(units)
        assert channel.next == before.next
        assert all(
            torch.equal(now, then)
            for now, then in zip(
                _tensors([channel.features, channel.context_latents, channel.vae, channel.condition]),
                _tensors(before),
                strict=True,
            )
        )
    assert next(units, None) is None
    assert (channel.next.chunk, channel.next.frame) == (2, FIRST + CHUNK)
    assert not torch.equal(channel.context_latents, before.context_latents)


def test_two_channels_with_different_steps_share_a_generator() -> None:
    """Chunks of two videos in turn, unit by unit, are those that each makes alone."""
    alone = {steps: _frames(_generator().open("a red ball", steps, steps), FIRST + CHUNK) for steps in (1, 3)}
    channels = {steps: _generator().open("a red ball", steps, steps) for steps in alone}
    made: dict[int, list[npt.NDArray[np.uint8]]] = {steps: [] for steps in alone}
    for _ in range(2):
        for units in itertools.zip_longest(*(_chunk(_generator(), channel) for channel in channels.values())):
            for steps, unit in zip(made, units, strict=True):
                if unit is not None and unit.batch is not None:
                    made[steps].append(unit.batch.i420)
    assert all(not _differing(np.concatenate(made[steps]), alone[steps]) for steps in alone)


def test_later_work_does_not_reach_back() -> None:
    """The frames of a short video are the first frames of a long one."""
    short, long = (_frames(_generator().open("a red ball", 1), count) for count in (30, 100))
    assert not _differing(short, long[:30])


def test_each_chunk_follows_from_the_one_before() -> None:
    """The context, the features and the autoencoder's memory all reach the next chunk's frames."""
    channel = _generator().open("a red ball", 1)
    _frames(channel, FIRST + CHUNK)
    expected = _frames(copy.deepcopy(channel), CHUNK)
    for spoil in ("context_latents", "features", "vae"):
        spoiled = copy.deepcopy(channel)
        with torch.inference_mode():
            if spoil == "vae":
                assert spoiled.vae.level_8 is not None
                spoiled.vae.level_8 += 1
            else:
                setattr(spoiled, spoil, getattr(spoiled, spoil) + 1)
        assert 0 in _differing(_frames(spoiled, CHUNK), expected), spoil


@pytest.mark.parametrize(("asked", "frame"), [(1, 25), (25, 25), (26, 49), (60, 73), (100, 121)])
def test_change_begins_at_a_chunk(asked: int, frame: int) -> None:
    """The first frame that a new prompt changes is the first of the first chunk at or after the asked frame."""
    plain = _frames(_generator().open("a red ball", 1), 150)
    changed = _frames(_generator().open("a red ball", 1), 150, Change(asked, "the blue boat"))
    assert _differing(changed, plain) == list(range(frame, 150))


def test_change_is_answered_with_its_first_frame() -> None:
    """Frames begin to differ where the running chunk ends, when the prompt changes in the middle of it."""
    plain = _frames(_generator().open("a red ball", 1, first_frame=1000), 100)
    channel = _generator().open("a red ball", 1, first_frame=1000)
    batches = []
    for number in range(3):
        while _generator().needs_plan(channel):
            _generator().plan(channel)
        chunk = _generator().chunk(channel)
        for index, unit in enumerate(chunk.units):
            if unit.batch is not None:
                batches.append(unit.batch.i420)
            if (number, index) == (1, 2):
                _generator().change(channel, "the blue boat", chunk.end)
                assert chunk.end.frame == 1000 + FIRST + CHUNK
    video = np.concatenate(batches)
    assert _differing(video, plain[: len(video)]) == list(range(FIRST + CHUNK, len(video)))


def test_second_change_replaces_the_first() -> None:
    """Of two prompts for the same chunk the later one counts, and the earlier one leaves no trace."""
    once = _frames(_generator().open("a red ball", 1), 80, Change(25, "the sea"))
    twice = _frames(_generator().open("a red ball", 1), 80, Change(20, "the blue boat"), Change(25, "the sea"))
    assert not _differing(once, twice)


def _second_chunk(context_mix: tuple[float, ...], flaw: float) -> torch.Tensor:
    """The new latents of a second chunk whose context has a flaw."""
    model = tiny_model()
    generator = Generator(dataclasses.replace(model, config=dataclasses.replace(model.config, context_mix=context_mix)))
    channel = generator.open("a red ball", 0)
    for _ in _chunk(generator, channel):
        pass
    channel.context_latents = channel.context_latents + flaw
    for _ in _chunk(generator, channel):
        pass
    return channel.context_latents[:, -model.config.chunk_length :]


def test_the_context_mix_forgets_flaws_of_the_context() -> None:
    """Where a latent's share of the plan alone is 1 a flaw is gone, where it is 0 all is as without the mix."""
    context_mix = (0.0, 0.0, 0.0, 0.5, 0.5, 1.0)
    plain, flawed = _second_chunk((), 0.0), _second_chunk((), 0.5)
    mixed, mended = _second_chunk(context_mix, 0.0), _second_chunk(context_mix, 0.5)
    assert torch.equal(mixed[:, :3], plain[:, :3]) and torch.equal(mended[:, :3], flawed[:, :3])
    gap, left = (flawed - plain).abs().mean((0, 2, 3, 4)), (mended - mixed).abs().mean((0, 2, 3, 4))
    assert (gap > 0).all() and left[5] == 0
    torch.testing.assert_close(left[3:5], 0.5 * gap[3:5], rtol=1e-4, atol=1e-6)


def test_the_window_without_context_takes_one_step() -> None:
    """Whatever a chunk takes; it is none of the chunk's own, and a first chunk has no such window."""
    model = tiny_model()
    mixed = dataclasses.replace(model.config, context_mix=(0.5,) * model.config.chunk_length)
    generator = Generator(dataclasses.replace(model, config=mixed))
    channel = generator.open("a red ball", 0, steps=4)
    units = [[unit.step for unit in _chunk(generator, channel) if unit.stage == "render"] for _ in range(2)]
    assert units == [[False, *[True] * 4], [False, *[True] * 4, False, False]]


def test_the_condition_of_the_context_is_made_once() -> None:
    """A chunk takes it from the one before, which changes nothing; where it is not there it is made again."""
    generator, asked = _generator(), []
    condition = generator.model.renderer.condition
    channel = generator.open("a red ball", 0)
    handle = condition.upsampler.register_forward_pre_hook(lambda _, given: asked.append(len(given[0])))
    try:
        list(_chunk(generator, channel))
        again = copy.deepcopy(channel)
        again.condition = None
        kept, made = (_frames(one, CHUNK) for one in (channel, again))
    finally:
        handle.remove()
    config = generator.model.config
    assert asked == [config.first_chunk_length, config.chunk_length, config.context_length + config.chunk_length]
    assert not _differing(kept, made)


def test_state_does_not_grow() -> None:
    """All of a channel's tensors take the same memory at chunk 30 as at chunk 3, prompt changes included."""
    channel = _generator().open("a red ball", 1)
    changes = [Change(chunk * CHUNK, f"a red boat {chunk}") for chunk in range(1, 30, 2)]
    sizes = []
    for chunk in range(31):
        due = [change for change in changes if change.frame <= channel.next.frame]
        changes = changes[len(due) :]
        frames = FIRST if chunk == 0 else CHUNK
        _frames(channel, frames, *due)
        while _generator().planned(channel) - channel.next.latent < 12:
            _generator().plan(channel)
        # What is planned ahead ends in this GOP or the next, as passes have it.
        assert len(channel.plan.gops) <= 3
        ahead = sum(gop.tokens.untyped_storage().nbytes() for gop in channel.plan.gops)
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in _tensors(channel)) - ahead)
    assert max(sizes[20:]) <= max(sizes[3:20])
    assert sizes[3] < 1_000_000


def test_numbers_go_on_after_a_restart() -> None:
    """A video that is opened at a later chunk has that chunk's numbers and noise, and starts as a video does."""
    channel = _generator().open("a red ball", 1, first_frame=73, first_chunk=3)
    batches = list(generate_frames(_generator(), channel, FIRST + CHUNK))
    assert (batches[0].index, batches[0].chunk, batches[0].frames, batches[-1].chunk) == (73, 3, 9, 4)
    assert _differing(batches[0].i420, _frames(_generator().open("a red ball", 1), 9)) == list(range(9))


def test_steps_can_be_chosen() -> None:
    """Each denoising step is a unit, and their number shows in the frames."""
    frames = {}
    for steps in (1, 3):
        units = list(_chunk(_generator(), _generator().open("a red ball", 1, steps)))
        assert [unit.stage for unit in units].count("render") == 1 + steps
        frames[steps] = units[-1].batch.i420
    assert _differing(frames[1], frames[3])


@pytest.mark.skipif(DEVICE.type == "cuda", reason="kernels are compiled here, for tensors on CUDA alone")
def test_kernels_make_the_same_video() -> None:
    """With every kernel ordered, under Triton's interpreter on a CPU, pixels differ by a rounding at most."""
    plain = _frames(_generator().open("a red ball", 3), 9)
    with launch.preferring("triton"):
        fused = _frames(_generator().open("a red ball", 3), 9)
    assert np.abs(fused.astype(int) - plain.astype(int)).max() <= 1
    assert _differing(plain, _frames(_generator().open("a blue boat", 3), 9)) == list(range(9))

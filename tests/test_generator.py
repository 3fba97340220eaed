import copy
import dataclasses
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny import tiny_model
from tolerances import DEVICE

from engine.live.generator import ChannelState, Generator
from engine.live.offline import Change, film
from kernels.tools import launch

FIRST, HOP = 25, 24  # frames of the first hop and of every other


@cache
def _generator(steps: int | None = None) -> Generator:
    return Generator(tiny_model(), steps)


def _frames(channel: ChannelState, count: int, *changes: Change) -> npt.NDArray[np.uint8]:
    return np.concatenate([chunk.i420 for chunk in film(_generator(), channel, count, changes)])


def _differing(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> list[int]:
    return np.flatnonzero((one != other).any(axis=(1, 2))).tolist()


def _hop(generator: Generator, channel: ChannelState) -> Iterator[Any]:
    while generator.needs_plan(channel):
        generator.plan(channel)
    return generator.hop(channel)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))


def test_hop_is_cut_into_units() -> None:
    """A hop is one unit to read its window, one a denoising step, and one a slice, which gives frames in order."""
    channel = _generator().open("a red ball", 0)
    for hop, (first, sizes) in enumerate([(0, [9, 8, 8]), (25, [8, 8, 8]), (49, [8, 8, 8])]):
        units = list(_hop(_generator(), channel))
        assert [unit.stage for unit in units] == ["render"] * 3 + ["vae"] * 3
        chunks = [unit.chunk for unit in units if unit.chunk is not None]
        assert [chunk.frames for chunk in chunks] == sizes
        assert [chunk.index for chunk in chunks] == [first, first + sizes[0], first + sizes[0] + sizes[1]]
        assert {chunk.hop for chunk in chunks} == {hop}
        assert all(chunk.i420.shape[1:] == (48, 48) and chunk.i420.std() > 1 for chunk in chunks)


def test_same_seed_same_frames() -> None:
    """A video is decided by its prompt and seed; another of either gives another video from the first frame on."""
    video = _frames(_generator().open("a red ball", 1), 60)
    assert not _differing(_frames(_generator().open("a red ball", 1), 60), video)
    assert _differing(_frames(_generator().open("a red ball", 2), 60), video) == list(range(60))
    assert _differing(_frames(_generator().open("the blue boat", 1), 60), video) == list(range(60))


def test_video_replays_from_any_hop() -> None:
    """A copy of the state between two hops gives the same frames again, whatever was drawn in between."""
    channel = _generator().open("a red ball", 1)
    _frames(channel, FIRST + HOP)
    kept = copy.deepcopy(channel)
    video = _frames(channel, 3 * HOP)
    torch.randn(10)
    assert not _differing(_frames(kept, 3 * HOP), video)


def test_every_hop_is_announced_to_the_autoencoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first slice, and no other, comes behind `begin_hop`."""
    told: list[int] = []
    generator = _generator()
    monkeypatch.setattr(generator.model.vae, "begin_hop", lambda state: told.append(channel.hop))
    channel = generator.open("a red ball", 1)
    for _ in range(3):
        list(_hop(generator, channel))
    assert told == [1, 2, 3]


def test_later_work_does_not_reach_back() -> None:
    """The frames of a short video are the first frames of a long one."""
    short, long = (_frames(_generator().open("a red ball", 1), count) for count in (30, 100))
    assert not _differing(short, long[:30])


def test_each_hop_follows_from_the_one_before() -> None:
    """The prompt half, the features and the autoencoder's memory all reach the next hop's frames."""
    channel = _generator().open("a red ball", 1)
    _frames(channel, FIRST + HOP)
    expected = _frames(copy.deepcopy(channel), HOP)
    for spoil in ("prompt_half", "features", "vae"):
        spoiled = copy.deepcopy(channel)
        with torch.inference_mode():
            if spoil == "vae":
                assert spoiled.vae.level_8 is not None
                spoiled.vae.level_8 += 1
            else:
                setattr(spoiled, spoil, getattr(spoiled, spoil) + 1)
        assert 0 in _differing(_frames(spoiled, HOP), expected), spoil


@pytest.mark.parametrize(("asked", "frame"), [(1, 25), (25, 25), (26, 49), (60, 73), (100, 121)])
def test_change_begins_at_a_hop(asked: int, frame: int) -> None:
    """The first frame that a new prompt changes is the first of the first hop at or after the asked frame."""
    plain = _frames(_generator().open("a red ball", 1), 150)
    changed = _frames(_generator().open("a red ball", 1), 150, Change(asked, "the blue boat"))
    assert _differing(changed, plain) == list(range(frame, 150))


def test_change_is_answered_with_its_first_frame() -> None:
    """The number that `change` returns is where frames begin to differ, also in the middle of a hop."""
    plain = _frames(_generator().open("a red ball", 1, first_frame=1000), 100)
    channel = _generator().open("a red ball", 1, first_frame=1000)
    chunks = []
    assert _generator().change(copy.deepcopy(channel), "the blue boat") == 1000
    for hop in range(3):
        for index, unit in enumerate(_hop(_generator(), channel)):
            if unit.chunk is not None:
                chunks.append(unit.chunk.i420)
            if (hop, index) == (1, 2):
                frame = _generator().change(channel, "the blue boat")
    assert frame == 1000 + FIRST + HOP
    video = np.concatenate(chunks)
    assert _differing(video, plain[: len(video)]) == list(range(FIRST + HOP, len(video)))


def test_second_change_replaces_the_first() -> None:
    """Of two prompts for the same hop the later one counts, and the earlier one leaves no trace."""
    once = _frames(_generator().open("a red ball", 1), 80, Change(25, "the sea"))
    twice = _frames(_generator().open("a red ball", 1), 80, Change(20, "the blue boat"), Change(25, "the sea"))
    assert not _differing(once, twice)


def _anchored(anchors: tuple[float, ...], flaw: float) -> torch.Tensor:
    """The new latents of a second hop whose prompt half has a flaw."""
    model = tiny_model()
    generator = Generator(dataclasses.replace(model, config=dataclasses.replace(model.config, anchors=anchors)))
    channel = generator.open("a red ball", 0)
    for _ in _hop(generator, channel):
        pass
    channel.prompt_half = channel.prompt_half + flaw
    for _ in _hop(generator, channel):
        pass
    return channel.prompt_half[:, -model.config.new_latents :]


def test_anchors_forget_flaws_of_the_prompt_half() -> None:
    """Where a latent's share of the plan alone is 1 a flaw is gone, where it is 0 all is as without anchors."""
    anchors = (0.0, 0.0, 0.0, 0.5, 0.5, 1.0)
    plain, flawed = _anchored((), 0.0), _anchored((), 0.5)
    anchored, mended = _anchored(anchors, 0.0), _anchored(anchors, 0.5)
    assert torch.equal(anchored[:, :3], plain[:, :3]) and torch.equal(mended[:, :3], flawed[:, :3])
    gap, left = (flawed - plain).abs().mean((0, 2, 3, 4)), (mended - anchored).abs().mean((0, 2, 3, 4))
    assert (gap > 0).all() and left[5] == 0
    torch.testing.assert_close(left[3:5], 0.5 * gap[3:5], rtol=1e-4, atol=1e-6)


def test_state_does_not_grow() -> None:
    """All of a channel's tensors take the same memory at hop 30 as at hop 3, prompt changes included."""
    channel = _generator().open("a red ball", 1)
    changes = [Change(hop * HOP, f"a red boat {hop}") for hop in range(1, 30, 2)]
    sizes = []
    for hop in range(31):
        due = [change for change in changes if change.frame <= channel.frame]
        changes = changes[len(due) :]
        frames = FIRST if hop == 0 else HOP
        _frames(channel, frames, *due)
        while _generator().ahead(channel) < 12:
            _generator().plan(channel)
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in _tensors(channel)))
    assert max(sizes[20:]) <= max(sizes[3:20])
    assert sizes[3] < 1_000_000


def test_numbers_go_on_after_a_restart() -> None:
    """A video that is opened at a later hop has that hop's numbers and noise, and starts as a video does."""
    channel = _generator().open("a red ball", 1, first_frame=73, first_hop=3)
    chunks = list(film(_generator(), channel, FIRST + HOP))
    assert (chunks[0].index, chunks[0].hop, chunks[0].frames, chunks[-1].hop) == (73, 3, 9, 4)
    assert _differing(chunks[0].i420, _frames(_generator().open("a red ball", 1), 9)) == list(range(9))


def test_steps_can_be_chosen() -> None:
    """Each denoising step is a unit, and their number shows in the frames."""
    frames = {}
    for steps in (1, 3):
        units = list(_hop(_generator(steps), _generator(steps).open("a red ball", 1)))
        assert [unit.stage for unit in units].count("render") == 1 + steps
        frames[steps] = units[-1].chunk.i420
    assert _differing(frames[1], frames[3])


@pytest.mark.skipif(DEVICE.type == "cuda", reason="kernels are compiled here, for tensors on CUDA alone")
def test_kernels_make_the_same_video() -> None:
    """With every kernel ordered, under Triton's interpreter on a CPU, pixels differ by a rounding at most."""
    plain = _frames(_generator().open("a red ball", 3), 9)
    with launch.preferring("triton"):
        fused = _frames(_generator().open("a red ball", 3), 9)
    assert np.abs(fused.astype(int) - plain.astype(int)).max() <= 1
    assert _differing(plain, _frames(_generator().open("a blue boat", 3), 9)) == list(range(9))

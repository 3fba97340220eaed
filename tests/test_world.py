"""The drawn world."""

import random
from dataclasses import replace

import pytest
import torch

from engine.training import teacher, world
from engine.training.captions import Label, random_label


def spec(seed: int = 0, **words: str) -> world.Spec:
    label = replace(Label("ball", "red", "hills", "right", "medium"), **words)
    return world.sample([label], random.Random(seed))


def test_a_seed_draws_the_same_world() -> None:
    """The same seed gives the same pixels, another one other pixels."""
    frames = torch.arange(0, 40, 8)[None]
    first, again, other = (world.draw(spec(seed), frames) for seed in (3, 3, 4))
    assert first.shape == (1, 5, 3, 128, 192) and first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_frames_can_be_drawn_in_any_order_and_number() -> None:
    """A frame is a function of its number alone, also beside other worlds."""
    frames = torch.tensor([[5, 90, 13]])
    one = spec(5, scene="sea")
    alone = world.draw(one, frames[:, 1:2])
    assert torch.equal(world.draw(one, frames)[:, 1:2], alone)
    rng = random.Random(7)
    several = world.sample([random_label(rng) for _ in range(3)], rng)
    drawn = world.draw(several, frames.expand(3, -1))
    assert drawn.shape[0] == 3


@pytest.mark.parametrize("direction", ["left", "right", "up", "down", "still"])
def test_a_subject_comes_back_for_ever(direction: str) -> None:
    """In any minute of the video the subject is in the picture most of the time."""
    one = spec(1, direction=direction, speed="slow" if direction == "still" else "fast")
    frames = torch.arange(100_000, 100_480, 4)[None]
    covered = teacher.maps(one, frames)[:, :, teacher.channel("mask")].sum((2, 3, 4)) > 1
    assert covered.float().mean() > 0.7


def test_the_teacher_knows_where_the_subject_is() -> None:
    """The mask map covers the pixels that differ from the same world without its subject."""
    one = spec(2, direction="still", speed="slow", colour="white", scene="night")
    frames = torch.zeros(1, 1)
    without = world.draw(replace(one, start=torch.tensor([[-20.0, 147.0]])), frames)
    x, y = world.centres(one, frames)[0, 0].tolist()
    changed = (world.draw(one, frames) != without).any(dim=2)[0, 0]
    rows, columns = torch.nonzero(changed, as_tuple=True)
    assert abs(rows.float().mean() - y) < 4 and abs(columns.float().mean() - x) < 4
    cells = torch.nn.functional.avg_pool2d(changed.float()[None, None], 16)[0, 0]
    mask = teacher.maps(one, frames)[0, 0, 0]
    assert (cells - mask).abs().max() < 0.25


def test_a_new_label_goes_on_from_where_the_subject_was() -> None:
    """After relabel the position at that frame is the same, and the velocity the new one."""
    one = spec(3)
    frame = torch.tensor([37.0])
    other = world.relabel(one, [Label("fish", "blue", "sea", "up", "fast")], frame)
    torch.testing.assert_close(world.centres(one, frame[:, None]), world.centres(other, frame[:, None]))
    assert other.velocity.tolist() == [[0.0, pytest.approx(-1.9)]]


def test_every_channel_has_a_name() -> None:
    """Maps are found by name, and unknown names are refused."""
    assert teacher.channel("cloud").stop == teacher.FEATURE_DIM
    with pytest.raises(ValueError, match="no feature channel 'sound'"):
        teacher.channel("sound")

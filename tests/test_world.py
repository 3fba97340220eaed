"""The drawn world."""

import itertools
import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as nnf

from engine.config import preset
from engine.semantic.world_maps import BOUNCE_FRAMES, BOUNCE_PX
from engine.text.asked import SCENES, SPEEDS, SUBJECTS
from engine.training.world import drawing, teacher
from engine.training.world.captions import Label, random_label
from engine.training.world.spec import Spec

PAIR = {"relation": "above", "subject2": "car", "colour2": "blue"}


def spec(seed: int = 0, **words: str) -> Spec:
    label = replace(Label("ball", "red", "hills", "right", "medium"), **words)
    return drawing.sample([label], random.Random(seed))


def test_a_seed_draws_the_same_world() -> None:
    """The same seed gives the same pixels, another one other pixels."""
    frames = torch.arange(0, 40, 8)[None]
    first, again, other = (drawing.draw(spec(seed), frames) for seed in (3, 3, 4))
    assert first.shape == (1, 5, 3, 128, 192) and first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_frames_can_be_drawn_in_any_order_and_number() -> None:
    """A frame is a function of its number alone, also beside other worlds."""
    frames = torch.tensor([[5, 90, 13]])
    one = spec(5, scene="sea")
    alone = drawing.draw(one, frames[:, 1:2])
    assert torch.equal(drawing.draw(one, frames)[:, 1:2], alone)
    rng = random.Random(7)
    several = drawing.sample([random_label(rng) for _ in range(3)], rng)
    drawn = drawing.draw(several, frames.expand(3, -1))
    assert drawn.shape[0] == 3


@pytest.mark.parametrize("scene", SCENES)
def test_a_large_picture_is_the_same_world_with_finer_edges(scene: str) -> None:
    """Twice as large it shows the same in the same place, and where nothing is steep the same levels; its edges are
    about as steep in levels a pixel."""
    one, frames = spec(2, scene=scene, camera="right", **PAIR), torch.tensor([[3, 40]])
    small, large = drawing.draw(one, frames)[0].float(), drawing.draw(one, frames, 2)[0].float()
    assert large.shape == (2, 3, 256, 384)
    shrunk = nnf.avg_pool2d(large, 2)
    assert (shrunk - small).abs().median() <= 1 and (shrunk - small).square().mean().sqrt() < 8
    steep = [video.diff(dim=-1).abs().flatten(1).quantile(0.998, dim=1).mean() for video in (small, large)]
    assert steep[1] > 0.7 * steep[0]


def test_a_frame_between_two_shows_true_motion() -> None:
    """Half a frame later a subject has moved half as far, and is not blended from two places."""
    one = spec(direction="right", speed="fast", scene="underwater")
    video = drawing.draw(one, torch.tensor([[8.0, 8.5, 9.0]]), 2)[0].float()
    # 2 px a frame are 2 large ones in half a frame: what moves is the same picture, elsewhere.
    red = video[:, 0] - video[:, 2]
    x, y = (2 * drawing.centres(one, torch.tensor([[8.0]]))[0, 0]).int().tolist()
    boxes = [red[row, y - 30 : y + 30, x - 40 + 2 * row : x + 40 + 2 * row] for row in range(3)]
    assert (boxes[1] - boxes[0]).abs().mean() < 1.5 and (red[1] - (red[0] + red[2]) / 2).abs().max() > 10


@pytest.mark.parametrize("direction", ["left", "right", "up", "down", "still", "bounce"])
@pytest.mark.parametrize("pair", [{}, PAIR])
def test_a_subject_comes_back_for_ever(direction: str, pair: dict[str, str]) -> None:
    """In any minute of the video the subject is in the picture most of the time, and so is a second one."""
    one = spec(1, direction=direction, speed="slow" if direction == "still" else "fast", **pair)
    frames = torch.arange(100_000, 100_480, 4)[None]
    maps = teacher.maps(one, frames)
    for name in ("mask", "mask2") if pair else ("mask",):
        covered = maps[:, :, teacher.channel(name)].sum((2, 3, 4)) > 1
        assert covered.float().mean() > (0.55 if pair else 0.7)


@pytest.mark.parametrize("direction", ["left", "right", "up", "down", "still", "bounce"])
@pytest.mark.parametrize("relation", ["above", "left of"])
def test_a_relation_always_holds(relation: str, direction: str) -> None:
    """The second subject stays below the first, or to its right, at any time, and far enough not to overlap."""
    one = spec(6, direction=direction, **PAIR | {"relation": relation})
    frames = torch.arange(0, 4000, 7)[None]
    gap = drawing.centres(one, frames, second=True) - drawing.centres(one, frames)
    wanted = torch.tensor([0.0, 40.0] if relation == "above" else [48.0, 0.0])
    torch.testing.assert_close(gap, wanted.expand_as(gap), atol=1e-3, rtol=0)
    masks = teacher.maps(one, frames[:, :20])
    assert (masks[:, :, 0] + masks[:, :, teacher.channel("mask2")][:, :, 0]).max() <= 1


def test_a_bounce_is_as_high_and_as_long_as_said() -> None:
    """Up by BOUNCE_PX in the middle, on the ground again after BOUNCE_FRAMES, never below it, and not aside."""
    one = spec(8, direction="bounce", speed="slow")
    frames = one.bounce[:, None] + torch.arange(0, 1 + BOUNCE_FRAMES[0])[None]
    middles = drawing.centres(one, frames)[0]
    assert middles[:, 0].unique().numel() == 1
    up = middles[0, 1] - middles[:, 1]
    assert up.max() == pytest.approx(BOUNCE_PX, abs=1e-3) and up.min() == pytest.approx(0, abs=1e-3)
    assert up.argmax() == BOUNCE_FRAMES[0] / 2 and up[-1] == pytest.approx(0, abs=1e-2)


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_subject_faces_where_it_goes_and_stays_within_its_square(name: str) -> None:
    """The same subject to the left is the mirror image of that to the right, and nothing of it is cut off."""
    x = torch.arange(-34.5, 35)
    pictures = []
    for direction in ("left", "right"):
        one = spec(9, subject=name, direction=direction)
        pictures.append(drawing.subject(one, torch.tensor([3.0]), x[None], x[:, None])[0][0])
    torch.testing.assert_close(pictures[0], pictures[1].flip(1), atol=1e-5, rtol=0)
    inner = 34 - int(drawing.subjects.HALF_WIDTH_PX * 1.15) - 3
    assert pictures[0].max() > 0.9
    assert (
        pictures[0][:, :inner].max() < 0.02 and pictures[0][:inner].max() < 0.02 and pictures[0][-inner:].max() < 0.02
    )


def test_what_lives_moves() -> None:
    """A bird's wings are elsewhere within some frames, a car's shape never changes."""
    x = torch.arange(-30.0, 31)
    frames = torch.arange(0.0, 9.0)
    for name, moves in (("bird", True), ("fish", True), ("butterfly", True), ("car", False)):
        alpha, _ = drawing.subject(spec(10, subject=name), frames, x[None], x[:, None])
        assert bool((alpha - alpha[0]).abs().max() > 0.5) == moves


def test_the_teacher_knows_where_the_subject_is() -> None:
    """The mask map covers the pixels that differ from the same world without its subject."""
    one = spec(2, direction="still", speed="slow", colour="white", scene="night")
    frames = torch.zeros(1, 1)
    without = drawing.draw(replace(one, start=torch.tensor([[-20.0, 147.0]])), frames)
    x, y = drawing.centres(one, frames)[0, 0].tolist()
    changed = (drawing.draw(one, frames) != without).any(dim=2)[0, 0]
    rows, columns = torch.nonzero(changed, as_tuple=True)
    assert abs(rows.float().mean() - y) < 4 and abs(columns.float().mean() - x) < 4
    cells = torch.nn.functional.avg_pool2d(changed.float()[None, None], 16)[0, 0]
    mask = teacher.maps(one, frames)[0, 0, 0]
    assert (cells - mask).abs().max() < 0.25


@pytest.mark.parametrize("direction", ["left", "up", "bounce", "still"])
def test_another_subject_begins_in_sight_as_in_a_new_video(direction: str) -> None:
    """It starts nearest to the one before, which had left the picture, and where and when a new video's may."""
    label = Label("butterfly", "blue", "sea", direction, "fast")
    places = drawing.starts(label)
    for frame in (37.0, 149.0, 205.0):
        one = spec(3, subject="car", direction="right", speed="fast")
        now = torch.tensor([frame])
        other = drawing.relabel(one, [label], now)
        # The last frame before that a latent begins behind, as frame 0 of a video.
        began = now - 1
        start, before = drawing.centres(other, began[:, None])[0, 0], drawing.centres(one, began[:, None])[0, 0]
        for axis in range(2):
            assert float(start[axis]) in places[axis]
            assert abs(start[axis] - before[axis]) == min(abs(place - before[axis]) for place in places[axis])
        assert other.bounced(began[:, None]) == 0


@pytest.mark.parametrize("direction", ["left", "right", "up", "down"])
def test_a_new_subject_is_in_sight_for_two_chunks(direction: str) -> None:
    """Wherever it starts and however fast it is, its middle stays within the picture."""
    for speed in SPEEDS:
        wide, high = drawing.starts(Label("ball", "blue", "sea", direction, speed))
        for start in itertools.product(wide, high):
            one = replace(spec(3, subject="ball", direction=direction, speed=speed), start=torch.tensor([start]))
            x, y = drawing.centres(one, torch.arange(48.0)[None])[0].unbind(-1)
            assert 8 <= x.min() and x.max() <= drawing.WIDTH_PX - 8
            assert 8 <= y.min() and y.max() <= drawing.HEIGHT_PX - 8


def test_a_subject_that_stays_goes_on_from_where_it_is() -> None:
    """To the next point of the grid, at most half a cell away, at the new velocity; at an edge it comes into sight."""
    one = spec(3, subject="fish", direction="bounce", speed="slow")
    frame = torch.tensor([45.0])
    other = drawing.relabel(one, [Label("fish", "blue", "sea", "up", "fast")], frame)
    apart = drawing.centres(one, frame[:, None] - 1) - drawing.centres(other, frame[:, None] - 1)
    assert 0 < apart.abs().max() <= 4
    assert other.velocity.tolist() == [[0.0, pytest.approx(-2.0)]]
    left = replace(one, start=torch.tensor([[190.0, 125.0]]))
    back = drawing.relabel(left, [Label("fish", "blue", "sea", "still", "slow")], torch.tensor([1.0]))
    assert drawing.centres(back, torch.zeros(1, 1)).tolist() == [[[176.0, 112.0]]]


def test_cameras_go_on_under_a_new_label_and_pairs_come_whole() -> None:
    """The scenery passes on from where it was; a second subject stands where its relation says."""
    one = spec(3, camera="right")
    frame = torch.tensor([37.0])
    label = Label("fish", "blue", "sea", "left", "fast", "left", **PAIR)
    other = drawing.relabel(one, [label], frame)
    began = frame[:, None] - 1
    assert torch.equal(one.panned(began), other.panned(began))
    assert other.panned(began + 1) < one.panned(began + 1)
    middle = (drawing.centres(other, began) + drawing.centres(other, began, second=True)) / 2
    for axis, places in enumerate(drawing.starts(label)):
        assert float(middle[0, 0, axis]) in places


def test_every_channel_has_a_name() -> None:
    """Maps are found by name, and unknown names are refused."""
    assert teacher.channel("scroll").stop == teacher.FEATURE_DIM == preset("mini").theia.feature_dim
    with pytest.raises(KeyError, match="sound"):
        teacher.channel("sound")

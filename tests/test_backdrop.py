"""Scenery: endless, exact, passing at speeds by depth."""

import random
from dataclasses import replace

import pytest
import torch

from engine.semantic.world_maps import PAN_PX
from engine.text.asked import CAMERAS, SCENES
from engine.training.world import backdrop, drawing, landmarks, scenery, teacher
from engine.training.world.captions import Label
from engine.training.world.spec import Spec


def spec(scene: str, camera: str = "fixed", seed: int = 0) -> Spec:
    return drawing.sample([Label("ball", "red", scene, "still", "slow", camera)], random.Random(seed))


def drawn(one: Spec, frames: torch.Tensor) -> torch.Tensor:
    """[F, 3, 128, 192] of a world without its subject."""
    video = torch.full((len(frames), 3, 128, 192), torch.nan)
    backdrop.draw(one, frames, video)
    return video


def shift(before: torch.Tensor, after: torch.Tensor, most: int) -> int:
    """By how many pixels a strip [3, h, W] moved to the left."""
    width = before.shape[-1]
    errors = {
        by: (before[..., most + by : width - most + by] - after[..., most : width - most]).abs().mean()
        for by in range(-most, most + 1)
    }
    return min(errors, key=lambda by: float(errors[by]))


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("camera", CAMERAS)
def test_a_frame_is_the_same_alone_and_among_others(scene: str, camera: str) -> None:
    """Also an hour on, a frame drawn by itself equals the one drawn in a row."""
    one = spec(scene, camera)
    frames = torch.arange(28_800.0, 28_806.0)
    row = drawn(one, frames)
    assert row.shape == (6, 3, 128, 192) and row.min() >= 0 and row.max() <= 1
    torch.testing.assert_close(drawn(one, frames[4:5]), row[4:5], atol=1e-5, rtol=0)


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize(("camera", "sign"), [("left", -1), ("right", 1)])
def test_what_is_near_passes_faster(scene: str, camera: str, sign: int) -> None:
    """Over eight frames landmarks move by 12 px, far ridges by 2, to the left when the camera pans right."""
    one, place = spec(scene, camera), scenery.PLACES[scene]
    frames = torch.tensor([0.0, 8.0])
    y = torch.arange(128) + 0.5
    x = torch.arange(192) + 0.5
    passed = one.panned(frames[None])[0]
    assert passed.diff().item() == sign * 8 * PAN_PX == sign * 12
    _, marks = backdrop._passing(lambda across: scenery.nearby(scene, one.layouts.seed[0], across, y), x, passed)
    assert shift(marks[0], marks[1], 16) == sign * 12
    far = backdrop.far_alpha(one, frames[None], x, y)[0, :, None]
    if place.far_wave_px or place.shape == "houses":
        assert shift(far[0], far[1], 16) == sign * 2


def test_only_a_panning_camera_moves_the_land() -> None:
    """Before a fixed camera nothing but clouds moves over the hills, and nothing at all under water."""
    frames = torch.tensor([0.0, 40.0])
    hills, deep = (drawn(spec(scene), frames) for scene in ("hills", "underwater"))
    assert torch.equal(hills[0, :, backdrop.CLOUD_ROWS :], hills[1, :, backdrop.CLOUD_ROWS :])
    assert not torch.equal(hills[0], hills[1]) and torch.equal(deep[0], deep[1])


@pytest.mark.parametrize("scene", SCENES)
def test_new_scenery_keeps_coming(scene: str) -> None:
    """Ten stretches of land, a minute of panning from each other, all differ."""
    pictures = drawn(spec(scene, "right"), torch.arange(0.0, 4800.0, 480.0))[:, :, backdrop.CLOUD_ROWS :]
    for i, picture in enumerate(pictures):
        for j in range(i):
            assert (picture - pictures[j]).abs().max() > 0.05


@pytest.mark.parametrize("scene", SCENES)
def test_a_place_is_the_same_in_every_video(scene: str) -> None:
    """Videos of a scene differ in where the camera starts and in nothing else, and there are four such places."""
    worlds = [spec(scene, seed=seed) for seed in range(24)]
    starts = {float(one.pan): drawn(one, torch.zeros(1)) for one in worlds}
    assert len(starts) == drawing.PAN_STARTS
    assert all(torch.equal(drawn(one, torch.zeros(1)), starts[float(one.pan)]) for one in worlds)
    angles = torch.stack([backdrop.scroll(one, torch.zeros(1, 1), torch.zeros(1)) for one in worlds]).unique()
    assert angles.diff().min() > 1.4


def test_clouds_come_back_at_other_heights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third lap of a cloud is not the first."""
    one = spec("hills")
    layouts = replace(one.layouts, clouds=one.layouts.clouds[:, :1].expand(-1, 3))
    monkeypatch.setattr(scenery, "layouts", lambda *_: layouts)
    x, y = torch.arange(192.0), torch.arange(72.0)
    lap = torch.tensor(scenery.CLOUD_SPAN_PX / scenery.DRIFT_PX)
    alpha = backdrop.cloud_alpha(one, torch.stack([lap * 0, lap, 2 * lap])[None], x, y)[0]
    middles = (alpha.sum(2) * y).sum(1) / alpha.sum((1, 2)).clamp(min=1)
    assert middles.unique().numel() == 3


def test_chances_are_even_and_do_not_depend_on_each_other() -> None:
    """Hashes of numbers, of seeds and of salts are spread evenly over [0, 1)."""
    number, seed = torch.arange(-5000, 5000), torch.tensor(12345)
    rows = torch.stack([landmarks.chance(seed, number, salt) for salt in (0, 1)])
    rows = torch.cat([rows, landmarks.chance(seed + 1, number, 0)[None]])
    assert rows.min() >= 0 and rows.max() < 1
    assert (torch.histc(rows[0], 10, 0, 1) / 1000 - 1).abs().max() < 0.15
    assert (torch.corrcoef(rows) - torch.eye(3)).abs().max() < 0.04
    assert torch.corrcoef(torch.stack([rows[0, 1:], rows[0, :-1]]))[0, 1].abs() < 0.04


@pytest.mark.parametrize("scene", SCENES)
def test_scroll_tells_where_landmarks_stand(scene: str) -> None:
    """Columns that landmarks cover most have an angle near half a turn, and the teacher gives its cosine and sine."""
    one = spec(scene, "right", 2)
    frames = torch.arange(0.0, 300.0, 30.0)[None]
    x, y = torch.arange(192) + 0.5, torch.arange(128) + 0.5
    _, cover = backdrop._passing(
        lambda across: scenery.nearby(scene, one.layouts.seed[0], across, y), x, one.panned(frames)[0]
    )
    weight = cover[:, 0].sum(1)
    cosine = (weight * backdrop.scroll(one, frames, x)[0].cos()).sum() / weight.sum()
    assert cosine < -0.6
    maps = teacher.maps(one, frames)[:, :, teacher.channel("scroll")]
    assert (maps.square().sum(2) - 1).abs().max() < 1e-5

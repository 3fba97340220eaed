"""Figures of finished videos."""

import numpy as np
import pytest
import torch

from engine.perceptual.frames import to_host
from engine.training.world import judge


def test_planes_come_back_as_the_picture() -> None:
    """A smooth picture survives the way to I420 and back within a few levels."""
    ramp = torch.linspace(-0.9, 0.9, 48).expand(2, 3, 32, 48).clone()
    ramp[:, 1] *= -1
    rgb = judge.to_rgb(to_host(ramp[None]))
    wanted = (ramp + 1) * 127.5
    assert rgb.shape == (2, 3, 32, 48)
    assert (rgb.float() - wanted).abs().mean() < 3


def test_shares_have_intervals() -> None:
    """3 of 4 is 0.75, with an interval that shrinks with the number of videos."""
    few = judge.shares([{"colour": value} for value in (True, True, True, False)])["colour"]
    many = judge.shares([{"colour": value} for value in (True, True, True, False) * 25])["colour"]
    assert few["share"] == many["share"] == 0.75
    assert few["n"] == 4 and few["half_width_95"] > 3 * many["half_width_95"] > 0.05


def test_a_share_is_over_the_videos_that_have_the_word() -> None:
    """A relation that half of the captions do not have has half the number."""
    figures = judge.shares([{"colour": True}, {"colour": True, "relation": False}])
    assert figures["colour"]["n"] == 2 and figures["relation"]["n"] == 1 and figures["relation"]["share"] == 0


def test_sharpness_falls_when_a_picture_is_blurred() -> None:
    """Noise is sharper than its average over 3x3 pixels."""
    noise = torch.randint(0, 256, (2, 3, 32, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    blurred = torch.nn.functional.avg_pool2d(noise.float(), 3, 1, 1).to(torch.uint8)
    assert judge.sharpness(noise) > 2 * judge.sharpness(blurred)


def test_the_change_of_frames_sees_a_jump() -> None:
    """A cut is the largest change."""
    clip = torch.zeros(5, 3, 8, 8, dtype=torch.uint8)
    clip[3:] = 200
    assert judge.change_of_frames(clip).tolist() == [0, 0, 200, 0]


def test_the_frechet_distance_of_a_set_to_itself_is_nothing() -> None:
    """It is zero for equal sets and grows with a shift by its square."""
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(400, 4)))
    assert judge.frechet(rows, rows) == pytest.approx(0, abs=1e-6)
    assert judge.frechet(rows, rows + 2) == pytest.approx(16, rel=0.01)


def test_means_and_decibels_have_intervals() -> None:
    """Equal values have none, different ones a half width of 1.96 standard errors; one value alone has no interval."""
    assert judge.mean([3.0, 3.0, 3.0]) == {"mean": 3.0, "half_width_95": 0.0, "n": 3}
    assert judge.mean([1.0, 3.0])["half_width_95"] == pytest.approx(1.96)
    assert judge.mean([1.0])["half_width_95"] is None
    figure = judge.decibels([0.004, 0.004])
    assert figure["db"] == pytest.approx(30) and figure["half_width_95"] == 0


def test_a_ratio_knows_that_its_parts_belong_together() -> None:
    """Parts that rise together give a sharp ratio, parts that do not give a wide interval."""
    together = judge.ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    apart = judge.ratio([6.0, 2.0, 4.0], [1.0, 3.0, 2.0])
    assert together["ratio"] == apart["ratio"] == pytest.approx(2)
    assert together["half_width_95"] == pytest.approx(0) and apart["half_width_95"] > 1


def test_steady_motion_is_no_flicker() -> None:
    """A picture that brightens evenly has none; one that goes up and down by two levels has two."""
    steady = torch.arange(0, 60, 3, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)
    shaking = (100 + 2 * (torch.arange(20) % 2)).to(torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)
    assert judge.flicker(steady) == 0.0
    assert judge.flicker(shaking) == 2.0


def test_the_frechet_interval_shrinks_with_the_number_of_videos() -> None:
    """Four times the videos, about half the interval."""
    rows = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    other = torch.randn(400, 4, generator=torch.Generator().manual_seed(1))
    wide = judge.frechet_figure(rows[:50], other[:50], 0)["half_width_95"]
    assert 0 < judge.frechet_figure(rows, other, 0)["half_width_95"] < wide / 1.5

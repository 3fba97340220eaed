"""What the head reads of the features itself."""

from __future__ import annotations

from dataclasses import replace

import torch

from engine.perceptual.mini.details import Details
from engine.training.world import teacher
from tests.tiny import DETAILS

CONFIG = replace(DETAILS, channels=4, place_channels=2)
PLACES = slice(CONFIG.channels, CONFIG.channels + CONFIG.place_channels)  # of the result's channels


def _details() -> Details:
    torch.manual_seed(0)
    details = Details(CONFIG, feature_dim=5, scale=2)
    torch.nn.init.normal_(details.place_out)
    return details


def test_details_are_of_the_latents_size() -> None:
    """A grid cell becomes as many latent cells as the scale says, and videos do not see each other."""
    details, features = _details(), torch.randn(2, 3, 5, 2, 3)
    whole = details(features)
    assert whole.shape == (2, 3, CONFIG.total, 4, 6)
    torch.testing.assert_close(details(features[1:]), whole[1:])


def test_frames_see_the_one_before_them_alone() -> None:
    """All but the sketch: frames behind another are what they are among all; what has none before it stands still."""
    details, features = _details(), torch.randn(1, 4, 5, 2, 3)
    beside = slice(0, PLACES.stop)
    whole = details(features)[:, :, beside]
    torch.testing.assert_close(details(features, 2)[:, :, beside], whole[:, 2:])
    torch.testing.assert_close(details(features[:, :1].repeat(1, 2, 1, 1, 1), 1)[:, :, beside], whole[:, :1])
    features[:, 1] += 1
    changed = (details(features)[:, :, beside] != whole)[0].flatten(2).any(2)
    assert changed[:, : PLACES.start].all(1).tolist() == [False, True, True, False]
    assert changed.any(1).tolist() == [False, True, True, False]


def test_sines_are_taken_along_the_way() -> None:
    """With two pictures a frame those half-way count as much: the same when half-way and end are exchanged."""
    details = Details(
        replace(CONFIG, waves=replace(CONFIG.waves, pictures=2), place_channels=0), feature_dim=5, scale=1
    )
    details.fine.shapes.maps.weight.data[:, :5] = 0
    first, second = details.fine.shapes.maps.weight.data[:, 5:].chunk(2, dim=1)
    second.copy_(first)
    start, step = torch.randn(1, 1, 5, 2, 3), torch.randn(5, 2, 3)
    moving, other, still = (
        details(torch.cat([before, now], dim=1), 1)[:, :, : CONFIG.channels]
        for now, before in ((start, start - step), (start - step / 2, start + step / 2), (start, start))
    )
    torch.testing.assert_close(moving, other)
    assert not torch.allclose(moving, still, atol=1e-3)


def test_every_cell_has_a_place_network_of_its_own() -> None:
    """The same features in all cells give another place in each, and one cell's features change its place alone."""
    details, features = _details(), torch.randn(1, 1, 5, 1, 1).expand(1, 1, 5, 2, 3).clone()
    before = details(features)[0, :, PLACES]
    cells = before.unflatten(3, (3, 2)).unflatten(2, (2, 2)).transpose(3, 4).flatten(4).flatten(2, 3)[0]  # [c, 6, 4]
    assert torch.pdist(cells.transpose(0, 1).flatten(1)).min() > 0.01
    features[..., 1, 2] += 1
    changed = (details(features)[0, :, PLACES] != before).any(1)[0]
    assert changed[2:, 4:].all() and changed.sum() == 4


def test_waves_tell_small_ways_apart() -> None:
    """From the teacher's start, 4 px move the waves far more than they move the map of ways."""
    torch.manual_seed(0)
    weights = teacher.wave_weights(128)
    assert weights.shape == (128, teacher.FEATURE_DIM)
    way = torch.zeros(teacher.FEATURE_DIM)
    way[teacher.channel("offset")] = torch.tensor([4 / teacher.OFFSET_PX, 0.0])
    moved = (weights @ way).sin().square().mean().sqrt()
    assert moved > 4 * way.norm()

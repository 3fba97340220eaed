"""What the head reads of the features itself."""

from __future__ import annotations

import torch

from engine.perceptual.details import Details, DetailsConfig
from engine.training import teacher

CONFIG = DetailsConfig(grid=(2, 3), waves=8, width=8, channels=4, place_width=4, place_channels=2)


def _details() -> Details:
    torch.manual_seed(0)
    details = Details(CONFIG, feature_dim=5, scale=2)
    torch.nn.init.normal_(details.place_out)
    return details


def test_details_are_of_the_latents_size_and_per_frame() -> None:
    """Frames do not see each other, and a grid cell becomes as many latent cells as the scale says."""
    details, features = _details(), torch.randn(3, 5, 2, 3)
    whole = details(features)
    assert whole.shape == (3, CONFIG.total, 4, 6)
    torch.testing.assert_close(details(features[1:2]), whole[1:2])


def test_every_cell_has_a_place_network_of_its_own() -> None:
    """The same features in all cells give another place in each, and one cell's features change its place alone."""
    details, features = _details(), torch.randn(1, 5, 1, 1).expand(1, 5, 2, 3).clone()
    before = details(features)[:, CONFIG.channels :]
    cells = before.unflatten(3, (3, 2)).unflatten(2, (2, 2)).transpose(3, 4).flatten(4).flatten(2, 3)[0]  # [c, 6, 4]
    assert torch.pdist(cells.transpose(0, 1).flatten(1)).min() > 0.01
    features[0, :, 1, 2] += 1
    changed = (details(features)[:, CONFIG.channels :] != before).any(1)[0]
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

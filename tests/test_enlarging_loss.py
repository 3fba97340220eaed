"""What large pictures are trained against: soft edges, and dots that recur."""

import torch
from torch import Tensor

from engine.training.stages.enlarger import enlarging_loss, pattern, steepness

SIDE = 48  # pixels
FRAMES = 16  # two latents


def edge(width_px: int) -> Tensor:
    """A video with an upright edge in the middle that is so wide: [1, FRAMES, 3, SIDE, SIDE] in -1..1."""
    row = ((torch.arange(SIDE) - SIDE / 2 + 0.5) / (width_px / 2)).clamp(-1, 1)
    return row.expand(1, FRAMES, 3, SIDE, SIDE)


def dots(every_px: int) -> Tensor:
    """The same size, with a dot of a pixel every few."""
    video = torch.zeros(1, FRAMES, 3, SIDE, SIDE)
    video[..., ::every_px, ::every_px] = 1.0
    return video


def test_a_sharp_edge_is_steeper_than_a_soft_one() -> None:
    """By means of 2 x 2 pixels and by means along it, though both rise as much."""
    sharp, soft = steepness(edge(1)).mean((0, 1, 3, 4)), steepness(edge(8)).mean((0, 1, 3, 4))
    assert sharp.shape == (6,) and (sharp > 1.5 * soft).all()
    turned = steepness(edge(1).transpose(-1, -2)).transpose(-1, -2)
    torch.testing.assert_close(turned, steepness(edge(1)))


def test_a_pattern_is_what_recurs_from_cell_to_cell() -> None:
    """Dots of the grid's period are found whole, an error that is the same everywhere not at all."""
    assert not pattern(torch.full((1, FRAMES, 3, SIDE, SIDE), 0.3)).abs().max() > 1e-6
    found = pattern(dots(4))
    assert found.shape[2] == 3 * 16
    torch.testing.assert_close(found.amax(), torch.tensor(1 - 1 / 16))
    torch.manual_seed(0)
    noise = torch.randn(1, FRAMES, 3, SIDE, SIDE)
    assert pattern(noise).std() < 0.3 * noise.std()


def test_dots_of_the_grid_cost_more_than_as_many_elsewhere() -> None:
    """A true video costs nothing; of two that are off by as much, the one whose error recurs costs more."""
    torch.manual_seed(0)
    true = edge(8)
    recurring = 0.2 * dots(4)
    scattered = recurring.flatten(3)[..., torch.randperm(SIDE * SIDE)].unflatten(3, (SIDE, SIDE))
    assert enlarging_loss(true, true) < 1e-6
    assert enlarging_loss(true + recurring, true) > 1.1 * enlarging_loss(true + scattered, true) > 0

"""The optimiser for hidden matrices and convolutions."""

import torch
from torch import nn

from engine.training.muon import Muon


def test_an_update_has_even_singular_values() -> None:
    """Whatever the gradient's, those of the update lie around one."""
    torch.manual_seed(0)
    for shape in ((24, 40), (40, 24), (16, 4, 2, 2)):
        weight = nn.Parameter(torch.zeros(shape))
        weight.grad = torch.randn(shape) * torch.logspace(0, -1.5, shape[-1])
        Muon([weight], lr=1.0).step()
        values = torch.linalg.svdvals(weight.detach().flatten(1)) / max(1.0, shape[0] / weight[0].numel()) ** 0.5
        assert values.max() < 1.4
        assert values.median() > 0.5


def test_it_fits_a_convolution() -> None:
    """A 3x3 convolution learns another one."""
    torch.manual_seed(0)
    target, layer = nn.Conv2d(8, 8, 3, bias=False), nn.Conv2d(8, 8, 3, bias=False)
    optimiser = Muon([layer.weight], lr=0.02)
    losses = []
    for _ in range(60):
        x = torch.randn(4, 8, 8, 8)
        loss = (layer(x) - target(x).detach()).square().mean()
        layer.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_parameters_without_gradient_stay() -> None:
    """Nothing moves that was not used."""
    weight = nn.Parameter(torch.ones(3, 3))
    Muon([weight], lr=1.0).step()
    assert torch.equal(weight, torch.ones(3, 3))

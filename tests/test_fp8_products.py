"""Products in 8 bits, emulated: their error, layer by layer, and what is replaced."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engine.runtime import fp8_products
from engine.runtime.fp8_products import Fp8Product, layer_errors, layer_names, multiply_in_fp8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.modulation, self.small = nn.Linear(32, 32), nn.Linear(32, 7)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down(self.up(self.modulation(x)).relu())
        return down


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.blocks = nn.Linear(16, 32), nn.ModuleList(Block() for _ in range(2))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(x)
        return x


LAYERS = ["blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down"]


def test_only_large_layers_of_blocks_are_replaced() -> None:
    """Entrance, modulation and sizes that the product cannot take stay as they are."""
    network = Network()
    assert layer_names(network) == LAYERS == multiply_in_fp8(network)
    assert [name for name, part in network.named_modules() if isinstance(part, Fp8Product)] == LAYERS


def test_errors_are_those_of_8_bits() -> None:
    """Each layer's error is told, is that of three bits of mantissa, and leaves the network as it was."""
    network, x = Network(), torch.randn(5, 3, 16)
    before = network(x)
    errors = layer_errors(network, lambda: network(x))
    assert list(errors) == LAYERS and all(0.005 < error < 0.06 for error in errors.values())
    assert torch.equal(network(x), before)


def test_the_network_stays_near() -> None:
    """With its layers replaced the network answers nearly the same, in the same shape and type."""
    network, x = Network(), torch.randn(5, 3, 16)
    before = network(x)
    multiply_in_fp8(network)
    after = network(x)
    assert after.shape == before.shape and after.dtype == before.dtype
    assert 0 < float((after - before).square().mean().sqrt() / before.square().mean().sqrt()) < 0.05
    with torch.autocast("cpu", torch.bfloat16):
        assert network.blocks[0].up(torch.randn(2, 32)).dtype == torch.bfloat16  # type: ignore[union-attr,operator]


def test_rows_have_scales_of_their_own() -> None:
    """A row a million times larger than its neighbour takes nothing from it, and a row of zeros gives the bias."""
    layer = nn.Linear(32, 16).requires_grad_(False)
    product = Fp8Product(layer.weight, layer.bias)
    x = torch.randn(3, 32) * torch.tensor([[1e-3], [1e3], [0.0]])
    error = (product(x) - layer(x)).norm(dim=1) / (layer(x) - layer.bias).norm(dim=1).clamp(min=1e-20)
    assert bool((error[:2] < 0.06).all()) and torch.equal(product(x)[2], layer.bias)


def test_a_cpu_has_no_such_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are off by default, an order that cannot be followed says why, and so does an unknown word."""
    cpu = torch.device("cpu")
    monkeypatch.delenv(fp8_products.SWITCH, raising=False)
    assert not fp8_products.wanted(cpu)
    monkeypatch.setenv(fp8_products.SWITCH, "on")
    with pytest.raises(ValueError, match="needs a GPU that multiplies in 8 bits"):
        fp8_products.wanted(cpu)
    monkeypatch.setenv(fp8_products.SWITCH, "1")
    with pytest.raises(ValueError, match="'1' is neither"):
        fp8_products.wanted(cpu)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="needs 8-bit products"
)
def test_the_product_equals_its_emulation() -> None:
    """On a GPU that has it, the product in 8 bits is the emulated one, up to the rounding of its output."""
    layer = nn.Linear(64, 48).requires_grad_(False)
    product, x = Fp8Product(layer.weight, layer.bias), torch.randn(20, 64)
    expected = product(x)
    torch.testing.assert_close(product.cuda()(x.cuda()).cpu(), expected, rtol=2e-2, atol=2e-2)

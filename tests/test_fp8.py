"""Linear layers in 8 bits, stored and multiplied."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engine.runtime.fp8 import (
    FP8,
    SWITCH,
    Fp8Linear,
    fp8_names,
    multiplies_fp8,
    multiply_fp8,
    place_fp8,
    store_fp8,
)  # fmt: skip

CPU = torch.device("cpu")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.modulation, self.small = nn.Linear(64, 64), nn.Linear(64, 7)
        self.up, self.down = nn.Linear(64, 128), nn.Linear(128, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down(self.up(self.modulation(x)).relu())
        return down


class Network(nn.Module):
    """Blocks, and layers outside of them."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(8, 64)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm = nn.LayerNorm(64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(x)
        normed: Tensor = self.norm(x)
        return normed


def network() -> Network:
    torch.manual_seed(0)
    return Network().eval().requires_grad_(False)


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


LAYERS = [f"blocks.{number}.{name}.weight" for number in range(2) for name in ("modulation", "small", "up", "down")]
MULTIPLIED = [name for name in LAYERS if "modulation" not in name and "small" not in name]


@torch.inference_mode()
@pytest.mark.parametrize("make", [store_fp8, multiply_fp8])
def test_weights_and_results_stay_close(make: object) -> None:
    """Weights in 8 bits are within 4 % of the true ones in root mean square, and a network's results within 5 %."""
    plain, small, x = network(), network(), torch.randn(5, 10, 8)
    make(small)  # type: ignore[operator]
    assert 0.01 < relative(small.blocks[1].up.weight, plain.blocks[1].up.weight) < 0.04
    before, after = plain(x), small(x)
    assert after.shape == before.shape and after.dtype == before.dtype
    assert 1e-4 < relative(after, before) < 0.05


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_each_output_has_its_own_scale(size: float) -> None:
    """Rows of very different size are equally exact; a row of zeros stays zero."""
    torch.manual_seed(0)
    weight = torch.randn(3, 1000) * torch.tensor([[size], [1.0], [0.0]])
    layer = Fp8Linear(weight, None)
    assert all(relative(layer.weight[row], weight[row]) < 0.04 for row in (0, 1))
    assert not layer.weight[2].any() and bool(layer.weight.isfinite().all())


def test_each_input_row_has_its_own_scale() -> None:
    """A row a million times larger than its neighbour takes nothing from it, and a row of zeros gives the bias."""
    layer = nn.Linear(32, 16).requires_grad_(False)
    small = Fp8Linear(layer.weight, layer.bias)
    small.multiplies = True
    x = torch.randn(3, 32) * torch.tensor([[1e-3], [1e3], [0.0]])
    assert all(relative(small(x)[row] - layer.bias, layer(x)[row] - layer.bias) < 0.06 for row in (0, 1))
    assert torch.equal(small(x)[2], layer.bias)


def test_it_takes_a_quarter_of_float32() -> None:
    """Blocks are stored in 8 bits, everything else as it was; biases are kept."""
    stored = network()
    before = {name: value.nbytes for name, value in stored.state_dict().items()}
    store_fp8(stored)
    after = stored.state_dict()
    assert after["blocks.1.up.stored"].dtype == FP8
    assert 4 * after["blocks.1.up.stored"].nbytes == before["blocks.1.up.weight"]
    assert torch.equal(after["enter.weight"], network().enter.weight)
    assert torch.equal(after["blocks.1.up.bias"], network().blocks[1].up.bias) and stored.blocks[0].down.bias is None


@torch.inference_mode()
@pytest.mark.parametrize("make", [store_fp8, multiply_fp8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_in_the_type_of_its_input(dtype: torch.dtype, make: object) -> None:
    """Results have the input's type, or autocast's."""
    small, x = network(), torch.randn(2, 64, dtype=dtype)
    make(small)  # type: ignore[operator]
    layer = small.blocks[1].up
    assert layer(x).dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.weight.dtype == torch.bfloat16 and layer.weight.shape == (128, 64)


def test_only_layers_of_blocks_are_replaced() -> None:
    """All linear layers of numbered blocks are stored so; modulations and odd sizes do not multiply so."""
    assert fp8_names(network()) == LAYERS
    with pytest.raises(TypeError, match="norm is a LayerNorm"):
        place_fp8(network(), "norm.weight", torch.ones(64))
    plain, stored = network(), network()
    store_fp8(stored)
    assert multiply_fp8(plain) == multiply_fp8(stored) == MULTIPLIED
    x = torch.randn(3, 8)
    assert torch.equal(stored.blocks[0].up(stored.enter(x)), plain.blocks[0].up(plain.enter(x)))
    assert isinstance(plain.blocks[0].modulation, nn.Linear) and not stored.blocks[0].modulation.multiplies


def test_a_layer_without_memory_is_filled() -> None:
    """On the meta device the weight is placed, and the bias waits for its own."""
    with torch.device("meta"):
        made = Network()
    layer = place_fp8(made, "blocks.1.up.weight", torch.ones(128, 64))
    assert made.blocks[1].up is layer and bool((layer.weight == 1).all())
    assert layer.bias is not None and layer.bias.is_meta


def test_a_cpu_has_no_such_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are off by default; on a device without them, or at an unknown word, the error says so."""
    monkeypatch.delenv(SWITCH, raising=False)
    assert not multiplies_fp8(CPU)
    for word, said in (("on", "needs a GPU that multiplies in 8 bits"), ("1", "'1' is neither")):
        monkeypatch.setenv(SWITCH, word)
        with pytest.raises(ValueError, match=said):
            multiplies_fp8(CPU)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="needs 8-bit products"
)
def test_the_product_equals_its_emulation() -> None:
    """On a GPU that has it, the product in 8 bits is the emulated one, up to the rounding of its output."""
    plain, x = nn.Linear(64, 48).requires_grad_(False), torch.randn(20, 64)
    layer = Fp8Linear(plain.weight, plain.bias)
    layer.multiplies = True
    expected = layer(x)
    torch.testing.assert_close(layer.cuda()(x.cuda()).cpu(), expected, rtol=2e-2, atol=2e-2)

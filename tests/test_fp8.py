"""Linear layers stored in 8 bits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.runtime.fp8 import FP8, Fp8Linear, fp8_names, place_fp8, store_fp8


class Network(nn.Module):
    """Blocks, and layers outside of them."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(8, 64)
        self.blocks = nn.ModuleList(nn.Linear(64, 64, bias=number > 0) for number in range(3))
        self.norm = nn.LayerNorm(64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(F.gelu(x))
        normed: Tensor = self.norm(x)
        return normed


def network() -> Network:
    torch.manual_seed(0)
    return Network().eval().requires_grad_(False)


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@torch.inference_mode()
def test_weights_and_results_stay_close() -> None:
    """Stored weights are within 4 % of the true ones in root mean square, and so are a network's results."""
    plain, stored = network(), network()
    error = store_fp8(stored)
    assert 0.01 < error < 0.04
    x = torch.randn(50, 8)
    assert 1e-4 < relative(stored(x), plain(x)) < 0.04


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_each_output_has_its_own_scale(size: float) -> None:
    """Rows of very different size are equally exact; a row of zeros stays zero."""
    torch.manual_seed(0)
    weight = torch.randn(3, 1000) * torch.tensor([[size], [1.0], [0.0]])
    layer = Fp8Linear(weight, None)
    assert all(relative(layer.weight[row], weight[row]) < 0.04 for row in (0, 1))
    assert not layer.weight[2].any() and bool(layer.weight.isfinite().all())


def test_it_takes_a_quarter_of_float32() -> None:
    """Blocks are stored in 8 bits, everything else as it was; biases are kept."""
    stored = network()
    before = {name: value.nbytes for name, value in stored.state_dict().items()}
    store_fp8(stored)
    after = stored.state_dict()
    assert after["blocks.1.stored"].dtype == FP8 and 4 * after["blocks.1.stored"].nbytes == before["blocks.1.weight"]
    assert torch.equal(after["enter.weight"], network().enter.weight)
    assert torch.equal(after["blocks.1.bias"], network().blocks[1].bias) and stored.blocks[0].bias is None


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_in_the_type_of_its_input(dtype: torch.dtype) -> None:
    """Results have the input's type, or autocast's."""
    stored = network()
    store_fp8(stored)
    x = torch.randn(2, 64, dtype=dtype)
    assert stored.blocks[1](x).dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert stored.blocks[1](x).dtype == torch.bfloat16
    assert stored.blocks[1].weight.dtype == torch.bfloat16 and stored.blocks[1].weight.shape == (64, 64)


def test_only_layers_of_blocks_are_named() -> None:
    """The layers inside of numbered blocks, and no others, may be stored so; another kind of module raises."""
    assert fp8_names(network()) == [f"blocks.{number}.weight" for number in range(3)]
    with pytest.raises(TypeError, match="norm is a LayerNorm"):
        place_fp8(network(), "norm.weight", torch.ones(64))


def test_a_layer_without_memory_is_filled() -> None:
    """On the meta device the weight is placed, and the bias waits for its own."""
    with torch.device("meta"):
        made = Network()
    place_fp8(made, "blocks.2.weight", torch.ones(64, 64))
    layer = made.blocks[2]
    assert isinstance(layer, Fp8Linear) and bool((layer.weight == 1).all())
    assert layer.bias is not None and layer.bias.is_meta

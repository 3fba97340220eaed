import pytest
import torch
from torch import nn

from engine.runtime import packing
from engine.runtime.turned_linear import MOST_ROWS, TurnedLinear, float_product


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(96, 160, bias=False)


@pytest.mark.parametrize("shape", [(1, 96), (2, 24, 96), (48, 96), (2, MOST_ROWS, 96)])
@torch.inference_mode()
def test_turned_layer_gives_what_the_layer_gives(layer: nn.Linear, shape: tuple[int, ...]) -> None:
    """For any number of rows; few are computed in the other way."""
    x = torch.randn(shape)
    turned = TurnedLinear.of(layer)
    assert turned.serves(x) == (x.numel() // 96 <= MOST_ROWS)
    assert turned(x).shape == (*shape[:-1], 160)
    torch.testing.assert_close(turned(x), layer(x), rtol=1e-6, atol=1e-6)
    assert turned.weight is layer.weight


def test_turned_layer_learns(layer: nn.Linear) -> None:
    """With gradients, and under autocast, it is the layer that it was made of."""
    turned, x = TurnedLinear.of(layer), torch.randn(4, 96)
    turned(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(160, -1))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(turned(x), layer(x))


@torch.inference_mode()
def test_product_is_in_float32(layer: nn.Linear) -> None:
    """Whatever the weight is."""
    x = torch.randn(3, 96)
    half = nn.Linear(96, 160, bias=False, dtype=torch.bfloat16)
    assert torch.equal(float_product(half, x), x @ half.weight.float().t())
    torch.testing.assert_close(float_product(TurnedLinear.of(layer), x), layer(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("avx2", [False, True])
def test_layers_are_turned_where_that_is_quicker(monkeypatch: pytest.MonkeyPatch, avx2: bool) -> None:
    """Those without bias, in float32, that are called with few rows."""
    monkeypatch.setattr(packing, "has_avx2_alone", lambda: avx2)
    module = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8), nn.Linear(8, 8, bias=False).half())
    packing.pack(module, 48)
    assert [isinstance(part, TurnedLinear) for part in module] == [avx2, False, False]
    assert not isinstance(packing.turned(nn.Linear(8, 8, bias=False), 400), TurnedLinear)

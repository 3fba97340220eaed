"""Convolutions with fewer products give what direct ones give, as far as float32 goes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.runtime import packing
from engine.runtime.cpu_trace import CpuTrace
from engine.runtime.packing import pack
from engine.runtime.winograd import WinogradConv


def convolution(channels: int, outputs: int, bias: bool = True, **rest: object) -> nn.Conv2d:
    layer = nn.Conv2d(channels, outputs, 3, bias=bias, **({"padding": 1} | rest))  # type: ignore[arg-type]
    return layer.requires_grad_(False)


def error(found: torch.Tensor, layer: nn.Conv2d, x: torch.Tensor) -> float:
    """Relative, of the root mean squares."""
    weight, bias = layer.weight.double(), None if layer.bias is None else layer.bias.double()
    exact = F.conv2d(x.double(), weight, bias, padding=1)
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(7, 72, 16, 24), (1, 128, 4, 8), (2, 192, 32, 48)])
def test_answers_are_those_of_the_direct_convolution(
    shape: tuple[int, ...], order: torch.memory_format, bias: bool
) -> None:
    """At the borders too, for pictures of either order in memory; each as it would be alone."""
    layer, x = convolution(shape[1], 96, bias), torch.randn(shape).to(memory_format=order)
    made = WinogradConv.of(layer)
    with torch.inference_mode():
        found = made(x)
        assert error(found, layer, x) < 1e-5
        assert not torch.equal(found, layer(x))  # it was another way
        torch.testing.assert_close(torch.cat([made(one) for one in x.split(1)]), found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(6, 8), (8, 5), (1, 1), (7, 13)])
def test_pictures_need_not_be_whole_tiles(size: tuple[int, int]) -> None:
    """The part of a tile that lies beyond the picture is cut off."""
    layer, x = convolution(72, 72), torch.randn(2, 72, *size)
    with torch.inference_mode():
        assert error(WinogradConv.of(layer)(x), layer, x) < 1e-5


def test_it_computes_in_float32_and_learns_nothing() -> None:
    """Under autocast too; gradients pass through it to what it reads."""
    layer, x = convolution(72, 72), torch.randn(1, 72, 8, 8)
    made = WinogradConv.of(layer)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert made(x).dtype == torch.float32 and error(made(x), layer, x) < 1e-5
    assert not list(made.parameters())
    seen = x.clone().requires_grad_()
    made(seen).square().sum().backward()
    wanted = x.clone().requires_grad_()
    layer(wanted).square().sum().backward()
    assert seen.grad is not None and wanted.grad is not None
    torch.testing.assert_close(seen.grad, wanted.grad, rtol=1e-3, atol=1e-4)


def test_a_trace_of_it_gives_the_same_bits() -> None:
    """Recorded once, played with other pictures."""
    made = WinogradConv.of(convolution(72, 96))
    with torch.inference_mode():
        trace = CpuTrace(made, torch.randn(2, 72, 16, 24))
        for _ in range(2):
            x = torch.randn(2, 72, 16, 24)
            assert torch.equal(trace.play([x]), made(x))


@pytest.mark.parametrize("less", [True, False])
def test_layers_that_gain_are_replaced(monkeypatch: pytest.MonkeyPatch, less: bool) -> None:
    """Those in float32 with enough channels, where the processor gains; a copy of the module works."""
    monkeypatch.setattr(packing, "has_avx2_alone", lambda: less)
    layers = [
        convolution(72, 96), convolution(96, 96).bfloat16(), convolution(96, 48), convolution(186, 96),
        convolution(96, 96, stride=2), convolution(96, 96, groups=2), nn.Conv2d(96, 96, 1),
    ]  # fmt: skip
    module = nn.Sequential(*layers)
    pack(module, 1)
    assert [isinstance(layer, WinogradConv) for layer in module] == [less, *[False] * 6]
    x = torch.randn(1, 72, 8, 8)
    with torch.no_grad():
        assert error(copy.deepcopy(module)[0](x), layers[0], x) < 1e-5


def test_what_is_seldom_used_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """At any depth below a name that begins so."""
    monkeypatch.setattr(packing, "has_avx2_alone", lambda: True)
    module = nn.ModuleDict({name: nn.Sequential(convolution(72, 72)) for name in ("encode_8", "decode_8")})
    module["encode_in"] = convolution(72, 72)
    pack(module, 1, seldom="encode")
    assert [name for name, part in module.named_modules() if isinstance(part, WinogradConv)] == ["decode_8.0"]

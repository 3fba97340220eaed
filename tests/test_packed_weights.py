"""Packed weights give what plain ones give, bit for bit."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.runtime import packing
from engine.runtime.packed_weights import PackedConv, PackedLinear, gated_gelu_of, gelu_of, silu_of, sum_of
from engine.runtime.packing import pack, packs
from kernels.gelu import gated_gelu

pytestmark = pytest.mark.skipif(not packs(), reason="torch offers no packed product here, so nothing is packed")


def layer(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias, dtype=torch.bfloat16).requires_grad_(False)


def convolution(channels: int, outputs: int, kernel: int, **rest: object) -> nn.Conv2d:
    made = nn.Conv2d(channels, outputs, kernel, dtype=torch.bfloat16, **rest)  # type: ignore[arg-type]
    return made.requires_grad_(False)


@pytest.mark.parametrize(
    ("inputs", "outputs", "bias"), [(256, 768, False), (704, 256, False), (192, 576, True), (7, 5, True)]
)
@pytest.mark.parametrize("shape", [(1,), (2, 1), (1, 144), (2, 63), (400,)])
def test_products_are_equal_whatever_the_number_of_rows(
    inputs: int, outputs: int, bias: bool, shape: tuple[int, ...]
) -> None:
    """In bf16, and from float32 under autocast; packed for two rows or many."""
    plain = layer(inputs, outputs, bias)
    x = torch.randn(*shape, inputs)
    for rows in (2, 144):
        packed = PackedLinear.of(plain, rows)
        with torch.inference_mode():
            assert torch.equal(packed(x.bfloat16()), plain(x.bfloat16()))
            with torch.autocast("cpu", torch.bfloat16):
                assert packed(x).dtype == torch.bfloat16
                assert torch.equal(packed(x), plain(x))


def test_a_weight_that_changed_is_not_taken_from_its_copy() -> None:
    """Changed in place or put in anew, the next call knows."""
    packed = PackedLinear.of(layer(32, 48), 2)
    x = torch.randn(2, 32).bfloat16()
    with torch.no_grad():
        before = packed(x)
        packed.load_state_dict(layer(32, 48).state_dict())
        assert not torch.equal(packed(x), before)
        assert torch.equal(packed(x), F.linear(x, packed.weight, packed.bias))
        packed.weight.data = torch.zeros_like(packed.weight)
        assert torch.equal(packed(x), packed.bias.expand(2, -1))


def test_gradients_go_through_the_plain_product() -> None:
    """A packed layer can still be part of something that learns."""
    packed = PackedLinear.of(layer(32, 48), 2)
    x = torch.randn(2, 32).bfloat16().requires_grad_()
    packed(x).sum().backward()
    plain = x.detach().clone().requires_grad_()
    F.linear(plain, packed.weight, packed.bias).sum().backward()
    assert x.grad is not None and plain.grad is not None
    assert torch.equal(x.grad, plain.grad)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (1, 1, 0), (2, 2, 0)])
@pytest.mark.parametrize("shape", [(6, 145, 16, 24), (1, 24, 5, 7)])
def test_convolutions_are_equal_whatever_the_pictures(
    kernel: int, stride: int, padding: int, shape: tuple[int, ...]
) -> None:
    """In either order of memory, and from float32 under autocast; each picture as it would be alone.

    The plain product of the other order of memory is another kernel on some processors, and rounds differently.
    """
    plain = convolution(shape[1], 48, kernel, stride=stride, padding=padding)
    packed, x = PackedConv.of(plain), torch.randn(shape)
    with torch.inference_mode():
        expected = plain(x.bfloat16().to(memory_format=torch.channels_last))
        assert torch.equal(packed(x.bfloat16()), expected)
        assert torch.equal(packed(x.bfloat16().to(memory_format=torch.channels_last)), expected)
        assert torch.equal(torch.cat([packed(one) for one in x.bfloat16().split(1)]), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(packed(x), expected)


def test_activations_follow_unrounded_products() -> None:
    """Packed, an activation sees the float32 product: as near to the exact answer as bf16 allows."""
    linear, conv = layer(64, 96), convolution(32, 48, 3, padding=1, bias=False)
    x, pictures, shift = torch.randn(10, 64), torch.randn(6, 32, 8, 8), torch.randn(1, 48)
    x, pictures, shift = x.bfloat16(), pictures.bfloat16(), shift.bfloat16()
    exact = F.gelu(linear.float()(x.float()), approximate="tanh")
    exact_pictures = F.silu(conv.float()(pictures.float()) + shift.float()[:, :, None, None])
    own = convolution(32, 48, 3, padding=1)
    exact_own = F.silu(own.float()(pictures.float()))
    linear, conv, own = linear.bfloat16(), conv.bfloat16(), own.bfloat16()
    for one, other, last in (
        (linear, conv, own),
        (PackedLinear.of(linear, 10), PackedConv.of(conv), PackedConv.of(own)),
    ):
        with torch.inference_mode():
            torch.testing.assert_close(gelu_of(one, x).float(), exact, rtol=0.02, atol=0.02)
            torch.testing.assert_close(silu_of(other, pictures, shift).float(), exact_pictures, rtol=0.02, atol=0.02)
            torch.testing.assert_close(silu_of(last, pictures).float(), exact_own, rtol=0.02, atol=0.02)


def test_a_gate_is_computed_with_the_products() -> None:
    """Within the roundings of bf16, packed or not, and also after one of the layers has learned."""
    plain = [layer(256, 704, bias=False) for _ in range(2)]
    gate, up = (PackedLinear.of(one, 2) for one in plain)
    x = torch.randn(2, 3, 256).bfloat16()
    for left, right in ((gate, up), (gate, plain[1]), (plain[0], up), (plain[0], plain[1])):
        with torch.inference_mode():
            made = gated_gelu_of(left, right, x)
        exact = [F.linear(x.float(), one.weight.float()) for one in (left, right)]
        torch.testing.assert_close(made.float(), gated_gelu(*exact), rtol=0.02, atol=0.02)
    with torch.no_grad():
        before = gated_gelu_of(gate, up, x)
        up.weight.mul_(2)
        torch.testing.assert_close(gated_gelu_of(gate, up, x), 2 * before, rtol=0.02, atol=0.02)


def test_groups_of_pictures_have_their_own_bias() -> None:
    """Two rows of shifts stand for the first and the second half of the pictures, packed or not."""
    conv = convolution(32, 48, 3, padding=1, bias=False)
    pictures, shift = torch.randn(6, 32, 8, 8).bfloat16(), torch.randn(2, 48).bfloat16()
    for one in (conv, PackedConv.of(conv)):
        with torch.inference_mode():
            both = silu_of(one, pictures, shift)
            halves = [silu_of(one, part, row[None]) for part, row in zip(pictures.split(3), shift, strict=True)]
            torch.testing.assert_close(both, torch.cat(halves), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_sums_follow_unrounded_products(order: torch.memory_format) -> None:
    """A convolution's answer is added before it is rounded, to pictures of either order, which stay as they are."""
    conv, pictures = convolution(32, 48, 3, padding=1), torch.randn(6, 32, 8, 8).bfloat16()
    other = torch.randn(6, 48, 8, 8).bfloat16().to(memory_format=order)
    before, exact = other.clone(), other.float() + conv.float()(pictures.float())
    conv = conv.bfloat16()
    for one in (conv, PackedConv.of(conv)):
        with torch.inference_mode():
            torch.testing.assert_close(sum_of(other, one, pictures).float(), exact, rtol=0.02, atol=0.02)
        assert torch.equal(other, before)


def test_only_layers_in_bf16_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and other kinds stay, a copy of the module works, and what is too large is left alone."""
    module = nn.Sequential(layer(32, 32), nn.Linear(32, 32), nn.LayerNorm(32), nn.ModuleList([layer(32, 8)]))
    module.append(convolution(4, 8, 3))
    names, plain = list(module.state_dict()), copy.deepcopy(module)
    with monkeypatch.context() as patch:
        patch.setattr(packing, "LARGEST_BYTES", 2 * (32 * 32 + 32 * 8 + 4 * 8 * 9) - 1)
        pack(module, 2)
        assert not any(isinstance(part, (PackedLinear, PackedConv)) for part in module.modules())
    pack(module, 2)
    packed = [name for name, part in module.named_modules() if isinstance(part, (PackedLinear, PackedConv))]
    assert packed == ["0", "3.0", "4"]
    assert list(module.state_dict()) == names
    x = torch.randn(2, 32).bfloat16()
    with torch.no_grad():
        for version in (module, copy.deepcopy(module)):
            assert torch.equal(version[0](x), plain[0](x))

"""Copies of weights in the order in which the processor multiplies (oneDNN's packed formats).

oneDNN brings a bf16 weight into its own order at every call, which for the few rows of a planned token costs more than
the product itself. Packed once, the products are the same bit for bit (a convolution's are those of pictures whose
channels come last). An activation that follows one is computed with it, before the product is rounded. Only calls
without gradients use the packed copy (`engine.runtime.packing` chooses them).
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.gelu import gated_gelu

_PICTURE = (6, 16, 24)  # pictures of so many rows and columns, for which convolutions are packed


class PackedCopy:
    """A copy of a weight in another form, valid as long as the weight is what it was."""

    def __init__(self, weight: Tensor, packed: Tensor) -> None:
        self.packed = packed
        self._made_of = self._state(weight)

    def serves(self, x: Tensor, weight: Tensor) -> bool:
        """True if a call may use it: nothing learns, the weight has not moved, and the product would be in bf16."""
        if torch.is_grad_enabled() or self._state(weight) != self._made_of:
            return False
        return x.dtype == weight.dtype or torch.is_autocast_enabled("cpu")

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        # Opaque tensors cannot be copied. It does not serve a copied weight, which is another one.
        return self

    @staticmethod
    def _state(weight: Tensor) -> tuple[int, int]:
        return weight.data_ptr(), weight._version


class PackedLinear(nn.Linear):
    """A linear layer with a packed copy beside its weight."""

    _copy: PackedCopy

    @classmethod
    def of(cls, layer: nn.Linear, rows: int) -> Self:
        """The layer, packed for about so many rows a call; any number gives the same results. Shares its parameters."""
        packed = cls(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        packed.weight, packed.bias = layer.weight, layer.bias
        packed._copy = PackedCopy(layer.weight, torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), rows))
        return packed.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, "none") if self.serves(x) else super().forward(x)

    def serves(self, x: Tensor) -> bool:
        """True if `product` may be called."""
        return self._copy.serves(x, self.weight)

    def product(self, x: Tensor, activation: str) -> Tensor:
        """The layer's answer from the packed copy, then 'gelu' by the tanh formula or 'none'."""
        formula = "tanh" if activation == "gelu" else ""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x.to(self.weight.dtype), self._copy.packed, self.bias, activation, [], formula
        )
        return out

    def product_times(self, x: Tensor, factor: Tensor) -> Tensor:
        """The layer's answer from the packed copy, times `factor`, before it is rounded."""
        args = x.to(self.weight.dtype), factor, self._copy.packed, self.bias, "mul"
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(*args)
        return out


class PackedConv(nn.Conv2d):
    """A convolution with a packed copy beside its weight."""

    _copy: PackedCopy

    @classmethod
    def of(cls, layer: nn.Conv2d) -> Self:
        """The layer, packed for pictures of `_PICTURE`; any size gives right results, the same in every run."""
        sizes = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        packed = cls(*sizes, layer.groups, layer.bias is not None, device="meta")  # type: ignore[arg-type]
        packed.weight, packed.bias = layer.weight, layer.bias
        geometry = (packed.padding, packed.stride, packed.dilation, packed.groups)
        weight = torch.ops.mkldnn._reorder_convolution_weight(
            layer.weight.detach(), *geometry, [_PICTURE[0], layer.in_channels, *_PICTURE[1:]]
        )
        packed._copy = PackedCopy(layer.weight, weight)
        return packed.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.bias, "none") if self.serves(x) else super().forward(x)

    def serves(self, x: Tensor) -> bool:
        """True if `product` may be called."""
        return self._copy.serves(x, self.weight)

    def product(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        """[N, C, H, W] with that bias from the packed copy, channels last, then 'swish' or 'none'."""
        pictures = x.to(self.weight.dtype, memory_format=torch.channels_last)
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            pictures, self._copy.packed, bias, *geometry, activation, [], ""
        )
        return out

    def product_on(self, x: Tensor, other: Tensor) -> Tensor:
        """[N, C, H, W] from the packed copy, channels last, added to `other` before it is rounded."""
        pictures, other = (part.to(self.weight.dtype, memory_format=torch.channels_last) for part in (x, other))
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        out: Tensor = torch.ops.mkldnn._convolution_pointwise.binary(
            pictures, other, self._copy.packed, self.bias, *geometry, "add", 1.0, None, [], ""
        )
        return out


def gelu_of(layer: nn.Linear, x: Tensor) -> Tensor:
    """GELU, by the tanh formula, of the layer's answer."""
    if isinstance(layer, PackedLinear) and layer.serves(x):
        return layer.product(x, "gelu")
    return F.gelu(layer(x), approximate="tanh")


def silu_of(layer: nn.Conv2d, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """SiLU of the layer's answer for [N, C, H, W]; of one without a bias of its own, plus `bias` [B, C]."""
    if isinstance(layer, PackedConv) and (bias is None or len(bias) == 1) and layer.serves(x):
        return layer.product(x, layer.bias if bias is None else bias[0].to(layer.weight.dtype), "swish")
    if bias is None:
        return F.silu(layer(x))
    return F.silu(layer(x) + bias.repeat_interleave(len(x) // len(bias), dim=0)[:, :, None, None])


def sum_of(other: Tensor, layer: nn.Conv2d, x: Tensor) -> Tensor:
    """`other` [N, C', H, W] plus the layer's answer for [N, C, H, W]."""
    if isinstance(layer, PackedConv) and layer.serves(x):
        return layer.product_on(x, other)
    # Lies in memory as its first part does: convolutions may put channels last, and like them there.
    added: Tensor = layer(x) + other
    return added


def gated_gelu_of(gate: nn.Linear, up: nn.Linear, x: Tensor) -> Tensor:
    """GELU, by the tanh formula, of one layer's answer, times another's."""
    if isinstance(gate, PackedLinear) and isinstance(up, PackedLinear) and gate.serves(x) and up.serves(x):
        return up.product_times(x, gate.product(x, "gelu"))
    return gated_gelu(gate(x), up(x))

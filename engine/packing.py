"""Weights in the order in which the processor multiplies, kept beside the usual one.

oneDNN brings a bf16 weight into its own order at every call, which for the few rows of a planned token costs more than
the product itself. Packed once, the results are the same bit for bit. Only calls without gradients use the packed copy.
"""

from __future__ import annotations

import functools
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST_BYTES = 2**27  # of a module's weights; more would not stay in any cache, and twice as much may not fit


class _Packed:
    """A second copy of a weight, good as long as the first is what it was."""

    def __init__(self, weight: Tensor, packed: Tensor) -> None:
        self.packed = packed
        self._made_of = self._state(weight)

    def serves(self, x: Tensor, weight: Tensor) -> bool:
        """Whether a call may use it: nothing learns, the weight has not moved, and the product would be in bf16."""
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
    """As the layer it is made of, whose parameters it has."""

    _copy: _Packed

    @classmethod
    def of(cls, layer: nn.Linear, rows: int) -> Self:
        """Packs for about so many rows a call; any number gives the same results."""
        packed = cls(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        packed.weight, packed.bias = layer.weight, layer.bias
        packed._copy = _Packed(layer.weight, torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), rows))
        return packed.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        if not self._copy.serves(x, self.weight):
            return super().forward(x)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x.to(self.weight.dtype), self._copy.packed, self.bias, "none", [], ""
        )
        return out


def pack(module: nn.Module, rows: int) -> None:
    """Puts packed layers in the place of all linear layers in bf16 of a module on the CPU.

    Does nothing for a module above `LARGEST_BYTES`, and where torch does not offer the packed product.
    """
    places = [
        (parent, name, layer)
        for parent in module.modules()
        for name, layer in parent.named_children()
        if type(layer) is nn.Linear and layer.weight.dtype == torch.bfloat16 and layer.weight.device.type == "cpu"
    ]
    if sum(layer.weight.nbytes for _, _, layer in places) > LARGEST_BYTES or not packs():
        return
    for parent, name, layer in places:
        setattr(parent, name, PackedLinear.of(layer, rows))


@functools.cache
def packs() -> bool:
    """Whether packing works here and gives what the plain product gives."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            layer = nn.Linear(32, 48, dtype=torch.bfloat16)
            x = torch.ones(2, 32, dtype=torch.bfloat16)
            return torch.equal(PackedLinear.of(layer, 2)(x), F.linear(x, layer.weight, layer.bias))
    except (AttributeError, RuntimeError):
        return False

"""Linear layers whose product is computed as its transpose: of the weight and the input's columns.

MKL shares a product among threads by the rows of its first factor. Of an input with few rows each thread would get
half, and read the whole weight; of the weight each gets half. Measured with AVX2, float32, two threads, 32 to 64 rows:
1.3 to 1.6 times faster, the same bits; with one thread, or some hundred rows, equal (docs/BENCHMARKS.md).
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_ROWS = 128  # of an input that are few


class TurnedLinear(nn.Linear):
    """A linear layer without bias that computes few rows in this way, where nothing learns."""

    @staticmethod
    def suits(layer: nn.Linear, rows: int) -> bool:
        """True for a layer that `of` may be called with, and that gains by it in calls of so many rows."""
        return layer.bias is None and layer.weight.dtype == torch.float32 and rows <= MOST_ROWS

    @classmethod
    def of(cls, layer: nn.Linear) -> Self:
        """The layer, which shares its weight."""
        made = cls(layer.in_features, layer.out_features, bias=False, device="meta")
        made.weight = layer.weight
        return made.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x) if self.serves(x) else super().forward(x)

    def serves(self, x: Tensor) -> bool:
        """True if `product` may be called."""
        few = x.numel() <= MOST_ROWS * self.in_features
        return few and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")

    def product(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], whose columns are what lies together in memory."""
        columns = x.reshape(-1, self.in_features).t()
        rows: Tensor = torch.mm(self.weight, columns).t()
        return torch.unflatten(rows, 0, x.shape[:-1])


def float_product(layer: nn.Linear, x: Tensor) -> Tensor:
    """The answer of a layer without bias for [..., in] float32, in float32 whatever its weight is."""
    if isinstance(layer, TurnedLinear) and layer.serves(x):
        return layer.product(x)
    return F.linear(x, layer.weight.float())

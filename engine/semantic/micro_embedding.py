"""What a planner is told in numbers, the frame count and the motion score (REFERENCE 2.3).

Shapes: `B` batch, `W` width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.runtime.layers import sinusoid


class MicroEmbedding(nn.Module):
    """A number as a vector."""

    def __init__(self, name: str, frequencies: int, inner: int, width: int, null: bool) -> None:
        """`inner`: of the layer between; `null`: whether the number may be left out."""
        super().__init__()
        self.name = name
        self.frequencies = frequencies
        self.enter = nn.Linear(frequencies, inner)
        self.leave = nn.Linear(inner, width)
        self.null = nn.Parameter(0.02 * torch.randn(width)) if null else None

    def forward(self, value: Tensor | float | None, batch: int) -> Tensor:
        """A number for all rows, or one a row [B], NaN or None where it is not given -> [B, 1, W].

        Raises ValueError for None where the model has no null vector.
        """
        if value is None and self.null is None:
            raise ValueError(f"{self.name} must be given: this planner was not trained without it")
        weight = self.enter.weight
        given = float("nan") if value is None else value
        numbers = torch.as_tensor(given, dtype=torch.float32, device=weight.device).expand(batch)
        if self.null is None:
            return self._embed(numbers)[:, None]
        missing = numbers.isnan()
        vectors = self._embed(numbers.masked_fill(missing, 0.0))
        return torch.where(missing[:, None], self.null.to(vectors.dtype), vectors)[:, None]

    def _embed(self, numbers: Tensor) -> Tensor:
        out: Tensor = self.leave(F.silu(self.enter(sinusoid(numbers, self.frequencies).to(self.enter.weight.dtype))))
        return out

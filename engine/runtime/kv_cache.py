"""Keys and values of a transformer's earlier positions, allocated once and written in place.

Shapes: `L` layers, `B` batch, `H` heads, `M` longest sequence, `N` new tokens, `D` head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class KeysValues:
    """Keys and values of some tokens in one layer."""

    keys: Tensor  # [B, H, tokens, D]
    values: Tensor


@dataclass(frozen=True, slots=True)
class KVCache:
    """State of one sequence a row; nothing in it grows. The caller counts positions."""

    keys: Tensor  # [L, B, H, M, D]
    values: Tensor

    @classmethod
    def allocate(
        cls,
        layers: int,
        batch: int,
        heads: int,
        length: int,
        head_dim: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> KVCache:
        """Zeroed cache for sequences of up to `length` positions."""
        shape = (layers, batch, heads, length, head_dim)
        if min(shape) < 1:
            raise ValueError(f"a cache needs positive sizes [layers, batch, heads, length, head_dim], not {shape}")
        # A cache made in inference mode could not be written outside of it.
        with torch.inference_mode(False):
            return cls(torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype))

    @property
    def length(self) -> int:
        return self.keys.shape[3]

    def write(self, layer: int, keys: Tensor, values: Tensor, position: int | Tensor) -> KeysValues:
        """Puts new keys and values at `position` and following, and returns a view of all there is to attend to.

        Args:
            layer: 0..L-1.
            keys, values: [B, H, N, D], cast to the cache's dtype.
            position: of the first new token. A number returns the positions up to the last new one; ValueError if
                they do not fit. An int64 tensor, [] or one for each row [B], stays on the device and returns all M
                positions, the later ones to be masked by the caller, who also sees to it that they fit.
        """
        if isinstance(position, Tensor):
            self._scatter(self.keys[layer], keys, position)
            self._scatter(self.values[layer], values, position)
            return KeysValues(self.keys[layer], self.values[layer])
        end = position + keys.shape[2]
        if position < 0 or end > self.length:
            raise ValueError(f"positions {position} to {end - 1} do not fit a cache of length {self.length}")
        self.keys[layer, :, :, position:end] = keys
        self.values[layer, :, :, position:end] = values
        return KeysValues(self.keys[layer, :, :, :end], self.values[layer, :, :, :end])

    @staticmethod
    def _scatter(cached: Tensor, new: Tensor, position: Tensor) -> None:
        places = position.reshape(-1, 1) + torch.arange(new.shape[2], device=new.device)
        if position.numel() == 1:
            cached.index_copy_(2, places[0], new.to(cached.dtype))
            return
        rows = torch.arange(len(cached), device=new.device)[:, None]
        # Indices on both sides of a slice: the indexed dimensions [B, N] come first.
        cached[rows, :, places] = new.transpose(1, 2).to(cached.dtype)

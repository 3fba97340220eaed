"""Per-step cache of what depends on the timestep alone: time embeddings and adaLN modulations.

Shapes: `B` batch, `Z` time embedding width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TimestepCache:
    """One network's time embedding and its layers' modulations of it, made when first asked for and kept.

    As many values as there are layers; they are the same bits as if they were made again.
    """

    embedding: Tensor  # [B, Z], after the SiLU
    _values: dict[object, Any] = field(default_factory=dict)

    def modulate(self, layer: nn.Linear) -> Tensor:
        """The layer's answer [B, outputs] for the embedding."""
        vectors: Tensor = self.cached(layer, lambda: layer(self.embedding))
        return vectors

    def cached(self, key: object, make: Callable[[], T]) -> T:
        """The value under a key; `make` gives it the first time."""
        if key not in self._values:
            self._values[key] = make()
        value: T = self._values[key]
        return value


@dataclass(frozen=True, slots=True)
class Timestep:
    """A denoising step's time, with a cache for each network. Good for any number of windows of as many rows."""

    time: Tensor  # [B], in the unit that `DiTConfig.time_scale` says
    _caches: dict[nn.Module, TimestepCache] = field(default_factory=dict)

    def cache(self, network: nn.Module, embed: Callable[[Tensor], Tensor]) -> TimestepCache:
        """The network's cache; `embed` makes its embedding [B, Z] of the time, the first time."""
        if network not in self._caches:
            self._caches[network] = TimestepCache(embed(self.time))
        return self._caches[network]

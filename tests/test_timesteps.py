"""Values that depend on a timestep alone: made once, and the same as made again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.perceptual.timesteps import Timestep, TimestepCache


class Counted(nn.Linear):
    """Counts its calls."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


def test_a_layer_runs_once() -> None:
    """Each layer sees an embedding once; the answer is what it would give again, and other layers have their own."""
    layer, other, cache = Counted(4, 6), Counted(4, 6), TimestepCache(torch.randn(3, 4))
    first = cache.modulate(layer)
    assert cache.modulate(layer) is first and layer.calls == 1
    assert torch.equal(first, layer(cache.embedding))
    assert not torch.equal(cache.modulate(other), first)


def test_values_are_kept_by_key() -> None:
    """A value is made once under each key."""
    cache = TimestepCache(torch.randn(3, 4))
    made = [cache.cached(key, object) for key in ("one", "other", "one")]
    assert made[0] is made[2] and made[0] is not made[1]


def test_networks_have_caches_of_their_own() -> None:
    """A timestep keeps one cache for each network, with that network's embedding."""
    timestep, one, other = Timestep(torch.ones(1)), nn.Identity(), nn.Identity()
    made = [timestep.cache(network, lambda time: time[:, None] * 2) for network in (one, other, one)]
    assert made[0] is made[2] and made[0] is not made[1]
    assert made[0].embedding.tolist() == [[2.0]]

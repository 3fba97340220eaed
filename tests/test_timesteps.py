"""What is made of a time: made once, and the same as made again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.perceptual.timesteps import Moment, Times


class Counted(nn.Linear):
    """Counts its calls."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


def test_a_layer_runs_once() -> None:
    """Each layer meets a time once; the answer is what it would give again, and other layers have their own."""
    layer, other, times = Counted(4, 6), Counted(4, 6), Times(torch.randn(2, 3, 4))
    first = times.through(layer)
    assert times.through(layer) is first and layer.calls == 1
    assert torch.equal(first, layer(times.embedded))
    assert not torch.equal(times.through(other), first)


def test_rows_and_what_is_kept() -> None:
    """A row is one of the distinct times; it remembers what was made of it, under each key apart."""
    times = Times(torch.randn(2, 3, 4))
    row = times.row(1)
    assert torch.equal(row.embedded, times.embedded[1]) and times.row(1) is row
    made = [row.kept(key, object) for key in ("one", "other", "one")]
    assert made[0] is made[2] and made[0] is not made[1]


def test_networks_have_their_own_times() -> None:
    """A moment keeps the times of each network apart, with the prompt half's time and without."""
    moment, one, other = Moment(torch.zeros(1)), nn.Identity(), nn.Identity()
    made = [
        moment.times(network, split, lambda time, split: Times(time.expand(1 + split, 1)))
        for network in (one, other)
        for split in (False, True)
    ]
    assert len({id(times) for times in made}) == 4
    assert [len(times.embedded) for times in made] == [1, 2, 1, 2]
    assert moment.times(one, True, lambda time, split: Times(time)) is made[1]

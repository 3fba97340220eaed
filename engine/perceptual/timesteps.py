"""What the networks make of a time alone, kept so that it is made once for each step of a schedule.

Shapes: `E` distinct times, `B` batch, `Z` time embedding width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor, nn

T = TypeVar("T")


# Values by what they are of, each made when it is first asked for: as many as there are layers, never more.
_Memory = dict[object, Any]


def _recall(memory: _Memory, key: object, make: Callable[[], T]) -> T:
    if key not in memory:
        memory[key] = make()
    value: T = memory[key]
    return value


@dataclass(frozen=True, slots=True)
class Times:
    """Embedded times and the modulations that layers made of them: exactly what they would make again."""

    embedded: Tensor  # [E, B, Z] or [B, Z], after the SiLU
    _known: _Memory = field(default_factory=dict)

    def through(self, layer: nn.Linear) -> Tensor:
        """[..., Z] -> [..., outputs] of a layer."""
        made: Tensor = _recall(self._known, layer, lambda: layer(self.embedded))
        return made

    def row(self, number: int) -> Times:
        """[B, Z]: one of the distinct times."""
        return _recall(self._known, ("row", number), lambda: Times(self.embedded[number]))

    def kept(self, key: object, make: Callable[[], T]) -> T:
        """What was made of these times under that key, or is made now."""
        return _recall(self._known, key, make)


@dataclass(frozen=True, slots=True)
class Moment:
    """A step's time, and what each network made of it. Good for any number of windows of as many rows."""

    time: Tensor  # [B], in the unit that `DiTConfig.time_scale` says
    _known: _Memory = field(default_factory=dict)

    def times(self, network: nn.Module, split: bool, embed: Callable[[Tensor, bool], Times]) -> Times:
        """The network's `embed` of this time, with the prompt half's time beside it if `split`."""
        return _recall(self._known, (network, split), lambda: embed(self.time, split))

"""Sequences of tokens that one process computes alone, or several together.

Shapes: `B` batch, `N` tokens of a sequence, `n` of them a rank's own, `D` width, `H` heads, `h` of them a rank's own,
`E` width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor


class TokenShare(Protocol):
    """A rank's part of one sequence: some of its tokens, and for attention all tokens of some heads."""

    def own(self, x: Tensor) -> Tensor:
        """[B or 1, N, D] -> the rank's own tokens, [B or 1, n, D]."""
        ...

    def own_of_first(self, count: int) -> int:
        """How many of the sequence's first `count` tokens are the rank's own."""
        ...

    def to_heads(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """[B, H, n, E] each, own tokens of all heads -> all tokens of own heads, [B, h, N, E] each."""
        ...

    def to_tokens(self, x: Tensor) -> Tensor:
        """[B, h, N, E], all tokens of own heads -> own tokens of all heads, [B, H, n, E]."""
        ...

    def whole(self, x: Tensor) -> Tensor:
        """[B, n, D], the rank's own tokens -> all tokens, [B, N, D]."""
        ...


class WholeSequence:
    """The share of a process that computes alone: everything."""

    def own(self, x: Tensor) -> Tensor:
        return x

    def own_of_first(self, count: int) -> int:
        return count

    def to_heads(self, *parts: Tensor) -> tuple[Tensor, ...]:
        return parts

    def to_tokens(self, x: Tensor) -> Tensor:
        return x

    def whole(self, x: Tensor) -> Tensor:
        return x


WHOLE = WholeSequence()
Sharing = Callable[[int], TokenShare]  # the share of a sequence of so many tokens


def alone(tokens: int) -> TokenShare:
    """The `Sharing` of a process that computes alone."""
    return WHOLE

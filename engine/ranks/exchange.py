"""A sequence of tokens shared by ranks: each computes some tokens, and in attention all tokens of some heads.

That is DeepSpeed-Ulysses (arXiv 2309.14509), here for any number of tokens and heads: what is left over goes to the
first ranks. Nothing is added up, so that values are those of one rank but for how products of fewer rows round.

Shapes: `B` batch, `N` tokens of a sequence, `n` of them a rank's own, `D` width, `H` heads, `h` of them a rank's own,
`E` width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from engine.ranks.group import talking


def shares(count: int, ranks: int) -> list[int]:
    """How many of `count` things each rank has."""
    return [count // ranks + (rank < count % ranks) for rank in range(ranks)]


@dataclass(frozen=True, slots=True)
class TokenGroup:
    """The ranks that share sequences; calling it gives the share of one."""

    group: dist.ProcessGroup
    heads: int

    def __call__(self, tokens: int) -> GroupShare:
        return GroupShare(self, shares(tokens, self.size), shares(self.heads, self.size), dist.get_rank(self.group))

    @property
    def size(self) -> int:
        """Number of ranks."""
        return dist.get_world_size(self.group)

    def exchange(self, parts: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Gives part r to rank r, and returns what each rank gave, which is of these shapes. Raises RankError."""
        given = [part.numel() for part in parts]
        taken = [math.prod(shape) for shape in shapes]
        flat = torch.cat([part.flatten() for part in parts])
        # In one piece: gloo takes lists only where all parts are equal.
        received = flat.new_empty(sum(taken))
        with talking(dist.get_rank()):
            dist.all_to_all_single(received, flat, taken, given, group=self.group)
        return [part.view(shape) for part, shape in zip(received.split(taken), shapes, strict=True)]


@dataclass(frozen=True, slots=True)
class GroupShare:
    """A rank's part of one sequence: a `TokenShare`."""

    group: TokenGroup
    tokens: list[int]  # of each rank
    heads: list[int]
    rank: int  # within the group

    def own(self, x: Tensor) -> Tensor:
        own: Tensor = x.split(self.tokens, dim=1)[self.rank]
        return own

    def own_of_first(self, count: int) -> int:
        return min(max(count - sum(self.tokens[: self.rank]), 0), self.tokens[self.rank])

    def to_heads(self, *parts: Tensor) -> tuple[Tensor, ...]:
        joined = torch.stack(parts)  # [parts, B, H, n, E]
        given = joined.split(self.heads, dim=2)
        size = (*joined.shape[:2], self.heads[self.rank])
        taken = self.group.exchange(given, [(*size, count, joined.shape[-1]) for count in self.tokens])
        return torch.cat(taken, dim=3).unbind()

    def to_tokens(self, x: Tensor) -> Tensor:
        own = self.tokens[self.rank]
        given = x.split(self.tokens, dim=2)
        return torch.cat(self.group.exchange(given, [(len(x), count, own, x.shape[-1]) for count in self.heads]), dim=1)

    def whole(self, x: Tensor) -> Tensor:
        shapes = [(len(x), count, x.shape[-1]) for count in self.tokens]
        return torch.cat(self.group.exchange([x] * self.group.size, shapes), dim=1)

"""Parallel decoding of a plan: a pass reads several places of a GOP at once, most of them guesses, and keeps the right.

A token is drawn with noise that belongs to its place, so it is a function of the tokens before it. A pass computes that
function at `N` places in a row, of which only the first is known to hold the right token. Its answer is right, and so
is each further one as long as the guess it was computed of is the answer before it (Jacobi iteration). The plan is the
one that single tokens give, whatever the guesses; these decide how many tokens a pass decides. Answers behind the first
wrong guess are the next pass's guesses, and places that no pass has reached repeat the frame before.

Places count from a GOP's START_OF_IFRAME = 0. Shapes: `K` tokens of a GOP, `N` places of a pass, `V` codebook size.
"""

from __future__ import annotations

from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.semantic.planner import PlannerConfig

CPU_PLACES, GPU_PLACES = 24, 32  # that a pass computes at once; docs/BENCHMARKS.md has what others take
LONGEST_PASS = 64  # places; caches have room for it, so that they fit every device
_DRAWN = -1  # stands for a token that is not given by its place


def default_places(device: torch.device) -> int:
    """Places that a pass computes at once where that is fastest."""
    return GPU_PLACES if device.type == "cuda" else CPU_PLACES


class GOPPlaces:
    """What stands at each place of a full GOP; behind its end, where passes may reach, there is padding."""

    def __init__(self, config: PlannerConfig, pass_places: int, device: torch.device) -> None:
        """`pass_places`: N."""
        layout = config.layout(config.gop_frames)
        is_drawn = [entry is None for entry in layout] + [False] * pass_places
        self.count = len(layout)
        self.counts = tuple(accumulate(is_drawn))  # tokens up to each place, itself among them
        self._i_tokens, self._p_tokens, self.tokens = config.i_tokens, config.p_tokens, self.counts[-1]
        self.starts = tuple(len(config.layout(frames)) for frames in range(config.gop_frames + 1))  # of frames
        given = [_DRAWN if entry is None else entry for entry in layout] + [config.pad] * pass_places
        numbers = [count - 1 if drawn else self.tokens for count, drawn in zip(self.counts, is_drawn, strict=True)]
        with torch.inference_mode(False):
            self._given = torch.tensor(given, device=device)
            self._numbers = torch.tensor(numbers, device=device)  # of the token at a place; K where none is
            self._reach = torch.tensor(self.counts, device=device)
            self._steps = torch.arange(pass_places + 1, device=device)
            self._all = torch.arange(self.tokens, device=device)

    def read(self, tokens: Tensor, start: Tensor) -> Tensor:
        """Tokens and guesses [1, K] -> what stands at N places from `start` [1] on, int64 [N]."""
        places = start + self._steps[:-1]
        return self._fill(places, F.pad(tokens[0], (0, 1))[self._numbers[places]])

    def accept(self, read: Tensor, drawn: Tensor, tokens: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens [1, K] with a pass's answers, and how many places behind `start` are right, int64 [1].

        Args:
            read: [N], of `read`.
            drawn: [N] int64, the tokens drawn for the places behind those.
        """
        places = start + self._steps[1:]
        answers = self._fill(places, drawn)
        right = 1 + (read[1:] == answers[:-1]).long().cumprod(0).sum(0, keepdim=True)
        put = F.pad(tokens[0], (0, 1)).index_copy(0, self._numbers[places], answers)
        # Behind all that was ever answered a P frame's tokens repeat those of the frame before.
        end = self._reach[places[-1:]]
        source = self._all - self._p_tokens * ((self._all - end).clamp(min=-1) // self._p_tokens + 1)
        source = torch.where(source >= self._i_tokens, source, self._all)
        return put[source][None], right

    def _fill(self, places: Tensor, drawn: Tensor) -> Tensor:
        given = self._given[places]
        return torch.where(given == _DRAWN, drawn, given)

    def first_guess(self, before: Tensor | None, device: torch.device) -> Tensor:
        """Guesses [1, K] for a GOP: the I frame and the last P frame of the tokens [1, K] of the GOP before."""
        if before is None:
            return torch.zeros(1, self.tokens, dtype=torch.int64, device=device)
        last = before[:, self.tokens - self._p_tokens :]
        repeats = (self.tokens - self._i_tokens) // self._p_tokens
        return torch.cat([before[:, : self._i_tokens], last.repeat(1, repeats)], dim=1)

"""The ranks that render one window together: how the first of them tells the others what to compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from engine.perceptual.sharing import Sharing, alone
from engine.ranks.exchange import TokenGroup
from engine.ranks.group import receive, send, silence_s, talking
from engine.ranks.layout import RankLayout


@dataclass(frozen=True, slots=True)
class Call:
    """What all ranks of a team shall compute next; its tensors follow."""

    kind: str  # "open" or "denoise" a window
    window: int  # its number
    tensors: list[tuple[torch.Size, torch.dtype]]
    closed: list[int]  # numbers of windows that nobody needs any more


class RenderTeam:
    """One rank's view of the grid of those that render: its row of guidance, and its share of the tokens there."""

    def __init__(self, layout: RankLayout, device: torch.device, heads: int) -> None:
        """All ranks make it when they have loaded what they need, also those that do not render. Raises RankError."""
        rank, timeout = dist.get_rank(), timedelta(seconds=silence_s())
        backend = "nccl" if device.type == "cuda" else "gloo"
        self._layout, self._device = layout, device
        with talking(rank):
            # From here on nobody may keep the others waiting for long.
            dist.barrier()
            self._tensors = dist.new_group(layout.rendering, timeout=timeout, backend=backend)
            rows = [dist.new_group(layout.row(row), timeout=timeout, backend=backend) for row in range(layout.rows)]
        self.lead = layout.rendering[0]
        # Those that do not render have no row, and ask for none.
        self.row = layout.rendering.index(rank) // layout.context if rank in layout.rendering else 0
        self.share: Sharing = alone if layout.context == 1 else TokenGroup(rows[self.row], heads)

    def own_rows(self, rows: int) -> slice:
        """Which of a batch's rows this rank computes. One row is that with the text, which is the last row's."""
        if self._layout.rows == 1:
            return slice(None)
        if rows == 1:
            return slice(0, int(self.row == self._layout.rows - 1))
        return slice(self.row, self.row + 1)

    def tell(self, call: Call | None, tensors: Sequence[Tensor] = ()) -> None:
        """Tells the others what to compute; None that there is nothing more. Raises RankError."""
        for rank in self._layout.rendering[1:]:
            send(call, rank)
        with talking(self.lead):
            for tensor in tensors:
                dist.broadcast(tensor.contiguous(), src=self.lead, group=self._tensors)

    def hear(self) -> tuple[Call, list[Tensor]] | None:
        """What to compute next, with its tensors; None if there is nothing more. Raises RankError."""
        call: Call | None = receive(self.lead, idle=True)
        if call is None:
            return None
        tensors = [torch.empty(shape, dtype=dtype, device=self._device) for shape, dtype in call.tensors]
        with talking(dist.get_rank()):
            for tensor in tensors:
                dist.broadcast(tensor, src=self.lead, group=self._tensors)
        return call, tensors

    def gather(self, made: Tensor | None, rows: int, like: Tensor) -> Tensor | None:
        """Brings what each row of the grid has made to the lead, in their order; None on all others.

        Args:
            made: this rank's rows, float32; None where it has none.
            rows: of the batch.
            like: [1, ...], of one row's shape.

        Raises:
            RankError: another rank is gone.
        """
        rank, last = dist.get_rank(), self._layout.row(self._layout.rows - 1)[0]
        if last == self.lead:
            return made if rank == self.lead else None
        parts = [] if made is None else [made]
        with talking(rank):
            if rank == last and made is not None:
                dist.send(made.contiguous(), dst=self.lead, group=self._tensors)
            if rank != self.lead:
                return None
            parts.append(torch.empty_like(like, dtype=torch.float32))
            dist.recv(parts[-1], src=last, group=self._tensors)
        return torch.cat(parts)

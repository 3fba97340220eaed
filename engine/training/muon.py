"""Muon (Jordan et al. 2024) for the hidden matrices and convolutions of small networks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Muon(torch.optim.Muon):
    """torch's Muon, which takes matrices only, for convolutions too, each as a matrix [out, in * kernel].

    Gradients are read from the parameters, whose memory must stay where it is.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        """`lr` is the root-mean-square size of an update's entries, roughly, times sqrt(width)."""
        self.sources = list(parameters)
        super().__init__([p.detach().view(len(p), -1) for p in self.sources], lr=lr, weight_decay=0.0)

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for view, source in zip(self.param_groups[0]["params"], self.sources, strict=True):
            view.grad = None if source.grad is None else source.grad.flatten(1)
        torch.optim.Muon.step(self)

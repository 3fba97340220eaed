"""Noise schedules: which noise levels a sampler visits, and what the network is told at each.

Alpha is the signal's share: x = alpha clean + sqrt(1 - alpha^2) noise (diffusion), or
x = t clean + (1 - t) noise with t in [0, 1] (flow). Shapes: `S` sampling steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class DiffusionLevels:
    """The levels of one sampling run, from pure noise to clean; all tensors on the CPU."""

    alphas: Tensor  # [S + 1] float32, the first 0, the last 1
    times: Tensor  # [S] int64, what the network is told, falling
    snapped: Tensor  # [S] float32, the entry of the training table nearest to each alpha
    snapped_index: Tensor  # [S] int64, its place among the table's entries, clean first
    guidance: Tensor  # [S] float64


def _check_order(order: int) -> None:
    if order not in (1, 2):
        raise ValueError(f"solver order {order} is neither 1 nor 2")


@dataclass(frozen=True, slots=True)
class DiffusionSchedule:
    """The published schedule: betas linear in their roots, SNR shift, zero final SNR (REFERENCE 3.5 to 3.7).

    `guidance_scale` and `guidance_exponent` shape the guidance, which lies between 1 and 1 + `guidance_scale`.

    Runs of fewer steps than `few_steps` take a deterministic solver of order `order`: the published one is stochastic,
    and made for 50.
    """

    train_steps: int = 1000
    beta_start: float = 8.5e-4
    beta_end: float = 1.2e-2
    shift: float = 3.0
    guidance_scale: float = 6.0
    guidance_exponent: float = 5.0
    few_steps: int = 20
    order: int = 2

    def __post_init__(self) -> None:
        _check_order(self.order)
        if not 0 < self.beta_start < self.beta_end < 1:
            raise ValueError(f"betas must rise within 0..1: beta_start {self.beta_start}, beta_end {self.beta_end}")
        if self.shift < 1:
            raise ValueError(f"shift {self.shift} is below 1, which would lower the noise of every step")

    def levels(self, steps: int) -> DiffusionLevels:
        """The levels of a run of `steps`.

        Raises:
            ValueError: if there are fewer than 2 steps or more than the training had.
        """
        self._check(steps)
        times = self._times(steps)
        alphas = self._alphas(times).flip(0)
        snapped, snapped_index = self.snap(alphas)
        falling = times.flip(0)
        return DiffusionLevels(
            alphas=torch.cat([alphas, torch.ones(1)]),
            times=falling,
            snapped=snapped,
            snapped_index=snapped_index,
            guidance=torch.tensor([self._guidance(steps, int(time)) for time in falling], dtype=torch.float64),
        )

    def trailing(self, steps: int) -> tuple[list[int], list[float]]:
        """Network times of a run, falling from the training's last, and the training's own alphas there.

        Unlike those of `levels`, which the release stretches anew for every number of steps, these are noise levels
        that the network was trained at, at the times that it was told.

        Raises:
            ValueError: as for `levels`.
        """
        self._check(steps)
        times = self._times(steps)
        table = self._alphas(self._times(self.train_steps))
        return times.flip(0).tolist(), table[times].flip(0).tolist()

    def guidance_at(self, done: float) -> float:
        """Guidance when the share `done` of a run is over: the published curve as it was meant, rising from 1."""
        return 1 + self.guidance_scale * (1 - math.cos(math.pi * done**self.guidance_exponent)) / 2

    def snap(self, alphas: Tensor) -> tuple[Tensor, Tensor]:
        """The entries of the training table nearest to [S] alphas, and their places in it, clean first."""
        table = self._alphas(self._times(self.train_steps))
        index = (alphas[:, None] - table[None, :]).abs().argmin(dim=1)
        return table[index], index

    def _check(self, steps: int) -> None:
        if not 2 <= steps <= self.train_steps:
            raise ValueError(f"{steps} sampling steps asked for, 2 to {self.train_steps} are possible")

    def _times(self, steps: int) -> Tensor:
        """[S] int64, rising."""
        if steps == self.train_steps:
            return torch.arange(steps)
        falling = np.linspace(self.train_steps - 1, 0, steps, endpoint=False)
        return torch.from_numpy(falling.astype(np.int64)).flip(0)

    def _alphas(self, times: Tensor) -> Tensor:
        """[S] float32: roots of the cumulated alphas at rising `times`, stretched so that the last is 0.

        The stretch acts on the steps that are used, not on the whole table: the published order (REFERENCE 3.5).
        """
        betas = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.train_steps, dtype=torch.float64) ** 2
        cumulated = torch.cumprod(1 - betas, dim=0)
        cumulated = cumulated / (self.shift + (1 - self.shift) * cumulated)
        roots = cumulated[times].float().sqrt()
        return (roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))

    def _guidance(self, steps: int, time: int) -> float:
        """Guidance at a network time; in double precision, because the power makes it chaotic (REFERENCE 3.7)."""
        phase = math.pi * ((steps - time) / steps) ** self.guidance_exponent
        return 1 + self.guidance_scale * (1 - math.cos(phase)) / 2


@dataclass(frozen=True, slots=True)
class FlowSchedule:
    """Rectified flow; `shift` above 1 spends more of the steps at high noise. `order` is that of the solver."""

    shift: float = 1.0
    order: int = 1

    def __post_init__(self) -> None:
        _check_order(self.order)
        if self.shift <= 0:
            raise ValueError(f"shift {self.shift} is not above 0")

    def shifted(self, time: Tensor) -> Tensor:
        """Even times in [0, 1] -> times of the schedule, same shape; 0 stays noise and 1 stays clean."""
        noise = 1 - time
        return 1 - self.shift * noise / (1 + (self.shift - 1) * noise)

    def times(self, steps: int) -> Tensor:
        """[S + 1] float64, rising from 0 (noise) to 1 (clean)."""
        if steps < 1:
            raise ValueError(f"{steps} sampling steps asked for, at least 1 is needed")
        return self.shifted(torch.arange(steps + 1, dtype=torch.float64) / steps)

    @staticmethod
    def mix(clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """[B, ...] latents at the time [B] of each row: t clean + (1 - t) noise."""
        share = time.view(-1, *(1,) * (clean.ndim - 1))
        return share * clean + (1 - share) * noise

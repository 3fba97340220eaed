"""Solvers: from noise to clean latents, one denoising step at a time.

A solver holds the coefficients of a run and nothing that changes; what changes is a `SolverState`, so that the engine
can interleave the steps of several runs. Shapes: `S` steps, `B` batch, `T` latent frames, `C` channels, `H` x `W`
latent size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.perceptual.schedule import DiffusionSchedule, FlowSchedule
from kernels.guidance import COEFFICIENTS, solver_update


@dataclass(frozen=True, slots=True)
class SolverState:
    """The state of a run between two steps."""

    x: Tensor  # [B, T, C, H, W] float32, noisy; clean after the last step
    clean: Tensor | None = None  # the estimate of the step before


class Solver:
    """Coefficients of the steps of a run, which are numbered from 0."""

    def __init__(
        self,
        times: Sequence[float],
        guidance: Sequence[float],
        alphas: Sequence[float],
        sigmas: Sequence[float],
        table: Tensor,
    ) -> None:
        """Shares of signal and noise at each step, and its `kernels.guidance.COEFFICIENTS`, [S, 8] float32."""
        self.steps = len(times)
        self.table = table
        self.looks_back = bool(table[:, COEFFICIENTS.index("mix_previous")].any())  # at the estimate before
        self._times, self._guidance, self._alphas, self._sigmas = times, guidance, alphas, sigmas

    def time(self, index: int) -> float:
        """The network's time condition at a step."""
        return self._times[index]

    def guidance(self, index: int) -> float:
        """Factor of the way from the estimate without text to the one with it; 1 needs no estimate without."""
        return self._guidance[index]

    def draws(self, index: int) -> int:
        """Noises that the reference draws at a step; the last of them is the one that `step` takes."""
        return 0

    def noised(self, index: int, clean: Tensor, noise: Tensor) -> Tensor:
        """Clean latents brought to a step's noise level."""
        return self._alphas[index] * clean + self._sigmas[index] * noise

    def clean(self, index: int, x: Tensor, output: Tensor) -> Tensor:
        """The clean latents that a network output for `x` stands for, float32."""
        skip, out, *_ = self.table[index].to(x.device).unbind()
        return skip * x.float() + out * output.float()

    def step(self, index: int, state: SolverState, clean: Tensor, noise: Tensor | None = None) -> SolverState:
        """The state after a step; `clean` is the (guided) estimate for `state.x`, `noise` as large as it.

        Raises:
            ValueError: a noise is needed and not given.
        """
        if self.draws(index) and noise is None:
            raise ValueError(f"step {index} of {self.steps} needs noise")
        coefficients = self.table[index].to(clean.device)
        return SolverState(solver_update(state.x, clean, coefficients, state.clean, noise), clean)


class FlowSolver(Solver):
    """Solver for a rectified flow whose network predicts clean latents."""

    def __init__(self, schedule: FlowSchedule, steps: int) -> None:
        alphas: list[float] = schedule.times(steps).tolist()
        sigmas = [1 - alpha for alpha in alphas]
        # The shipped weights: 2 to 4 times less error than without looking ahead, at 4 to 8 steps of second order.
        weights = _multistep(alphas, sigmas, schedule.order, look_ahead=True)
        guidance = [1.0] * steps
        super().__init__(alphas[:-1], guidance, alphas, sigmas, _rows([(0.0, 1.0)] * steps, guidance, weights))


class FewStepSolver(Solver):
    """Solver for the published network where there are few steps: trailing spacing, from pure noise."""

    def __init__(self, schedule: DiffusionSchedule, steps: int) -> None:
        times, alphas = schedule.trailing(steps)
        sigmas = [math.sqrt(1 - alpha**2) for alpha in alphas]
        guidance = [schedule.guidance_at(index / steps) for index in range(steps)]
        # The last step starts at much noise, from where looking ahead goes astray.
        weights = _multistep([*alphas, 1.0], [*sigmas, 0.0], schedule.order, look_ahead=False)
        outputs = [(alpha, -sigma) for alpha, sigma in zip(alphas, sigmas, strict=True)]
        super().__init__(times, guidance, alphas, sigmas, _rows(outputs, guidance, weights))


class DiffusionSolver(Solver):
    """The published sampler: stochastic DPM-Solver++ (2M) on the variance-preserving path (REFERENCE 3.6, 3.8)."""

    def __init__(self, schedule: DiffusionSchedule, steps: int) -> None:
        self.levels = schedule.levels(steps)
        self.coefficients = _coefficients(self.levels.alphas)
        alphas, snapped, guidance = self.levels.alphas, self.levels.snapped, self.levels.guidance
        outputs = torch.stack([snapped, -(1 - snapped**2).sqrt(), guidance.float()], dim=1)
        last = torch.tensor([[0.0, -1.0, 1.0, 0.0, 0.0]])
        table = torch.cat([outputs, torch.cat([self.coefficients, last])], dim=1)
        sigmas: list[float] = (1 - alphas**2).sqrt().tolist()
        super().__init__(self.levels.times.double().tolist(), guidance.tolist(), alphas.tolist(), sigmas, table)

    def draws(self, index: int) -> int:
        return 0 if index == self.steps - 1 else 1 if index == 0 else 2


def solver_of(schedule: FlowSchedule | DiffusionSchedule, steps: int) -> Solver:
    """The solver that belongs to a schedule and a number of steps."""
    if isinstance(schedule, FlowSchedule):
        return FlowSolver(schedule, steps)
    return FewStepSolver(schedule, steps) if steps < schedule.few_steps else DiffusionSolver(schedule, steps)


def clean_of_velocity(x: Tensor, velocity: Tensor, alpha: Tensor) -> Tensor:
    """The clean latents, float32, that a predicted velocity stands for; `alpha` is a scalar tensor (REFERENCE 3.6)."""
    return alpha * x.float() - (1 - alpha**2).sqrt() * velocity.float()


def guide(without: Tensor, with_text: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance on clean estimates."""
    return without + scale * (with_text - without)


def _rows(
    outputs: Sequence[tuple[float, float]], guidance: Sequence[float], weights: Sequence[tuple[float, float, float]]
) -> Tensor:
    """A solver's table; `outputs` are the factors of x and of the network's output in a clean estimate."""
    rows = [
        (skip, out, scale, coef_x, -1.0, now, -before, 0.0)
        for (skip, out), scale, (coef_x, now, before) in zip(outputs, guidance, weights, strict=True)
    ]
    return torch.tensor(rows)


def _multistep(
    alphas: Sequence[float], sigmas: Sequence[float], order: int, look_ahead: bool
) -> list[tuple[float, float, float]]:
    """Coefficients of a deterministic multistep solver for any Gaussian path, made for few steps.

    On a path x = alpha clean + sigma noise the exact answer is x'/sigma' = x/sigma + integral of clean(u) du, with u =
    alpha / sigma. Here `clean` is replaced by the line through the last two estimates, over the path's time s = alpha /
    (alpha + sigma). DPM-Solver++ takes log u instead, which is infinite at a start without any signal (zero terminal
    SNR): it has to begin with two steps of first order, this solver with one.

    Args:
        alphas, sigmas: of the S + 1 levels from noise to clean; sigma is 0 at the last alone.
        order: 1 takes the latest estimate as it is at every step.
        look_ahead: whether the last step too goes on along the line; else it takes the latest estimate as it is.

    Returns:
        For each of the S steps the factors of x, of the latest estimate and of the one before.
    """
    times = [alpha / (alpha + sigma) for alpha, sigma in zip(alphas, sigmas, strict=True)]
    steps: list[tuple[float, float, float]] = []
    for index in range(len(alphas) - 1):
        alpha, sigma = alphas[index + 1], sigmas[index + 1]
        coef_x = sigma / sigmas[index]
        if index == 0 or order == 1 or (sigma == 0 and not look_ahead):
            steps.append((coef_x, alpha - coef_x * alphas[index], 0.0))
            continue
        now, before, end = times[index], times[index - 1], times[index + 1]
        if sigma == 0:
            # All of x is clean at the end: the line's value there.
            factor, area, moment = alpha, 1.0, 1.0
        else:
            # Integrals of 1 and s over du = ds / (1 - s)^2.
            area = end / (1 - end) - now / (1 - now)
            factor, moment = sigma, area + math.log((1 - end) / (1 - now))
        weight_before = (moment - now * area) / (before - now)
        steps.append((coef_x, factor * (area - weight_before), factor * weight_before))
    return steps


def _coefficients(alphas: Tensor) -> Tensor:
    """[S + 1] alphas -> [S - 1, 5] float32: coef_x, coef_x0, shares of the latest x0 and of the last one, coef_noise.

    The first step starts at alpha 0, whose log SNR is minus infinity: the infinities give the right limits. They are
    computed in float32 like the published ones, which they must equal.
    """
    now, after = alphas[:-2], alphas[1:-1]
    log_snr = (alphas[:-1] ** 2 / (1 - alphas[:-1] ** 2)).sqrt().log()
    gap = log_snr[1:] - log_snr[:-1]
    ratio = torch.cat([torch.tensor([torch.inf]), gap[:-1] / gap[1:]])
    coef_x = ((1 - after**2) / (1 - now**2)).sqrt() * (-gap).exp()
    coef_x0 = torch.expm1(-2 * gap) * after
    coef_noise = (1 - after**2).sqrt() * (1 - (-2 * gap).exp()).sqrt()
    return torch.stack([coef_x, coef_x0, 1 + 1 / (2 * ratio), 1 / (2 * ratio), coef_noise], dim=1)
